"""The class's queue on one machine without Slurm, by task-spooler."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from test_slurm import CLASS, ROOT

from minigrpo.llm.runs import read_manifest, read_metrics, read_settings

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("tsp") is None, reason="needs Debian's task-spooler, which .ci/run installs"),
]


@pytest.fixture
def queue(tmp_path):
    """Calls queue.sh; two queues for four students, with short runs of `tiny`."""
    variables = {"RUNS": str(tmp_path / "class"), "PRESET": "cpu", "PYTHON": sys.executable, "MINUTES": "0.2"}
    variables["OPTIONS"] = "--updates 250 --eval-every 250 --save-every 1000 --eval-size 10"

    def call(*arguments):
        command = ["bash", str(CLASS / "queue.sh"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60)

    yield call
    if not (tmp_path / "class").exists():
        return
    call("stop")
    for card in (0, 1):
        socket = str(tmp_path / "class" / f".card-{card}")
        subprocess.run(["tsp", "-K"], env=os.environ | {"TS_SOCKET": socket}, check=False)


def wait(question, seconds):
    end = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < end
        time.sleep(0.5)


def states(shown):
    """By card and student: running or queued where one of its jobs is, else finished."""
    found, card = {}, None
    for line in shown.splitlines():
        if line.startswith("card"):
            card = line
        elif "[student" in line:
            key, state = (card, line.partition("[")[2][:10]), line.split()[1]
            found[key] = state if state != "finished" else found.get(key, state)
    return found


def test_runs_take_turns_until_all_are_done(tmp_path, queue):
    assert queue("0", "3").returncode == 0
    shown = states(queue("show").stdout)
    # each card has both objectives
    assert set(shown) == {
        ("card 0", "student-00"),
        ("card 0", "student-03"),
        ("card 1", "student-01"),
        ("card 1", "student-02"),
    }
    wait(lambda: not {"running", "queued"} & set(states(queue("show").stdout).values()), 240)
    for number in range(4):
        run = tmp_path / "class" / f"student-0{number}"
        settings = read_settings(run)
        assert (settings.objective, settings.seed) == (("grpo", "lambda_grpo")[number % 2], number // 2)
        assert [row["update"] for row in read_metrics(run)] == list(range(251))
        codes = [line.split()[-1] for line in run.with_suffix(".log").read_text().splitlines() if "ended with" in line]
        assert codes == ["130"] * (len(codes) - 1) + ["0"]
        assert len(read_manifest(run).get("resumed", [])) == len(codes) - 1


def test_stop_leaves_checkpoints_and_the_same_command_goes_on(tmp_path, queue):
    runs = tmp_path / "class"
    queue("0", "3")
    wait(lambda: (runs / "student-00" / "metrics.jsonl").exists(), 60)
    assert queue("stop").returncode == 0
    wait(lambda: not {"running", "queued"} & set(states(queue("show").stdout).values()), 30)
    assert (runs / "student-00" / "checkpoint.safetensors").exists()
    assert not (runs / "student-03").exists()
    before = json.loads((runs / "student-00" / "metrics.jsonl").read_text().splitlines()[-1])["update"]
    queue("0", "0")
    wait(lambda: "running" in states(queue("show").stdout).values(), 30)
    wait(lambda: read_manifest(runs / "student-00").get("resumed") == [before + 1], 60)


@pytest.mark.parametrize("arguments", [(), ("zero",), ("-1",), ("0", "x")])
def test_mistakes_get_a_sentence(queue, arguments):
    done = queue(*arguments)
    assert done.returncode == 2
    assert done.stderr == "queue.sh: takes the first and the last number of the class, show or stop\n"


@pytest.mark.parametrize("word", ["show", "stop"])
def test_nothing_is_started_where_nothing_was_queued(queue, word):
    done = queue(word)
    assert done.returncode == 2
    assert "nothing was queued" in done.stderr
