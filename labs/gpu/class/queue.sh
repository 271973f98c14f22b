#!/bin/bash
# A class on one machine without Slurm: a queue a card, by task-spooler (Debian, Ubuntu: apt install task-spooler).
#
#   bash labs/gpu/class/queue.sh 0 29       # queue students 0 to 29
#   bash labs/gpu/class/queue.sh show       # what runs, what waits, how runs ended
#   bash labs/gpu/class/queue.sh stop       # stop all; each run keeps a checkpoint, and the first command goes on
#
# From the folder of the course, as the one user whom the queues belong to. CARDS (2) queues; a run that has not ended
# after MINUTES (30) stops with a checkpoint and goes to the end of its queue, so that all get on. PRESET, RECIPE, RUNS,
# OPTIONS and PYTHON are student.sh's.
set -u
cards=${CARDS:-2}
runs=${RUNS:-runs/class}
tsp=$(command -v tsp) || { echo "queue.sh: needs task-spooler: apt install task-spooler" >&2; exit 2; }

on_card() { # the queue of a card
  local card=$1
  shift
  TS_SOCKET=$(cd "$runs" && pwd)/.card-$card TS_MAXFINISHED=1000 "$tsp" "$@"
}

queue() { # a student's run; each round begins a card later, so that no card has one objective alone
  local card=$((($1 + $1 / cards) % cards))
  on_card "$card" -L "student-$(printf %02d "$1")" bash labs/gpu/class/queue.sh run "$1" "$card" > /dev/null
}

case ${1:-} in
  run) # what a queue calls
    trap : TERM # that of `stop`: Python gets it too, and makes a checkpoint
    log=$runs/student-$(printf %02d "$2").log
    OPTIONS="${OPTIONS:-} --max-minutes ${MINUTES:-30}" CUDA_VISIBLE_DEVICES=$3 \
      bash labs/gpu/class/student.sh "$2" >> "$log" 2>&1
    code=$?
    echo "$(date +%FT%T) ended with $code" >> "$log"
    if [ $code = 130 ] && [ ! -e "$runs/.stop" ]; then queue "$2"; fi
    exit $code
    ;;
  show | stop)
    [ -d "$runs" ] || { echo "queue.sh: there is no folder $runs: nothing was queued" >&2; exit 2; }
    ;;&
  show)
    for ((card = 0; card < cards; card++)); do echo "card $card"; on_card "$card"; done
    ;;
  stop)
    touch "$runs/.stop"
    for ((card = 0; card < cards; card++)); do
      for state in queued running; do
        while read -r job; do
          if [ $state = queued ]; then on_card "$card" -r "$job"; else on_card "$card" -k "$job"; fi
        done < <(on_card "$card" | awk -v state=$state '$2 == state { print $1 }')
      done
    done
    ;;
  *)
    if [[ ! ${1:-} =~ ^[0-9]+$ || ! ${2:-$1} =~ ^[0-9]+$ ]]; then
      echo "queue.sh: takes the first and the last number of the class, show or stop" >&2
      exit 2
    fi
    first=$((10#$1)) # 08 is no octal number
    last=$((10#${2:-$1}))
    mkdir -p "$runs"
    rm -f "$runs/.stop"
    # a queue's server stays: it must not hold on to the terminal or a pipe
    for ((card = 0; card < cards; card++)); do on_card "$card" -S 1 > /dev/null 2>&1; done
    for ((student = first; student <= last; student++)); do
      queue "$student" || { echo "queue.sh: task-spooler took no job of student $student" >&2; exit 1; }
    done
    echo "queued: python -m minigrpo llm board $runs shows how far they are"
    ;;
esac
