"""One written question, marked for the whole class in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from grader.cli import main
from grader.feedback import LOOK_AGAIN, final_grades, merge, read_manual, rubrics, write_manual
from grader.grade import load_manifest
from grader.results import ExerciseResult, Result, write_result
from minigrpo.files import write_text

ROOT = Path(__file__).parents[1]
ENTRY = load_manifest(ROOT / "labs")["lab02"]
RUBRICS = rubrics(ROOT / "solutions", "lab02")
HOSTILE = "<b>bold</b> & - [x]: #1"  # a name and an answer that YAML and HTML could take for theirs


@pytest.fixture(autouse=True)
def _in_the_course(monkeypatch):
    monkeypatch.chdir(ROOT)


def result(student="anna", first: str | None = "One set.", sha256="s1", **more) -> Result:
    """A submission of lab 02, with an answer to each question."""
    rows = [ExerciseResult(f"lab02.{at}", "code", points, points) for at, points in ((1, 4), (2, 5), (3, 3))]
    rows += [ExerciseResult("lab02.4", "written", 2, 0, answer=first)]
    rows += [ExerciseResult("lab02.5", "written", 2, 0, answer="Yes.")]
    head = {"student": student, "lab": "lab02", "sha256": sha256, "seed": 5, "isolation": "bubblewrap", "version": "1"}
    return Result(**head | {"problem": None, "earned": 12, "points": 16, "exercises": tuple(rows)} | more)


def hand_in(out: Path, *results: Result) -> None:
    """What `grade` leaves: results, and forms."""
    for made in results:
        write_result(made, out)
        write_manual(made, ENTRY, out, RUBRICS)


@pytest.fixture
def out(tmp_path):
    hand_in(tmp_path / "out", result("anna"), result("boris", "No:\n\tids differ. "), result("chen", None))
    return tmp_path / "out"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "marking.yaml"


def mark(out: Path, *options, question="lab02.4") -> int:
    return main(["mark", str(out), question, *map(str, options)])


def fill_in(path: Path, **marks) -> None:
    """Write marks as a person does, and nothing else: the texts stay as they are."""
    form = yaml.safe_load(path.read_text("utf-8"))
    for answer in form["answers"]:
        answer.update(marks.get(answer["student"], {}))
    write_text(path, yaml.safe_dump(form, sort_keys=False, allow_unicode=True))


def given(out: Path, student: str, exercise="lab02.4") -> tuple:
    form = read_manual(out, student).get("exercises", {}).get(exercise, {})
    return form.get("points"), form.get("comment"), "look_again" in form


def forms(out: Path) -> dict[str, str]:
    return {file.name: file.read_text("utf-8") for file in (out / "manual").glob("*.yaml")}


def test_a_file_holds_the_rubric_once_and_every_answer_with_a_place_for_its_mark(out, path, capsys):
    assert mark(out, "--write", path) == 0
    assert capsys.readouterr().out == f"{path} holds 2 answers, 2 without points\n"
    text = path.read_text("utf-8")
    assert text.count("Two completions of a group are identical.") == 1
    assert text.count("*Rubric.* 1 point: one leaf with two members") == 1
    assert "- student: boris\n  answer: |-\n    No:\n        ids differ.\n  points:\n  comment:\n" in text
    assert "chen" not in text  # who answered nothing waits for no mark


def test_marks_read_back_are_those_that_the_terminal_would_have_written(out, path, tmp_path, monkeypatch, capsys):
    other = tmp_path / "terminal"
    hand_in(other, result("anna"), result("boris", "No:\n\tids differ. "), result("chen", None))
    said = iter(["1.5", "half: right", "2", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    assert mark(other) == 0
    mark(out, "--write", path)
    fill_in(path, anna={"points": 1.5, "comment": "half: right"}, boris={"points": 2})
    capsys.readouterr()
    assert mark(out, "--read", path) == 0
    assert capsys.readouterr().out == f"marks put into {out / 'manual'}: anna, boris; still empty: 0 of 2\n"
    assert forms(out) == forms(other)
    before = forms(out)
    assert mark(out, "--read", path) == 0  # twice is once
    assert "nobody's, as nothing is new" in capsys.readouterr().out
    assert forms(out) == before
    assert {grade.student: grade.earned for grade in final_grades(out)} == {"anna": 13.5, "boris": 14, "chen": 12}


def test_an_empty_place_changes_nothing_and_a_comment_may_stand_alone(out, path):
    mark(out, "--write", path)
    fill_in(path, anna={"points": 1, "comment": "yes"})
    mark(out, "--read", path)
    fill_in(path, anna={"points": None, "comment": None}, boris={"comment": "see me"})
    assert mark(out, "--read", path) == 0
    assert given(out, "anna") == (1, "yes", False)
    assert given(out, "boris") == (None, "see me", False)
    assert [row.open for grade in final_grades(out) for row in grade.exercises if row.id == "lab02.4"] == [
        False,
        True,
        False,
    ]


def test_no_points_are_points(out, path):
    mark(out, "--write", path)
    fill_in(path, anna={"points": 0})
    assert mark(out, "--read", path) == 0
    assert given(out, "anna")[0] == 0
    mark(out, "--write", path)
    assert "points: 0\n" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("marks", "sentence"),
    [
        ({"points": 3}, "points of boris must be from 0 to 2, got 3"),
        ({"points": "two"}, "points of boris must be from 0 to 2, got two"),
        ({"points": "1,5"}, "points of boris must be from 0 to 2, got 1,5"),
        ({"points": float("nan")}, "points of boris must be from 0 to 2, got .nan"),
        ({"points": -1}, "points of boris must be from 0 to 2, got -1"),
        ({"points": True}, "points of boris must be from 0 to 2, got true"),
        ({"points": [1]}, "points of boris must be one text"),
        ({"student": "dora", "points": 1}, "dora is none of the students in"),
        ({"student": "anna", "points": 1}, "names anna twice: keep one entry of each"),
        ({"student": None, "points": 1}, " is none of the students in"),
    ],
)
def test_where_one_mark_is_wrong_none_is_taken(out, path, capsys, marks, sentence):
    mark(out, "--write", path)
    fill_in(path, anna={"points": 1}, boris=marks)
    text, before = path.read_text("utf-8"), forms(out)
    assert mark(out, "--read", path) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert forms(out) == before
    assert path.read_text("utf-8") == text


def test_all_that_is_wrong_is_said_at_once(out, path, capsys):
    mark(out, "--write", path)
    fill_in(path, anna={"points": 9}, boris={"points": 8})
    assert mark(out, "--read", path) == 2
    assert "no mark of" in (said := capsys.readouterr().err)
    assert "got 9; points of boris" in said


def test_a_mark_counts_with_what_the_form_adds(out, path, capsys):
    form = read_manual(out, "anna")
    form["exercises"]["lab02.4"]["delta"] = 1
    write_text(out / "manual" / "anna.yaml", yaml.safe_dump(form))
    mark(out, "--write", path)
    fill_in(path, anna={"points": 2})
    assert mark(out, "--read", path) == 2
    assert "points of anna must be from 0 to 2, got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("exercise: lab02.5\nanswers: []\n", "is for lab02.5, not for lab02.4"),
        ("a list\n", "is no file that `mark --write` wrote"),
        ("exercise: [", "is no YAML"),
        ("[" * 3000, "is no YAML"),
        ("exercise: lab02.4\nanswers: [anna]\n", "must be a mapping with its `student`"),
        (
            "exercise: lab02.4\nanswers:\n- student: anna\n  points: 1\n  points: 2\n",
            "points stands twice in what begins in line 3",
        ),
    ],
)
def test_what_is_no_such_file_is_refused_and_not_written_over(out, path, capsys, text, sentence):
    write_text(path, text)
    for option in ("--read", "--write"):
        assert mark(out, option, path) == 2
        assert sentence in capsys.readouterr().err
        assert path.read_text("utf-8") == text


def test_a_file_in_another_coding_or_none_is_named(out, path, tmp_path, capsys):
    path.write_bytes("exercise: lab02.4 # très".encode("latin-1"))
    assert mark(out, "--read", path) == 2
    assert "is not in UTF-8" in capsys.readouterr().err
    assert mark(out, "--read", tmp_path / "none.yaml") == 2
    assert "none.yaml" in capsys.readouterr().err
    assert mark(out, "--write", tmp_path) == 2
    assert mark(out, "--write", path, question="lab02.1") == 2
    assert "no written question 'lab02.1', it has lab02.4, lab02.5" in capsys.readouterr().err


# Who hands in again


def test_a_new_answer_is_shown_beside_its_mark_to_be_looked_at_again(out, path, capsys):
    mark(out, "--write", path)
    fill_in(path, anna={"points": 1, "comment": "thin"}, boris={"points": 2})
    mark(out, "--read", path)
    hand_in(out, result("anna", "Another answer.", "s2"), result("boris", "No:\n\tids differ. ", "s2"))
    assert mark(out, "--read", path) == 0  # nothing new in it
    assert given(out, "anna") == (1, "thin", True)
    mark(out, "--write", path)
    text = path.read_text("utf-8")
    assert "Another answer." in text
    assert "One set." not in text
    answers = {answer["student"]: answer for answer in yaml.safe_load(text)["answers"]}
    assert answers["anna"]["look_again"] == LOOK_AGAIN
    assert "look_again" not in answers["boris"]  # who wrote the same
    assert mark(out, "--read", path) == 0  # nobody has looked
    assert given(out, "anna") == (1, "thin", True)
    path.write_text("".join(line for line in text.splitlines(True) if "  look_again" not in line), "utf-8")
    assert mark(out, "--read", path) == 0
    assert given(out, "anna") == (1, "thin", False)
    assert not merge(result("anna", "Another answer.", "s2"), read_manual(out, "anna")).stale


def test_a_mark_for_an_answer_that_has_changed_since_is_not_taken_and_not_lost(out, path, capsys):
    mark(out, "--write", path)
    fill_in(path, anna={"points": 2, "comment": "good"}, boris={"points": 1})
    filled = path.read_text("utf-8")
    hand_in(out, result("anna", "Another answer.", "s2"))
    before = forms(out)
    assert mark(out, "--read", path) == 2
    assert "anna's answer has changed since: write the file again with --write" in capsys.readouterr().err
    assert forms(out) == before
    assert mark(out, "--write", path) == 0
    answers = {answer["student"]: answer for answer in yaml.safe_load(path.read_text("utf-8"))["answers"]}
    assert answers["anna"] == {
        "student": "anna",
        "answer": "Another answer.",
        "points": 2,
        "comment": "good",
        "look_again": LOOK_AGAIN,
    }
    assert answers["boris"]["points"] == 1
    (kept,) = (out / "manual" / "earlier").glob("lab02.4-*.yaml")
    assert kept.read_text("utf-8") == filled
    assert mark(out, "--read", path) == 0
    assert given(out, "anna") == (2, "good", True)
    assert given(out, "boris") == (1, None, False)


def test_a_file_written_again_keeps_what_is_filled_in_and_says_what_differs(out, path, monkeypatch, capsys):
    mark(out, "--write", path)
    fill_in(path, anna={"points": "two"}, boris={"points": 1})
    said = iter(["", "2", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    mark(out)  # boris gets 2 in the terminal
    capsys.readouterr()
    assert mark(out, "--write", path) == 0
    assert "boris: 2 in the form, 1 in the file, which stays" in capsys.readouterr().out
    points = {answer["student"]: answer["points"] for answer in yaml.safe_load(path.read_text("utf-8"))["answers"]}
    assert points == {"anna": "two", "boris": 1}


def test_who_has_no_answer_any_more_is_named_and_kept_in_the_earlier_file(out, path, capsys):
    mark(out, "--write", path)
    fill_in(path, boris={"points": 1})
    hand_in(out, result("boris", None, "", problem="the notebook is damaged"))
    assert mark(out, "--read", path) == 2
    assert "boris's submission can't be read any more" in capsys.readouterr().err
    assert mark(out, "--write", path) == 0
    assert "boris: has no answer any more, and is left out" in capsys.readouterr().out
    assert "points: 1" in next((out / "manual" / "earlier").glob("lab02.4-*")).read_text("utf-8")


def test_what_an_editor_does_to_blanks_changes_no_answer(out, path):
    mark(out, "--write", path)
    fill_in(path, boris={"points": 1, "answer": "No:\n\n   ids   differ.\n\n"})
    assert mark(out, "--read", path) == 0
    assert given(out, "boris")[0] == 1


@pytest.mark.parametrize(
    "answer", [HOSTILE, "---\nanswers: []\n...", "- student: boris\n  points: 2", "&a *a !!x", "\x1b"]
)
def test_whatever_students_write_or_are_called_stays_theirs(tmp_path, path, answer):
    out, names = tmp_path / "class", (HOSTILE, "null", "101", " a", "=1+1")
    hand_in(out, *[result(name.replace("/", "∕"), answer) for name in names])
    assert mark(out, "--write", path) == 0
    answers = yaml.safe_load(path.read_text("utf-8"))["answers"]
    assert [found["student"] for found in answers] == sorted(name.replace("/", "∕") for name in names)
    fill_in(path, **{found["student"]: {"points": 2} for found in answers})
    assert mark(out, "--read", path) == 0
    assert {grade.earned for grade in final_grades(out)} == {14}
