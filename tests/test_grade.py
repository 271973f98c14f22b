"""Grading from end to end: a class of thirty, partial credit, resuming, people's marks, and what an instructor sees."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import zipfile

import nbformat
import pytest
import yaml

from grader.cli import main
from grader.exports import CANVAS, cell
from grader.feedback import final_grades, merge
from grader.grade import find_submissions, load_manifest
from grader.labs import exercises
from grader.release import release
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
    grades = {g["student"]: g for g in final_grades(tmp_path / "out")}
    assert {student: g["earned"] for student, g in grades.items()} == earned
    assert capsys.readouterr().out.count(" of 16") == 30
    hints = {e.id: {m.name: m.hint for m in e.mistakes} for e in exercises("lab02")}["lab02.2"]
    feedback = [part["feedback"] for part in grades["fatma"]["exercises"][1]["parts"]]
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


def test_a_fault_of_the_grader_is_said_and_stops_nobody(tmp_path, monkeypatch):
    from grader import grade as module

    def fail(*arguments):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(module, "grade_submission", fail)
    for name in ("anna", "boris"):
        write(tmp_path / "in", f"{name}.ipynb", nbformat.writes(thirty.stub()))
    assert grade(tmp_path / "in", tmp_path / "out", "--accept-reduced") == 0
    assert ["ZeroDivisionError: a fault" in g["problem"] for g in final_grades(tmp_path / "out")] == [True, True]


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
        ("a.txt", b"hello", "neither a notebook"),
    ],
)
def test_what_can_not_be_read_is_refused_in_a_sentence(tmp_path, name, content, sentence):
    with pytest.raises(SubmissionError, match=sentence):
        read(write(tmp_path, name, content))


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


def test_submissions_of_one_name_are_refused(tmp_path):
    write(tmp_path, "anna.ipynb", "{}")
    write(tmp_path, "anna.zip", "")
    with pytest.raises(ValueError, match="two submissions are named 'anna'"):
        find_submissions(tmp_path)
    with pytest.raises(ValueError, match="no submission in"):
        find_submissions(write(tmp_path, "empty/.hidden", "").parent)


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


@pytest.fixture
def graded(tmp_path):
    from minigrpo.files import write_json

    for student, earned in (("anna", (4, 5, 3)), ("=1+1", (0, 5, 0))):
        write_json(tmp_path / "auto" / f"{student}.json", made_result(student, earned))
    return tmp_path


def marks(**exercises) -> dict:
    return {"submission": "s1", "exercises": {name.replace("_", "."): mark for name, mark in exercises.items()}}


def test_a_persons_mark_wins():
    final = merge(made_result(), marks(lab02_4={"points": 2}, lab02_3={"delta": 1, "comment": "nearly"}))
    assert final["earned"] == 4 + 5 + 1 + 2
    assert [row["by"] for row in final["exercises"]] == ["grader", "grader", "person", "person", "grader"]
    assert [row["open"] for row in final["exercises"]] == [False, False, False, False, True]
    assert not final["stale"]


def test_marks_for_an_earlier_submission_are_flagged():
    assert merge(made_result(sha256="s2"), marks(lab02_4={"points": 2}))["stale"]
    assert not merge(made_result(sha256="s2"), marks(lab02_4={"points": None}))["stale"]


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
        merge(made_result(), marks(**given))


def test_a_form_for_marks_is_written_once_and_read_back(graded):
    from grader.feedback import read_manual, write_manual

    write_manual(made_result(), ENTRY, graded)
    path = graded / "manual" / "anna.yaml"
    form = yaml.safe_load(path.read_text())
    assert set(form["exercises"]) == {"lab02.4", "lab02.5"}
    assert form["exercises"]["lab02.4"]["answer"] == "<script>alert(1)</script>"
    form["exercises"]["lab02.4"]["points"] = 1
    path.write_text(yaml.safe_dump(form))
    write_manual(made_result(), ENTRY, graded)
    assert merge(made_result(), read_manual(graded, "anna"))["earned"] == 4 + 5 + 0 + 1
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
        "grader.cli.grade_submission", lambda *a: seen.append(json.loads(out.read_text())) or made_result()
    )
    options = ["--lab", "lab02", "--seed", "1", "--accept-reduced", "--out", str(out)]
    assert main(["gradescope", str(work.parent), *options]) == 0
    assert seen[0]["score"] == 0
    assert json.loads(out.read_text())["score"] == 9
    work.write_text("no notebook")
    assert main(["gradescope", str(work.parent), *options]) == 0
    assert "damaged" in json.loads(out.read_text())["output"]


def rows(path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


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
    leak = "# %% [markdown]\n# Hint: `shared_so_far = same_token.cumprod(dim=-1)`\n"
    (tmp_path / "lab02_process_steps.py").write_text(text + "\n" + leak, encoding="utf-8")
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


def test_the_students_archive_holds_no_solution(tmp_path):
    release(thirty.ROOT, tmp_path / "course.zip")
    with zipfile.ZipFile(tmp_path / "course.zip") as archive:
        names = archive.namelist()
        text = "\n".join(archive.read(name).decode("utf-8", "ignore") for name in names if not name.endswith(".png"))
    assert "course/labs/lab02_process_steps.ipynb" in names
    assert not [name for name in names if "solutions/" in name or "tests/" in name or "instructor" in name]
    assert read_source(thirty.ROOT / "solutions" / "lab02_process_steps.py").title in text
    assert "shared_so_far = same_token" not in text


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
