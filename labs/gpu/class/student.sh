#!/bin/bash
# The run of one student, by number: bash labs/gpu/class/student.sh 7, from the folder of the course.
#
# Student n trains objective n mod 2 with seed n div 2. So students 2k and 2k + 1 have the same seed and differ in the
# objective alone: a pair of the class's comparison. The same command again goes on from the run's checkpoint.
#
#   PRESET   of `llm train` (class)          RECIPE   a file of labs/gpu/recipes, in its place
#   RUNS     folder of the runs (runs/class) OPTIONS  further options of llm train, or NAME=VALUE of a recipe
#   PYTHON   with the course installed (.venv-gpu/bin/python where there is one, else .venv/bin/python)
#
# Ends with 0 when the run is done, with 130 when it stopped in time with a checkpoint, with anything else when it is
# wrong.
set -u
student=${1:?student.sh: name a number, as in: bash labs/gpu/class/student.sh 7}
case $student in *[!0-9]*) echo "student.sh: a number is needed, got $student" >&2; exit 2 ;; esac
student=$((10#$student)) # 07 is no octal number

objectives=(grpo lambda_grpo)
objective=${objectives[student % 2]}
seed=$((student / 2))
out=${RUNS:-runs/class}/student-$(printf %02d "$student")
python=${PYTHON:-$([ -x .venv-gpu/bin/python ] && echo .venv-gpu/bin/python || echo .venv/bin/python)}

if [ -n "${RECIPE:-}" ]; then
  command=("$python" labs/gpu/train.py "$RECIPE" "seed=$seed")
else
  command=("$python" -m minigrpo llm train --quiet --preset "${PRESET:-class}" --seed "$seed")
fi
command+=(--objective "$objective" --out "$out" --auto-resume)

echo "$(date +%FT%T) card ${CUDA_VISIBLE_DEVICES:-none}:" "${command[@]}" ${OPTIONS:-}
exec "${command[@]}" ${OPTIONS:-} # exec: a signal reaches Python, which makes a checkpoint
