"""The class's design, and its recorded runs: student n trains objective n mod 2 with seed n div 2."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from minigrpo.llm.board import read_board
from minigrpo.llm.runs import read_metrics, read_settings
from minigrpo.stats import interval

ROOT = Path(__file__).resolve().parent.parent
CLASS = ROOT / "labs" / "gpu" / "class"
RECORDED = CLASS / "recorded"
STUDENTS = range(30)


def test_the_recorded_runs_are_the_design():
    for number in STUDENTS:
        settings = read_settings(RECORDED / f"student-{number:02d}")
        assert (settings.objective, settings.seed) == (("grpo", "lambda_grpo")[number % 2], number // 2)
    lines = read_board([RECORDED])
    assert [line.state for line in lines] == ["done"] * len(STUDENTS)


def test_what_the_page_says_of_them():
    last = [read_metrics(RECORDED / f"student-{number:02d}")[-1]["eval_accuracy"] for number in STUDENTS]
    found = interval(np.array(last[0::2]) - np.array(last[1::2]))
    page = (CLASS / "README.md").read_text(encoding="utf-8")
    said = (
        f"GRPO ends {found['mean']:.2f} higher there, by an interval of {found['ci_low']:.2f} to {found['ci_high']:.2f}"
    )
    assert said in " ".join(page.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        ("7", "--seed 3 --objective lambda_grpo --out runs/class/student-07 --auto-resume"),
        ("08", "--seed 4 --objective grpo --out runs/class/student-08 --auto-resume"),
    ],
)
def test_a_student_s_command(number, wanted):
    """By a stand-in for Python, which says what it was asked."""
    names = ("PRESET", "RECIPE", "RUNS", "OPTIONS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"PYTHON": "echo"}
    command = ["bash", str(CLASS / "student.sh"), number]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"-m minigrpo llm train --quiet --preset class {wanted}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("arguments", [[], ["seven"], ["-1"]])
def test_a_number_is_needed(arguments):
    done = subprocess.run(["bash", str(CLASS / "student.sh"), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "number" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("cards", [2, 3, 4, 8])
def test_no_card_has_one_objective_alone(cards):
    """The arithmetic that stands in queue.sh."""
    line = next(line for line in (CLASS / "queue.sh").read_text().splitlines() if "local card=$(((" in line)
    body = line.strip().removeprefix("local ").replace("$1", "n")
    script = f"cards={cards}; for ((n = 0; n < 32; n++)); do {body}; echo $card $((n % 2)); done"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert len(set(done.stdout.splitlines())) == 2 * cards
