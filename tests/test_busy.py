"""What a busy machine costs a student: time, and no points."""

from __future__ import annotations

import json
import threading

import pytest

from grader import grade as module
from grader.exercise import Artifact
from grader.feedback import feedback_lines, final_grades
from grader.grade import Turns, grade_folder
from grader.labs import exercises
from grader.results import Grading, Result
from grader.sandbox import Answer, Failure, SandboxError

LAB = "lab02"
CODE = exercises(LAB)
ENTRY = {
    "notebook": "lab.ipynb",
    "setup": "",
    "exercises": [{"id": e.id, "kind": "code", "points": e.points, "function": e.function} for e in CODE],
}


class Machine:
    """Stands in for the sandbox: right answers, unless something is planned for a student's worker."""

    def __init__(self):
        self.plan: dict[str, list] = {}  # what the next workers of an exercise do: an exception, a Failure
        self.started: list[str] = []

    def worker(self, cells, *, setup, isolation):
        return _Worker(self, cells[-1][0])


class _Worker:
    alive = loaded = True
    crowded = False

    def __init__(self, machine: Machine, exercise: str):
        self.machine, self.exercise = machine, next(e for e in CODE if e.id == exercise)

    def __enter__(self):
        self.machine.started.append(self.exercise.id)
        waiting = self.machine.plan.get(self.exercise.id)
        self.planned = waiting.pop(0) if waiting else None
        if isinstance(self.planned, Exception):
            raise self.planned
        return self

    def __exit__(self, *exception):
        pass

    def ask(self, driver, function, arguments, *, seconds):
        if self.planned is None:
            return Answer(self.exercise.run(self.exercise.reference, arguments))
        failure, self.crowded = self.planned
        self.alive = False
        return failure


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(module, "Worker", machine.worker)
    return machine


def hand_in(folder, *students: str) -> None:
    cells = [
        {
            "cell_type": "code",
            "id": f"c{k}",
            "metadata": {"exercise": e.id},
            "source": f"def {e.function}(*args): pass",
            "outputs": [],
            "execution_count": None,
        }
        for k, e in enumerate(CODE)
    ]
    folder.mkdir()
    for student in students:
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (folder / f"{student}.ipynb").write_text(json.dumps(notebook))


def grade(tmp_path, entry=ENTRY, jobs: int = 1, lab: str = LAB) -> list[Result]:
    results = grade_folder(
        tmp_path / "in", Grading(lab, entry, 5, "reduced"), tmp_path / "out", jobs=jobs, progress=False
    )
    return sorted(results, key=lambda result: result.student)


@pytest.mark.parametrize(
    ("planned", "starts", "lost"),
    [
        ([], 1, False),
        ([SandboxError("timeout")], 2, False),  # it did not start
        ([(Failure("timeout"), True)], 2, False),
        ([(Failure("memory"), True)], 2, False),  # the machine's, perhaps another's
        ([(Failure("crash"), True)], 2, False),
        ([(Failure("timeout"), False)], 2, True),  # its own fault: that part's points, the next has a new worker
        ([(Failure("timeout"), True), (Failure("timeout"), True)], 3, True),  # late when it was alone
        ([(Failure("crash"), False)], 2, True),
    ],
)
def test_what_the_machine_may_have_cost_is_asked_again(tmp_path, machine, planned, starts, lost):
    hand_in(tmp_path / "in", "anna")
    machine.plan = {CODE[1].id: planned}
    (result,) = grade(tmp_path)
    right = sum(e.points for e in CODE)
    assert result.earned == right - (CODE[1].parts[0].points if lost else 0)
    assert machine.started.count(CODE[1].id) == starts


def test_what_the_grader_fails_at_is_that_exercise_alone_and_a_persons_to_mark(tmp_path, machine):
    hand_in(tmp_path / "in", "anna")
    machine.plan = {CODE[1].id: [SandboxError("no \x1bbwrap"), SandboxError("no \x1bbwrap")]}
    (result,) = grade(tmp_path)
    assert [row.earned for row in result.exercises] == [CODE[0].points, 0, CODE[2].points]
    assert [row.failed for row in result.exercises] == [None, "SandboxError: no _bwrap", None]
    (final,) = final_grades(tmp_path / "out")
    assert [row.open for row in final.exercises] == [False, True, False]
    text = "\n".join(feedback_lines(final))
    assert f"{CODE[1].id}: not marked yet" in text
    assert "a person has to grade it" in text
    assert "bwrap" not in text
    (again,) = grade(tmp_path)  # it is tried again, as if it had never been graded
    assert again.earned == sum(e.points for e in CODE)
    started = len(machine.started)
    assert grade(tmp_path) == [again]
    assert len(machine.started) == started


def test_files_that_break_the_grader_cost_no_other_exercise(tmp_path, machine, monkeypatch):
    def breaks(contents, seed):
        raise RuntimeError("no such weight")

    monkeypatch.setattr(module, "artifacts", lambda lab: [Artifact("lab02.9", 6, ("weights",), breaks)])
    rows = [*ENTRY["exercises"], {"id": "lab02.9", "kind": "artifact", "points": 6, "files": ["weights"]}]
    hand_in(tmp_path / "in", "anna", "boris")
    for result in grade(tmp_path, ENTRY | {"exercises": rows}, jobs=2):
        assert [row.earned for row in result.exercises] == [*(e.points for e in CODE), 0]
        assert result.exercises[-1].failed == "RuntimeError: no such weight"


def test_alone_is_alone():
    """One that waits to be alone keeps others from starting, and both of two have their turn."""
    turns, log, inside = Turns(), [], threading.Event()
    leave = threading.Event()

    def take(name: str, alone: bool) -> None:
        with turns.take(alone=alone):
            log.append(f"{name} in")
            if name == "first":
                inside.set()
                assert leave.wait(10)
            log.append(f"{name} out")

    threads = [threading.Thread(target=take, args=("first", False))]
    threads[0].start()
    assert inside.wait(10)
    for at, name in enumerate(("a", "b")):
        threads.append(threading.Thread(target=take, args=(name, True)))
        threads[-1].start()
        while turns._alone <= at:
            pass
    threads.append(threading.Thread(target=take, args=("late", False)))
    threads[-1].start()
    assert log == ["first in"]
    leave.set()
    for thread in threads:
        thread.join(10)
    assert log[1] == "first out"
    assert log[-2:] == ["late in", "late out"]
    assert sorted(log[2:6:2]) == ["a in", "b in"]
    assert [entry.split()[0] for entry in log[2:6:2]] == [entry.split()[0] for entry in log[3:6:2]]


def test_beside_each_other_is_beside():
    turns, both = Turns(), threading.Barrier(2, timeout=10)

    def take() -> None:
        with turns.take(alone=False):
            both.wait()

    other = threading.Thread(target=take)
    other.start()
    take()
    other.join()
    assert not both.broken
