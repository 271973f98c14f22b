"""Grading from end to end: a class of thirty, partial credit, resuming, people's marks, and what an instructor sees."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml

from grader.cli import main
from grader.exports import CANVAS, cell
from grader.feedback import final_grades, merge
from grader.grade import find_submissions, load_manifest
from grader.labs import exercises
from grader.release import release
from grader.results import Grading, Result
from grader.sandbox import best_isolation
from grader.source import SourceError, build, read_source
from grader.submission import SubmissionError, read_submission
from tests import class_of_thirty as thirty

ENTRY = load_manifest(thirty.ROOT / "labs")["lab02"]
isolated = pytest.mark.skipif(best_isolation() != "bubblewrap", reason="bubblewrap is not installed or can't run here")


def grade(folder, out, *options) -> int:
    return main(["grade", str(folder), "--lab", "lab02", "--seed", "5", "--out", str(out), "--quiet", *options])


@pytest.fixture(autouse=True)
def _in_the_course(monkeypatch):
    monkeypatch.chdir(thirty.ROOT)


def read(path, student="you"):
    return read_submission(path, student, ENTRY)


def write(folder, name, content) -> object:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# The class


@pytest.mark.attack
@isolated
def test_a_class_of_thirty(tmp_path, capsys):
    """One command; each gets exactly what the work is worth, and nobody stops the rest."""
    earned = thirty.write_class(tmp_path / "class")
    assert len(earned) == 30
    assert grade(tmp_path / "class", tmp_path / "out") == 0
    grades = {g.student: g for g in final_grades(tmp_path / "out")}
    assert {student: g.earned for student, g in grades.items()} == earned
    assert capsys.readouterr().out.count(" of 16") == 30
    hints = {e.id: {m.name: m.hint for m in e.mistakes} for e in exercises("lab02")}["lab02.2"]
    feedback = [part.feedback for part in grades["fatma"].exercises[1].parts]
    assert hints["equal tokens"] in feedback
    for student, format_ in (("anna", "html"), ("anna", "csv"), ("anna", "gradescope"), ("anna", "moodle")):
        assert main(["export", str(tmp_path / "out"), "--format", format_]) == 0, (student, format_)


@isolated
def test_a_submission_is_graded_once_until_it_changes(tmp_path, monkeypatch, capsys):
    work = write(tmp_path / "in", "anna.ipynb", nbformat.writes(thirty.stub()))
    assert grade(tmp_path / "in", tmp_path / "out") == 0
    result = tmp_path / "out" / "auto" / "anna.json"
    before = result.stat().st_mtime_ns
    assert grade(tmp_path / "in", tmp_path / "out") == 0
    assert result.stat().st_mtime_ns == before
    edited = thirty.notebook(lab02_1="def process_sets(completions): raise SystemExit", lab02_2="def f(): pass")
    work.write_text(nbformat.writes(edited))
    assert grade(tmp_path / "in", tmp_path / "out") == 0
    assert json.loads(result.read_text())["earned"] == 3
    assert "   3 of 16" in capsys.readouterr().out


def test_a_change_of_the_grader_or_of_the_lab_grades_again(tmp_path, monkeypatch):
    from grader import grade as module

    seen = []

    def pretend(submission, grading):
        seen.append(submission.student)
        return module._result(grading, submission.student, submission.sha256, [])

    monkeypatch.setattr(module, "grade_submission", pretend)
    write(tmp_path / "in", "anna.ipynb", nbformat.writes(thirty.stub()))
    auto = tmp_path / "out" / "auto" / "anna.json"

    def run():
        grading = Grading("lab02", ENTRY, 5, "reduced")
        list(module.grade_folder(tmp_path / "in", grading, tmp_path / "out", progress=False))

    run(), run()
    assert len(seen) == 1
    monkeypatch.setattr(module, "version", lambda lab: "another")
    run(), run()
    assert len(seen) == 2
    for damaged in (b'{"student": "an', b"\xff", b""):
        auto.write_bytes(damaged)
        run()
        assert json.loads(auto.read_text())["problem"] is None
    assert len(seen) == 5


def test_the_version_is_that_of_the_code_the_lab_is_graded_with(monkeypatch, tmp_path):
    """All that decides the lab's points, and nothing else."""
    from grader import grade as module

    copied = [path for package in ("grader", "minigrpo") for path in (thirty.ROOT / package).rglob("*.*")]
    for path in copied:
        if path.suffix in (".py", ".json"):
            write(tmp_path, path.relative_to(thirty.ROOT), path.read_bytes())
    monkeypatch.setattr(module, "HERE", tmp_path / "grader")

    def changed(name: str, lab: str) -> bool:
        before = module.version.__wrapped__(lab)
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        return module.version.__wrapped__(lab) != before

    for lab, name in (
        ("lab02", "grader/labs/lab02.py"),
        ("lab02", "grader/exercise.py"),
        ("lab02", "grader/submission.py"),
        ("lab02", "grader/counterexamples.py"),
        ("lab02", "minigrpo/steps.py"),
        ("lab06", "grader/thresholds/lab06.json"),
        ("lab08", "grader/labs/lab08_runs.json"),
        ("lab09", "minigrpo/llm/evaluation.py"),
        ("lab09", "minigrpo/llm/tiny/config.json"),
    ):
        assert changed(name, lab), (lab, name)
    for lab, name in (
        ("lab02", "grader/labs/lab01.py"),
        ("lab02", "grader/labs/lab08_runs.json"),
        *(("lab02", f"grader/{name}.py") for name in ("cli", "exports", "feedback", "report", "roster", "release")),
        ("lab02", "minigrpo/viz/curves.py"),
    ):
        assert not changed(name, lab), (lab, name)


def test_names_of_students_can_do_no_harm(tmp_path, monkeypatch, capsys):
    """A line break would end a comment in the form for marks, a long name is one that no file may have."""
    monkeypatch.setattr("grader.grade.grade_submission", lambda s, _: typed(s.student, sha256=s.sha256))
    names = ["a\nb: {", "\x1b[2J", "\udcff", "l" * 247, "M. Müller", "$(id)", "-x", "=1+1", "\u202ecod", " "]
    folder = tmp_path / "in"
    for name in names:
        write(folder, f"{name}.ipynb", nbformat.writes(thirty.stub()))
    for name in ("J. Doe_1_file_", "J. Smith_2_file_"):  # as Moodle names folders
        write(folder / name, "a.ipynb", nbformat.writes(thirty.stub()))
    (folder / "..ipynb").write_text("")  # hidden
    assert grade(folder, tmp_path / "out", "--accept-reduced") == 0
    students = {g.student for g in final_grades(tmp_path / "out")}
    assert len(students) == len(names) + 2
    assert {"a_b: {", "_[2J", "_", "J. Doe_1_file_", "J. Smith_2_file_", "M. Müller"} <= students
    assert len(list((tmp_path / "out" / "manual").iterdir())) == len(students)
    for format_ in ("html", "csv", "gradescope", "moodle"):
        assert main(["export", str(tmp_path / "out"), "--format", format_]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    places = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert places == {"in", "out"}


def test_cells_that_end_the_worker_are_tried_once(tmp_path, monkeypatch):
    from grader import grade as module
    from grader.sandbox import Failure, Worker

    started = []

    class Ended(Worker):
        def __enter__(self):
            started.append(self)
            self._failure = Failure("timeout")
            return self

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(module, "Worker", Ended)
    submission = read(write(tmp_path, "a.ipynb", nbformat.writes(thirty.notebook())))
    exercise = exercises("lab02")[1]
    parts = module.grade_exercise(exercise, submission, Grading("lab02", {"setup": ""}, 5, "reduced"))
    assert [part.feedback for part in parts] == [module.KINDS["timeout"]] * len(exercise.parts)
    assert len(started) == 1
    assert len(parts) > 1


RIGHT = """
def right(ids, mask):
    real = mask.unsqueeze(0) & mask.unsqueeze(1)
    return torch.cumprod(real & (ids.unsqueeze(0) == ids.unsqueeze(1)), dim=-1).sum(dim=1)
class Equal:
    def __eq__(self, other): return True
class Noise:
    def __del__(self): raise RuntimeError("in __del__")
def step_sizes(completion_ids, completion_mask):
    import os, sys
    sizes = right(completion_ids, completion_mask)
    """


@pytest.mark.attack
@isolated
@pytest.mark.parametrize(
    ("body", "points"),
    [
        ("Noise(); print('noise', file=sys.stderr); os.write(2, b'noise'); return sizes", 5),
        ("return sizes.as_subclass(type('T', (torch.Tensor,), {}))", 5),
        ("return (0 * sizes).as_subclass(type('T', (torch.Tensor,), {'__eq__': lambda self, other: True}))", 0),
        ("return Equal()", 0),
        ("return 2", 0),
        ("return torch.tensor(2)", 0),
        ("return sizes.unsqueeze(0)", 0),
        ("return torch.full(sizes.shape, float('nan'))", 0),
        ("raise ValueError(f'TELL {completion_ids.tolist()}')", 0),
        ("print('TELL', completion_ids); sys.exit(f'TELL {completion_ids.tolist()}')", 0),
    ],
)
def test_the_exact_score_of_an_answer(tmp_path, body, points):
    from grader.grade import grade_exercise

    submission = read(write(tmp_path, "a.ipynb", nbformat.writes(thirty.notebook(lab02_2=RIGHT + body))))
    parts = grade_exercise(
        exercises("lab02")[1], submission, Grading("lab02", {"setup": "import torch"}, 5, "bubblewrap")
    )
    assert sum(part.earned for part in parts) == points
    assert "TELL" not in repr(parts)  # neither hidden inputs nor anything else that the student's code says


@pytest.mark.attack
@isolated
def test_ctrl_c_and_kill_leave_nothing_behind(tmp_path):
    """The grader ends at once; so do its workers and their folders, and what was graded is there whole."""
    hangs = "def {0}(*args, **kwargs):\n    while True: pass"
    made = thirty.notebook(**{f"lab02_{i + 1}": hangs.format(f) for i, f in enumerate(thirty.FUNCTIONS.values())})
    write(tmp_path / "in", "zed.ipynb", nbformat.writes(made))
    write(tmp_path / "in", "anna.ipynb", "{")
    stages = Path(tempfile.mkdtemp())
    stages.chmod(0o755)
    command = [sys.executable, "-m", "grader", "grade", str(tmp_path / "in"), "--lab", "lab02", "--seed", "5"]
    out = tmp_path / "out"
    for way in (signal.SIGINT, signal.SIGKILL):
        grader = subprocess.Popen(
            [*command, "--out", str(out)],
            env=os.environ | {"TMPDIR": str(stages)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
        )
        wait_for(lambda: list(stages.iterdir()) and (out / "auto" / "anna.json").exists())
        time.sleep(3)  # into the endless loop
        start = time.monotonic()
        grader.send_signal(way)
        said = grader.communicate(timeout=60)[1]
        assert time.monotonic() - start < 8  # less than one case may take
        assert grader.returncode == (130 if way == signal.SIGINT else -signal.SIGKILL)
        assert ("run it again to go on" in said) == (way == signal.SIGINT)
        wait_for(lambda: not list(stages.iterdir()))
        assert [path.name for path in (out / "auto").iterdir()] == ["anna.json"]
        assert "damaged" in json.loads((out / "auto" / "anna.json").read_text())["problem"]
    stages.rmdir()


def wait_for(what, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("place", ["grade_submission", "read_apart"])
@pytest.mark.parametrize("kind", [ZeroDivisionError, OSError])
def test_a_fault_of_the_grader_is_said_and_stops_nobody(tmp_path, monkeypatch, capsys, place, kind):
    """To the instructor; students read that a person has to grade it."""
    from grader import grade as module

    def fail(*arguments):
        raise kind("a fault")

    monkeypatch.setattr(module, place, fail)
    for name in ("anna", "boris"):
        write(tmp_path / "in", f"{name}.ipynb", nbformat.writes(thirty.stub()))
    assert grade(tmp_path / "in", tmp_path / "out", "--accept-reduced") == 0
    grades = final_grades(tmp_path / "out")
    assert [g.failed for g in grades] == [f"{kind.__name__}: a fault"] * 2
    assert [g.problem for g in grades] == ["the grader failed on this submission: a person has to grade it"] * 2
    assert capsys.readouterr().out.count(f"the grader failed on all of it: {kind.__name__}: a fault\n") == 2


def test_reduced_isolation_has_to_be_accepted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("grader.sandbox.best_isolation", lambda: "reduced")
    write(tmp_path / "in", "anna.ipynb", nbformat.writes(thirty.stub()))
    assert grade(tmp_path / "in", tmp_path / "out") == 2
    assert "--accept-reduced" in capsys.readouterr().err


# Reading submissions


def test_cells_are_found_by_exercise_and_else_by_function_name(tmp_path):
    by_id = read(write(tmp_path, "a.ipynb", nbformat.writes(thirty.notebook())))
    assert set(by_id.exercises) == {"lab02.1", "lab02.2", "lab02.3"}
    bare = thirty.notebook()
    for cell_ in bare.cells:
        cell_.metadata = {}
    by_name = read(write(tmp_path, "b.ipynb", nbformat.writes(bare)))
    assert {k: v.source for k, v in by_name.exercises.items()} == {k: v.source for k, v in by_id.exercises.items()}


def test_an_exercise_gets_only_the_cells_it_needs(tmp_path):
    made = thirty.notebook(lab02_1="import os\nos._exit(1)\ndef process_sets(c): pass", lab02_2=thirty.WITH_HELPER)
    made.cells.append(nbformat.v4.new_code_cell(thirty.HELPER))
    made.cells.append(nbformat.v4.new_code_cell("raise SystemExit"))
    submission = read(write(tmp_path, "a.ipynb", nbformat.writes(made)))
    labels = [label for label, _ in submission.cells_for("lab02.2")]
    assert "lab02.2" in labels
    assert "lab02.1" not in labels
    sources = "\n".join(source for _, source in submission.cells_for("lab02.2"))
    assert "def shared" in sources
    assert "print" not in sources
    assert "%matplotlib" not in sources


def test_two_cells_for_one_exercise_are_refused_for_it_alone(tmp_path):
    made = thirty.notebook()
    made.cells.append(nbformat.v4.new_code_cell("pass", metadata={"exercise": "lab02.2"}))
    submission = read(write(tmp_path, "a.ipynb", nbformat.writes(made)))
    assert submission.problems == {"lab02.2": "2 cells say they are lab02.2: keep one of them"}
    assert set(submission.exercises) == {"lab02.1", "lab02.3"}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.ipynb", b"\xff\xfe", "damaged"),
        ("a.ipynb", b"[" * 100_000, "damaged"),
        ("a.ipynb", b'{"cells": 3}', "no cells"),
        ("a.zip", b"PK", "can't be read as a zip"),
        ("a.zip", thirty.zipped(("../x.ipynb", "{}")), "leads outside"),
        ("a.zip", thirty.zipped(("/etc/x.ipynb", "{}")), "leads outside"),
        ("a.zip", thirty.zipped((thirty.link("x.ipynb"), "/etc/passwd")), "a link"),
        ("a.zip", thirty.zipped(("a.ipynb", "{}"), ("b.ipynb", "{}")), "2 notebooks"),
        ("a.zip", thirty.zipped(("x/a.ipynb", "{}"), ("y/a.ipynb", "{}")), "there twice"),
        ("a.zip", thirty.zipped(("a.ipynb", " " * (9 << 20))), "larger than 8 MiB"),
        ("a.zip", thirty.zipped(*((f"{i}.txt", "") for i in range(201))), "201 files"),
        ("a.zip", thirty.zipped(("conftest.py", "raise SystemExit")), "no notebook"),
        ("a.zip", thirty.zipped(("a.ipynb", "x" * 1000)).replace(b"\xab\xa8\x18", b"\xff\xff\xff"), "as a zip"),
        ("a.zip", thirty.zipped(("é.ipynb", "{}")).replace("é".encode(), b"\xff\xff"), "as a zip"),
        ("a.zip", thirty.zipped(("a.ipynb", " " * 10**8), method=zipfile.ZIP_BZIP2), "in a rare way"),
        ("a.zip", thirty.zipped(*((f"{i}.ipynb", "not read") for i in range(9))), "9 notebooks"),
        ("a.txt", b"hello", "neither a notebook"),
        ("a.ipynb", b'{"cells": [' + b"9" * 10_000 + b"]}", "damaged"),
        ("a.ipynb", b'{"cells": [' + b"{}," * 1000 + b"{}]}", "1001 cells"),
    ],
)
def test_what_can_not_be_read_is_refused_in_a_sentence(tmp_path, name, content, sentence):
    with pytest.raises(SubmissionError, match=sentence):
        read(write(tmp_path, name, content))


def test_a_large_archive_is_refused_unread(tmp_path):
    large = write(tmp_path, "b.zip", b"")
    os.truncate(large, (80 << 20) + 1)  # its list of members is read whole, before anything else can be known
    with pytest.raises(SubmissionError, match="larger than 80 MiB"):
        read(large)


def test_what_jupyter_and_macos_leave_in_a_folder_does_not_count(tmp_path):
    solved = nbformat.writes(thirty.notebook())
    name, junk = "lab02_process_steps.ipynb", (".ipynb_checkpoints/lab02-checkpoint.ipynb", "__MACOSX/._lab02.ipynb")
    for place in (name, *junk):
        write(tmp_path / "anna", place, solved if place == name else "{")
    packed = thirty.zipped((name, solved), *((place, "{") for place in junk))
    for path in (tmp_path / "anna", write(tmp_path, "anna.zip", packed)):
        assert set(read(path).exercises) == {"lab02.1", "lab02.2", "lab02.3"}


def test_two_zips_in_a_folder_and_a_pipe_are_refused(tmp_path):
    for name in ("lab02.zip", "lab02 (1).zip"):
        write(tmp_path / "anna", name, thirty.zipped(("a.ipynb", "{}")))
    with pytest.raises(SubmissionError, match="2 zips in anna"):
        read(tmp_path / "anna")
    os.mkfifo(tmp_path / "a.ipynb")
    with pytest.raises(SubmissionError, match="neither a notebook"):
        read(tmp_path / "a.ipynb")


def test_magics_are_dropped_and_python_is_left_as_it_is(tmp_path):
    made = thirty.notebook()
    kept = 'def said(x):\n    return ("%d"\n        % x)'
    magic = "%matplotlib inline\n!pip list\ntorch.ones?\n    \nimport torch as t\nif t:\n    %time t.ones(1)\n"
    for source in (kept, magic, "%%bash\nrm -rf ~"):
        made.cells.append(nbformat.v4.new_code_cell(source))
    made.cells.append(nbformat.v4.new_code_cell("said, t", metadata={"exercise": "lab02.1"}))
    made.cells = [c for c in made.cells if c.metadata.get("exercise") != "lab02.1" or c.source == "said, t"]
    submission = read(write(tmp_path, "a.ipynb", nbformat.writes(made)))
    namespace = {}
    for _, source in submission.cells_for("lab02.1"):
        exec(source, namespace)
    assert namespace["said"](3) == "3"
    assert namespace["t"].__name__ == "torch"


def test_a_function_defined_anew_in_a_later_cell_counts_as_in_the_notebook(tmp_path):
    made = thirty.stub()
    made.cells.append(nbformat.v4.new_code_cell("def step_sizes(ids, mask): return 3"))
    namespace = {}
    for _, source in read(write(tmp_path, "a.ipynb", nbformat.writes(made))).cells_for("lab02.2"):
        exec(source, namespace)
    assert namespace["step_sizes"](0, 0) == 3


def test_a_thousand_cells_that_lean_on_each_other_are_gathered_in_moments(tmp_path):
    made = thirty.notebook(lab02_2="def step_sizes(ids, mask): return a900")
    made.cells += [nbformat.v4.new_code_cell(f"a{i} = a{i - 1}") for i in range(900, 0, -1)]
    submission = read(write(tmp_path, "a.ipynb", nbformat.writes(made)))
    start = time.perf_counter()
    assert len(submission.cells_for("lab02.2")) >= 901
    assert time.perf_counter() - start < 10  # seconds, a few tenths where nothing else runs


def test_a_link_is_refused(tmp_path):
    write(tmp_path, "a.ipynb", nbformat.writes(thirty.stub()))
    (tmp_path / "b.ipynb").symlink_to(tmp_path / "a.ipynb")
    with pytest.raises(SubmissionError, match="a link"):
        read(tmp_path / "b.ipynb")


@pytest.mark.parametrize("bad", ["(" * 20_000, "-" * 200_000 + "1", "x = 1" + "+1" * 20_000, "\0", "'\ud800'"])
def test_source_that_is_hard_to_parse_costs_its_exercise_only(tmp_path, bad):
    made = thirty.notebook(lab02_2=bad)
    made.cells.append(nbformat.v4.new_code_cell(bad))
    submission = read(write(tmp_path, "a.ipynb", json.dumps(made)))
    assert {"lab02.1", "lab02.3"} <= set(submission.exercises)
    assert [label for label, _ in submission.cells_for("lab02.1")] == ["lab02.1"]


def test_a_folder_without_a_submission_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no submission in"):
        find_submissions(write(tmp_path, "empty/.hidden", "").parent)
    with pytest.raises(ValueError, match="must be a folder"):
        find_submissions(tmp_path / "none")


def test_a_written_answer_is_read_without_its_question(tmp_path):
    made = thirty.stub()
    cell_ = next(cell for cell in made.cells if cell.metadata.get("exercise") == "lab02.4")
    cell_.source = cell_.source.replace("*Write your answer here.*", "They stay in one set.")
    assert read(write(tmp_path, "a.ipynb", nbformat.writes(made))).answers == {"lab02.4": "They stay in one set."}


# Marks by people, and exports


def made_result(student="anna", earned=(4, 5, 0), sha256="s1") -> dict:
    parts = [{"name": "random groups", "points": p, "passed": e > 0, "earned": e, "feedback": "look"} for e, p in
             zip(earned, (4, 5, 3), strict=True)]  # fmt: skip
    rows = [
        {
            "id": f"lab02.{i + 1}",
            "kind": "code",
            "points": p["points"],
            "earned": p["earned"],
            "parts": [p],
            "answer": None,
        }
        for i, p in enumerate(parts)
    ]
    rows += [
        {
            "id": f"lab02.{i}",
            "kind": "written",
            "points": 2,
            "earned": 0,
            "parts": [],
            "answer": "<script>alert(1)</script>",
        }
        for i in (4, 5)
    ]
    head = {"student": student, "lab": "lab02", "sha256": sha256, "seed": 5, "isolation": "bubblewrap", "version": 1}
    return head | {"problem": None, "earned": sum(earned), "points": 16, "exercises": rows}


def typed(*arguments, **options) -> Result:
    return Result.from_json(made_result(*arguments, **options))


@pytest.fixture
def graded(tmp_path):
    from minigrpo.files import write_json

    for student, earned in (("anna", (4, 5, 3)), ("=1+1", (0, 5, 0))):
        write_json(tmp_path / "auto" / f"{student}.json", made_result(student, earned))
    return tmp_path


def marks(**exercises) -> dict:
    return {"submission": "s1", "exercises": {name.replace("_", "."): mark for name, mark in exercises.items()}}


def test_a_persons_mark_wins():
    final = merge(typed(), marks(lab02_4={"points": 2}, lab02_3={"delta": 1, "comment": "nearly"}))
    assert final.earned == 4 + 5 + 1 + 2
    assert [row.by for row in final.exercises] == ["grader", "grader", "person", "person", "grader"]
    assert [row.open for row in final.exercises] == [False, False, False, False, True]
    assert not final.stale


def test_marks_for_an_earlier_submission_are_flagged():
    assert merge(typed(sha256="s2"), marks(lab02_4={"points": 2})).stale
    assert not merge(typed(sha256="s2"), marks(lab02_4={"points": None})).stale


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"lab02_4": {"points": 3}}, "0 to 2 points, marked 3"),
        ({"lab02_1": {"delta": 1}}, "0 to 4 points, marked 5"),
        ({"lab02_9": {"points": 1}}, "no exercise lab02.9"),
    ],
)
def test_marks_out_of_range_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        merge(typed(), marks(**given))


def test_a_comment_may_look_like_anything():
    assert merge(typed(), marks(lab02_4={"points": 1, "comment": 3})).exercises[3].comment == "3"


def test_two_labs_in_one_folder_are_refused(graded):
    from minigrpo.files import write_json

    write_json(graded / "auto" / "boris.json", made_result("boris") | {"lab": "lab03"})
    with pytest.raises(ValueError, match="lab02 and lab03: give each lab a folder of its own"):
        final_grades(graded)


@pytest.mark.parametrize("format_", ["html", "csv", "gradescope", "moodle"])
def test_no_export_tells_the_seed(graded, format_):
    """Whoever has it can draw the hidden cases of those who hand in later."""
    for path in (graded / "auto").iterdir():
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"seed": 918273645}))
    assert main(["export", str(graded), "--format", format_]) == 0
    written = [path for path in (graded / "export").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if "918273645" in path.read_text(encoding="utf-8")]


def test_the_public_seed_is_refused(tmp_path, capsys):
    write(tmp_path / "in", "anna.ipynb", "{}")
    command = ["grade", str(tmp_path / "in"), "--lab", "lab02", "--out", str(tmp_path / "out"), "--accept-reduced"]
    assert main([*command, "--seed", "0"]) == 2
    assert "--seed must be at least 1, got 0" in capsys.readouterr().err


def test_a_form_for_marks_is_written_once_and_read_back(graded):
    from grader.feedback import read_manual, write_manual

    write_manual(typed(), ENTRY, graded)
    path = graded / "manual" / "anna.yaml"
    form = yaml.safe_load(path.read_text())
    assert set(form["exercises"]) == {"lab02.4", "lab02.5"}
    assert form["exercises"]["lab02.4"]["answer"] == "<script>alert(1)</script>"
    form["exercises"]["lab02.4"]["points"] = 1
    path.write_text(yaml.safe_dump(form))
    write_manual(typed(), ENTRY, graded)
    assert merge(typed(), read_manual(graded, "anna")).earned == 4 + 5 + 0 + 1
    path.write_text("exercises: [1]")
    with pytest.raises(ValueError, match="must hold `submission` and `exercises`"):
        final_grades(graded)


def test_gradescope_results(graded):
    assert main(["export", str(graded), "--format", "gradescope"]) == 0
    found = json.loads((graded / "export" / "gradescope" / "anna" / "results.json").read_text())
    assert found["score"] == 12
    assert found["stdout_visibility"] == "hidden"
    assert sum(test["score"] for test in found["tests"]) == 12
    assert sum(test["max_score"] for test in found["tests"]) == 16
    assert {"name", "score", "max_score", "output", "visibility"} <= set(found["tests"][0])


def test_gradescope_writes_zero_first_and_then_what_was_earned(tmp_path, monkeypatch):
    work = write(tmp_path, "in/lab02_process_steps.ipynb", nbformat.writes(thirty.stub()))
    out = tmp_path / "results.json"
    seen = []
    monkeypatch.setattr(
        "grader.cli.grade_submission",
        lambda *a: seen.append(json.loads(out.read_text())) or typed(),
    )
    options = ["--lab", "lab02", "--seed", "1", "--accept-reduced", "--out", str(out)]
    assert main(["gradescope", str(work.parent), *options]) == 0
    assert seen[0]["score"] == 0
    assert json.loads(out.read_text())["score"] == 9
    work.write_text("no notebook")
    assert main(["gradescope", str(work.parent), *options]) == 0
    assert "damaged" in json.loads(out.read_text())["output"]


def rows(path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def test_canvas_csv_with_a_roster(graded):
    roster = write(
        graded,
        "gradebook.csv",
        "Student,ID,SIS User ID,SIS Login ID,Section,Lab 01 (7)\n    Points Possible,,,,,9\n"
        '"Anders, Anna",101,s-101,anna,A,\n"Eq, Ual",102,s-102,=1+1,A,\n',
    )
    options = ["--format", "canvas", "--assignment", "Lab 02 (12345)", "--roster", str(roster)]
    assert main(["export", str(graded), *options]) == 0
    found = rows(graded / "export" / "canvas" / "canvas.csv")
    assert found[0] == [*CANVAS, "Lab 02 (12345)"]
    assert found[1][0].strip() == "Points Possible"
    assert found[1][-1] == "16"
    assert ["Anders, Anna", "101", "s-101", "anna", "A", "12"] in found


@pytest.mark.parametrize(
    ("roster", "assignment", "sentence"),
    [
        (None, "Lab 02", "as in 'Lab 02 (12345)'"),
        ("Name,ID\nanna,1\n", "Lab 02 (1)", "lacks Student"),
        ("Student,ID\nsomebody,1\n", "Lab 02 (1)", "no one row for"),
        ("Student,ID,SIS Login ID\nA,anna,=1+1\n", "Lab 02 (1)", "one row for both '=1+1' and 'anna'"),
    ],
)
def test_canvas_says_what_is_wrong(graded, capsys, roster, assignment, sentence):
    extra = ["--roster", str(write(graded, "r.csv", roster))] if roster else []
    assert main(["export", str(graded), "--format", "canvas", "--assignment", assignment, *extra]) == 2
    assert sentence in capsys.readouterr().err


def test_moodle_worksheet_keeps_its_other_columns(graded):
    (graded / "auto" / "=1+1.json").unlink()
    (graded / "auto" / "anna.json").rename(graded / "auto" / "Anna A_42_assignsubmission_file_.json")
    text = (graded / "auto" / "Anna A_42_assignsubmission_file_.json").read_text().replace('"anna"', '"Anna A_42_x"')
    (graded / "auto" / "Anna A_42_assignsubmission_file_.json").write_text(text)
    sheet = write(
        graded,
        "sheet.csv",
        "Identifier,Full name,Email address,Status,Grade,Maximum Grade,Feedback comments\n"
        "Participant 42,Anna A,anna@example.org,Submitted,,16,\n"
        "Participant 43,Bo B,bo@example.org,No submission,,16,\n",
    )
    assert main(["export", str(graded), "--format", "moodle", "--worksheet", str(sheet)]) == 0
    found = rows(graded / "export" / "moodle" / "moodle.csv")
    assert found[0][:3] == ["Identifier", "Full name", "Email address"]
    assert found[1][:6] == ["Participant 42", "Anna A", "anna@example.org", "Submitted", "12", "16"]
    assert "lab02.1: 4 of 4" in found[1][6]
    assert found[2][4] == ""
    plain = rows(graded / "export" / "moodle" / "moodle_plain.csv")
    assert plain[0] == ["Email address", "ID number", "Grade", "Feedback"]
    assert plain[1][0] == "anna@example.org"


def test_a_table_for_everything_else_escapes_formulas(graded):
    assert main(["export", str(graded), "--format", "csv"]) == 0
    found = rows(graded / "export" / "csv" / "grades.csv")
    assert found[0][:4] == ["student", "lab", "earned", "points"]
    assert [row[0] for row in found[1:]] == ["'=1+1", "anna"]
    assert [cell(text)[0] for text in ("=1", "+1", "-1", "@x", "\tx")] == ["'"] * 5


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)


def test_a_page_for_each_student_escapes_what_students_wrote(graded):
    assert main(["export", str(graded), "--format", "html"]) == 0
    page = (graded / "export" / "html" / "anna.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in page
    assert "12 of 16" in page


# Sources and the students' archive


def test_a_source_with_a_misspelt_marker_is_refused(tmp_path):
    text = (thirty.ROOT / "solutions" / "lab02_process_steps.py").read_text(encoding="utf-8")
    for bad in ("### BEGIN SOLUTIONS", "# BEGIN SOLUTION", "### begin solution", "###BEGIN SOLUTION"):
        (tmp_path / "lab02_process_steps.py").write_text(text.replace("### BEGIN SOLUTION", bad, 1), encoding="utf-8")
        with pytest.raises(SourceError):
            build(tmp_path, tmp_path)


def test_a_solution_that_stands_elsewhere_in_the_lab_is_refused(tmp_path):
    text = (thirty.ROOT / "solutions" / "lab02_process_steps.py").read_text(encoding="utf-8")
    leak = "# %% [markdown]\n# Hint: `shared_so_far = same_token.cumprod(dim=-1)`\n\n# %%\n"
    (tmp_path / "lab02_process_steps.py").write_text(text.replace("# %%\n", leak, 1), encoding="utf-8")
    with pytest.raises(SourceError, match="a line of its solution stands in"):
        build(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("points=4", "points=3", "3 points here and 4"),
        ('exercise="lab02.2"', 'exercise="lab02.7"', "must be numbered"),
        ("def step_sizes", "def sizes", "must define step_sizes"),
        ("    ### END SOLUTION", "", "where none belongs|without"),
    ],
)
def test_a_source_that_does_not_fit_the_grader_is_refused(tmp_path, old, new, sentence):
    text = (thirty.ROOT / "solutions" / "lab02_process_steps.py").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "lab02_process_steps.py").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SourceError, match=sentence):
        build(tmp_path, tmp_path)


def test_the_students_archive_holds_no_solution_and_says_what_it_holds(tmp_path, capsys):
    """The checks compare with what is recorded; neither the printed line nor the guide promises more than that."""
    assert main(["release", "--out", str(tmp_path / "course.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "course.zip") as archive:
        names = archive.namelist()
        text = "\n".join(archive.read(name).decode("utf-8", "ignore") for name in names if not name.endswith(".png"))
    assert "course/labs/lab02_process_steps.ipynb" in names
    assert not [name for name in names if "solutions/" in name or "tests/" in name or "instructor" in name]
    assert read_source(thirty.ROOT / "solutions" / "lab02_process_steps.py").title in text
    assert "shared_so_far = same_token" not in text
    assert "*Rubric.*" not in text
    assert "\ndef process_sets(" not in text
    guide = (thirty.ROOT / "docs" / "instructor.md").read_text(encoding="utf-8")
    for said in (capsys.readouterr().out, guide):
        assert "grader/labs" in said
        assert "no solutions/" in said
        assert not re.search(r"(no|without) (their )?solutions(?!/)", said)


@pytest.mark.parametrize("tutor", [True, False])
def test_assistants_are_asked_to_be_tutors_unless_the_instructor_says_no(tmp_path, tutor):
    assert main(["release", "--out", str(tmp_path / "c.zip"), *([] if tutor else ["--no-tutor"])]) == 0
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        names = set(archive.namelist())
        assert {"c/AGENTS.md", "c/CLAUDE.md"} <= names if tutor else not names & {"c/AGENTS.md", "c/CLAUDE.md"}
        assert "c/grader/tutor.md" not in names
        if tutor:
            assert "Be their\ntutor" in archive.read("c/AGENTS.md").decode()


@pytest.mark.parametrize(("newest", "date"), [(1_767_225_600, (2026, 1, 1, 0, 0, 0)), (1, (1980, 1, 1, 0, 0, 0))])
def test_the_archive_has_the_date_of_its_newest_file(tmp_path, newest, date):
    course, made = tmp_path / "course", []
    for name in ("README.md", "minigrpo/a.py", "grader/b.py", "labs/c.ipynb"):
        os.utime(write(course, name, name), (0, newest if name == "grader/b.py" else 0))
    for out in (tmp_path / "one" / "class.zip", tmp_path / "two" / "class.zip"):
        out.parent.mkdir()
        assert release(course, out) == 6  # two are made
        with zipfile.ZipFile(out) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {date}
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_a_student_checks_and_packs_unfinished_work(tmp_path, capsys):
    half = thirty.notebook(lab02_3='def process_steps(sizes):\n    raise NotImplementedError("lab02.3")')
    work = write(tmp_path, "mine.ipynb", nbformat.writes(half))
    assert main(["check", "lab02", str(work)]) == 0
    said = capsys.readouterr().out
    assert "lab02.1: all 4 public cases pass" in said
    assert "Hidden cases decide" in said
    assert "lab02.3: not written yet" in said
    assert "lab02.4: written" in said
    assert main(["submit", "lab02", str(work), "--out", str(tmp_path / "lab02.zip")]) == 0
    packed = read(tmp_path / "lab02.zip")
    assert set(packed.exercises) == {"lab02.1", "lab02.2", "lab02.3"}
    assert main(["check", "lab02", str(tmp_path / "none.ipynb")]) == 2
    assert main(["submit", "lab77"]) == 2
