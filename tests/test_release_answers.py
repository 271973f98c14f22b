"""The students' archive checks as the repository does, and holds no function that answers an exercise."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import class_of_thirty as thirty
import nbformat
import pytest

from grader.cli import main
from grader.exercise import Exercise, Mistake, Part, Recorded
from grader.labs import LABS, exercises
from grader.public import read_exercises, written
from grader.release import release, students_lab

ROOT = Path(__file__).parents[1]
SHORTEST = 25  # characters of a line that would give an answer away
NO_ANSWER = r"for .* in .*:|\"\w+\": [\[\]\d., ]+"  # lines that say nothing: the head of a loop, numbers


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The archive, unpacked."""
    folder = tmp_path_factory.mktemp("release")
    release(ROOT, folder / "course.zip")
    with zipfile.ZipFile(folder / "course.zip") as file:
        file.extractall(folder)
    return folder / "course"


@pytest.fixture(scope="module")
def texts(archive) -> dict[str, str]:
    """What its files say; of notebooks the cells."""
    found = {}
    for path in archive.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            if path.suffix == ".ipynb":
                text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            found[path.relative_to(archive).as_posix()] = text
    return found


def run(archive: Path, *arguments: str) -> str:
    """Run Python with the archive's grader and minigrpo, in its folder; what it printed."""
    environment = os.environ | {"PYTHONPATH": str(archive)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=archive, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# No source


def answers(lab: str, judges: set[str]) -> dict[str, list[str]]:
    """The lines of a lab's references and mistakes by name, and of what these call in its module beside its judges."""
    module = import_module(f"grader.labs.{lab}")
    lines = inspect.getsource(module).splitlines()
    tree = ast.parse("\n".join(lines))
    nodes = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    functions = [f for e in module.EXERCISES for f in (e.reference, *(mistake.wrong for mistake in e.mistakes))]
    own = [f for f in functions if f.__module__ == module.__name__]
    found = {f"lambda {at}": inspect.getsource(f).splitlines() for at, f in enumerate(own) if "<lambda>" in str(f)}
    names = {f.__qualname__.partition(".")[0] for f in own} & set(nodes)
    new = names
    while new:
        called = {node.id for name in new for node in ast.walk(nodes[name]) if isinstance(node, ast.Name)}
        new = (called & set(nodes)) - names - judges
        names = names | new
    return found | {name: lines[nodes[name].lineno : nodes[name].end_lineno] for name in names}


@pytest.mark.parametrize("lab", LABS)
def test_no_line_of_a_reference_or_a_mistake_is_in_it(lab, texts):
    """What minigrpo has, or the notebooks themselves, is no secret; nor are the judges, and what they call."""
    given = {name for name in texts if name.startswith("minigrpo/") or name.endswith(".ipynb")}
    secret = "\n".join(text for name, text in texts.items() if name not in given)
    known = "\n".join(texts[name] for name in given)
    shipped = set(re.findall(r"^(?:def|class) (\w+)", texts[f"grader/labs/{lab}.py"], re.MULTILINE))
    hidden = answers(lab, shipped)
    assert hidden
    own = (ROOT / "grader" / "labs" / f"{lab}.py").read_text(encoding="utf-8")
    searched = 0
    for name, lines in hidden.items():
        assert name.startswith("_") or not re.search(rf"^(def|class) {name}\b", secret, re.MULTILINE), name
        for line in map(str.strip, lines):
            if len(line) >= SHORTEST and line not in known and not re.fullmatch(NO_ANSWER, line):
                searched += 1
                assert line in own
                assert line not in secret, f"{lab}, {name}: {line}"
    assert searched


# No object


REACHABLE = """
import importlib, inspect, json, pkgutil, sys
import grader
from grader.check import public_report
from grader.labs import LABS, exercises

wanted = json.loads(sys.argv[1])  # exercise: the names of its arguments
seen, todo = {}, []
for found in pkgutil.walk_packages(grader.__path__, "grader."):
    if not found.name.endswith("__main__"):
        todo.append(importlib.import_module(found.name))
assert grader.__file__.startswith(sys.argv[2])
modules = len(todo)


def inside(thing):
    if isinstance(thing, dict):
        return [*thing.values()]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return [*thing]
    if inspect.isfunction(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        return [*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    return [*vars(thing).values()] if hasattr(thing, "__dict__") else []


while todo:
    thing = todo.pop()
    home = getattr(thing, "__module__", None) or getattr(thing, "__name__", "grader")
    ours = isinstance(home, str) and home.partition(".")[0] == "grader"
    plain = isinstance(thing, (dict, list, tuple, set, frozenset))
    if id(thing) not in seen and (ours or plain):
        seen[id(thing)] = thing
        todo += inside(thing)

functions = [thing for thing in seen.values() if inspect.isfunction(thing)]
tried, solved = 0, []
for lab in LABS:
    for exercise in exercises(lab):
        for function in functions:
            if {*inspect.signature(function).parameters} == {*wanted[exercise.id]} != set():
                tried += 1
                if public_report(exercise, function)[1]:
                    solved.append([exercise.id, function.__qualname__])
codes = [[f.__name__, f.__code__.co_code.hex(), [*map(str, f.__code__.co_names)]] for f in functions]
print(json.dumps({"modules": modules, "codes": codes, "solved": solved, "tried": tried}))
"""


def code(function) -> list:
    """What makes two functions the same, wherever they were read."""
    own = function.__code__
    return [function.__name__, own.co_code.hex(), [*map(str, own.co_names)]]


@pytest.mark.labs
def test_no_object_of_its_grader_answers_an_exercise(archive):
    """Neither by its code, nor by what it does where it takes the arguments of an exercise."""
    all_exercises = [exercise for lab in LABS for exercise in exercises(lab)]
    wanted = {}
    for exercise in all_exercises:
        parameters = inspect.signature(exercise.reference).parameters
        wanted[exercise.id] = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    planted = archive / "grader" / "planted.py"  # one lab's answers, to see that they would be found
    planted.write_text(inspect.getsource(import_module("grader.labs.lab00")), encoding="utf-8")
    try:
        found = json.loads(run(archive, "-c", REACHABLE, json.dumps(wanted), str(archive)))
    finally:
        planted.unlink()
    assert found["modules"] > 40
    assert len(found["codes"]) > 300
    assert {*map(tuple, found["solved"])} == {("lab00.1", "group_mean")}
    functions = [f for e in all_exercises for f in (e.reference, *(mistake.wrong for mistake in e.mistakes))]
    own = [f for f in functions if inspect.isfunction(f) and f.__module__.startswith("grader.labs.")]
    assert len(own) > 250
    answered = {f.__qualname__ for f in own if code(f) in found["codes"]}
    assert answered == {"group_mean", "group_sum", "mean_of_the_others"}


# The same check


ALIKE = """
import importlib.util, sys
from pathlib import Path
import torch
from grader.check import public_report
from grader.labs import LABS, exercises
from grader.source import read_source

torch.set_num_threads(1)
course = Path(sys.argv[1])
for lab in LABS:
    ids = [exercise.id for exercise in exercises(lab)]
    solved = {}
    for cell in read_source(next(course.glob(f"solutions/{lab}_*.py"))).cells:
        if cell.metadata.get("exercise") in ids or "setup" in cell.metadata.get("tags", ()):
            exec(cell.source, solved)
    # what the repository's module says, in the archive's grader
    spec = importlib.util.spec_from_file_location(f"answers_{lab}", course / f"grader/labs/{lab}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert [exercise.id for exercise in module.EXERCISES] == ids
    for known, exercise in zip(module.EXERCISES, exercises(lab), strict=True):
        def stub(*_, **__):
            raise NotImplementedError(exercise.id)

        def odd(*_, **__):
            return 17.5

        mistakes = known.mistakes[:3] if exercise.id == "lab10.4" else known.mistakes  # a Slurm each
        for function in (solved[exercise.function], stub, odd, *(mistake.wrong for mistake in mistakes)):
            ours, theirs = public_report(known, function), public_report(exercise, function)
            if getattr(function, "__name__", "") == "without_seed":  # never answers alike
                ours, theirs = ours[0][-1], theirs[0][-1]
            assert ours == theirs, (exercise.id, ours, theirs)
            print(exercise.id, theirs)
"""


@pytest.mark.labs
def test_it_says_the_same_of_every_solution_stub_and_mistake(archive):
    said = run(archive, "-c", ALIKE, str(ROOT)).splitlines()
    ids = {exercise.id for lab in LABS for exercise in exercises(lab)}
    assert {line.split()[0] for line in said if "Hidden cases decide" in line} == ids
    assert sum("not written yet" in line for line in said) == len(ids)
    assert sum("It looks like this: " in line for line in said) > 250
    assert sum("It is no mistake that we know by name" in line for line in said) > 10


@pytest.mark.parametrize("edits", [{}, {"lab02_2": thirty.EQUAL_TOKENS}], ids=["solved", "mistaken"])
def test_a_notebook_is_checked_alike(archive, edits, tmp_path, capsys):
    path = tmp_path / "lab02.ipynb"
    path.write_text(nbformat.writes(thirty.notebook(**edits)), encoding="utf-8")
    assert main(["check", "lab02", str(path)]) == 0
    here = capsys.readouterr().out
    assert ("It looks like this: " in here) == bool(edits)
    assert run(archive, "-m", "grader", "check", "lab02", str(path)) == here


def test_the_labs_notebooks_are_checked_and_packed_there(archive, tmp_path):
    for lab in ("lab08", "lab10"):
        assert "not written yet" in run(archive, "-m", "grader", "check", lab)
    said = run(archive, "-m", "grader", "submit", "lab09", "--out", str(tmp_path / "lab09.zip"))
    assert "adapter_model.safetensors is not packed" in said


def test_nothing_is_graded_or_released_from_it(archive, tmp_path):
    command = "from grader.labs import find_exercise as f; e = f('lab02.1'); e.case(e.parts[0], 5, 0)"
    release_again = "from pathlib import Path; from grader.release import release; release(Path('.'), Path(r'{}'))"
    for program, said in (
        (command, "no hidden cases"),
        (release_again.format(tmp_path / "again.zip"), "in a students' archive there are none"),
    ):
        with pytest.raises(AssertionError, match=said):
            run(archive, "-c", program)


# What is written


def test_a_lab_is_written_and_read(tmp_path):
    """A tuple stays one, what a mistake raises has its name, and a secret answer is not written at all."""
    part = Part("p", 2, lambda rng: {"a": 1}, "h", examples=({"a": 0},))
    mistake = Mistake("m", "n", lambda a: 1 / a)
    secret = Part("s", 1, lambda rng: {"a": 1}, "h", examples=({"a": 2},), secret=True)
    path = tmp_path / "lab.json"
    known = Exercise("lab77.1", "f", lambda a: (a, 3.5), (part, secret), (mistake,), seconds=3)
    path.write_text(written((known,)), encoding="utf-8")
    (read,) = read_exercises(path, {})
    assert (read.id, read.function, read.points, read.seconds) == ("lab77.1", "f", 3, 3)
    cases = [case for part in read.parts for case in part.examples]
    assert cases == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert [read.run(read.reference, case) for case in cases] == [(0, 3.5), (1, 3.5), None]
    assert [read.run(read.mistakes[0].wrong, case) for case in cases[1:]] == [1.0, 0.5]
    with pytest.raises(RuntimeError) as error:
        read.run(read.mistakes[0].wrong, cases[0])
    assert type(error.value).__name__ == "ZeroDivisionError"
    with pytest.raises(KeyError, match="nothing is recorded"):
        read.run(read.reference, {"a": 0})
    assert isinstance(read.reference, Recorded)


def test_a_judge_that_needs_a_reference_is_refused():
    with pytest.raises(ValueError, match="lab03: a judge or a notebook needs step_advantages"):
        students_lab("lab03", {"step_advantages"})
