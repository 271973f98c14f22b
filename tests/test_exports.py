"""After grading: whose grade it is, marks by people, pages and tables. No sandbox, no student code."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml

from grader.cli import main
from grader.exports import CANVAS_KEYS, MOODLE_KEYS, moodle_columns
from grader.feedback import final_grades, merge, read_manual, rubrics, write_manual, write_run
from grader.grade import NAMED, _kind, grade_submission, load_manifest, readable, student_name
from grader.report import headings, html_report
from grader.results import ExerciseResult, Grading, PartResult, Result, write_result
from grader.roster import cell, find, read_roster
from grader.sandbox import Failure
from grader.submission import read_submission
from minigrpo.files import write_text

ROOT = Path(__file__).parents[1]
ENTRY = load_manifest(ROOT / "labs")["lab02"]
RUBRICS = rubrics(ROOT / "solutions", "lab02")
NFD = unicodedata.normalize("NFD", "José Núñez")
CANVAS = ["--format", "canvas", "--assignment", "Lab 02 (12345)", "--roster"]


@pytest.fixture(autouse=True)
def _in_the_course(monkeypatch):
    monkeypatch.chdir(ROOT)


def made(student="anna", earned=(4, 5, 0), sha256="s1", answers=("One set.", "No:\n\tids differ. "), **more) -> Result:
    """A result of lab 02: a part for each code exercise, two written answers."""
    exercises = [
        ExerciseResult(
            f"lab02.{at + 1}",
            "code",
            points,
            own,
            (PartResult("drawn", points, own, own == points, "" if own == points else "cut at t."),),
        )
        for at, (own, points) in enumerate(zip(earned, (4, 5, 3), strict=True))
    ]
    exercises += [
        ExerciseResult(f"lab02.{at}", "written", 2, 0, answer=answer)
        for at, answer in zip((4, 5), answers, strict=True)
    ]
    head = {"student": student, "lab": "lab02", "sha256": sha256, "seed": 5, "isolation": "bubblewrap", "version": "1"}
    fields = {"problem": None, "earned": sum(earned), "points": 16, "exercises": tuple(exercises)}
    return Result(**head | fields | more)


FAILED = {"problem": "the grader failed on this submission: a person has to grade it", "failed": "E: e"}


def failed(student="anna") -> Result:
    """The result of a submission on which the grader failed."""
    lost = made(student, (0, 0, 0), sha256="", answers=(None, None), **FAILED)
    return replace(lost, exercises=tuple(replace(row, parts=()) for row in lost.exercises))


def graded(folder: Path, *results: Result) -> Path:
    for result in results:
        write_result(result, folder)
    return folder


def rows(path: Path, delimiter=",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), delimiter=delimiter))


def table(path: Path, text: str) -> Path:
    return write_text(path, text)


# Whose grade it is

PEOPLE = [
    {"Student": "Lee, Anna", "ID": "7001", "SIS User ID": "u1", "SIS Login ID": "alee"},
    {"Student": "Schmidt, Anna", "ID": "7002", "SIS User ID": "u2", "SIS Login ID": "anna"},
    {"Student": "Eva, Eve", "ID": "102", "SIS User ID": "u3", "SIS Login ID": "eve99"},
    {"Student": "Núñez, José", "ID": "77", "SIS User ID": "u4", "SIS Login ID": "jnunez"},
    {"Student": "Points Possible, Pia", "ID": "78", "SIS User ID": "7002", "SIS Login ID": "pia"},
    {"Student": "de la Cruz, Ana", "ID": "79", "SIS User ID": "u6", "SIS Login ID": "ana"},
    {"Student": "Ito, Ken", "ID": "80", "SIS User ID": "u7", "SIS Login ID": "ken"},
    {"Student": "Ito, Ken", "ID": "81", "SIS User ID": "u8", "SIS Login ID": "ken2"},
]


@pytest.mark.parametrize(
    ("submission", "numbers"),
    [
        ("Anna Lee", ["7001"]),  # a whole name, in whatever order, before any word of it
        ("Lee, Anna", ["7001"]),
        ("anna_lee", ["7001"]),
        ("anna", ["7002"]),  # a login, whole
        ("ALEE", ["7001"]),
        ("u3", ["102"]),
        ("101_anna", []),  # no word of a name that the student chose
        ("anna lab02 7001", []),
        ("lab02_7001", []),
        ("evaeve_102_555_101_anna", ["102"]),  # Canvas: from the left, and what follows is the student's
        ("evaeve_102_555_7001_555_anna", ["102"]),
        ("evaeve_LATE_102_555_lab02-1", ["102"]),
        ("evaeve_103_555_102_555_x", []),  # a number that nobody has
        ("leeanna_102_555_x", []),  # a number of one and the name of another
        ("group 4_102_555_x", ["102"]),  # a name of nobody: Canvas writes the group's
        ("itoken_81_555_x", ["81"]),
        ("evaeve_102_x", ["102"]),  # not the whole form, but number and name agree
        ("report_102_x", []),
        ("José Núñez", ["77"]),
        (NFD, ["77"]),
        (NFD.upper(), ["77"]),
        ("cruz de la ana", ["79"]),
        ("Ken Ito", ["80", "81"]),
        ("7002", ["7002", "78"]),  # one's id is another's number
        ("Ann Alee", []),
        ("", []),
        ("_", []),
    ],
)
def test_the_rows_that_a_submission_of_canvas_may_be_of(submission, numbers):
    assert sorted(person["ID"] for person in find(submission, PEOPLE, CANVAS_KEYS)) == sorted(numbers)


@pytest.mark.parametrize(
    ("submission", "numbers"),
    [
        ("Anna Lee_42_assignsubmission_file_", ["42"]),
        ("Anna Lee_42_assignsubmission_file_43_assignsubmission_x", ["42"]),
        ("Anna Lee_43_assignsubmission_file_", []),
        ("Participant_43_assignsubmission_file_", ["43"]),  # blind marking
        ("Anna Lee_42_x", ["42"]),
        ("Bo_42_x", []),
        ("Lee Anna", ["42"]),
        ("bo@example.org", ["43"]),
        ("Participant 43", ["43"]),
        ("43", ["43"]),
        ("example", []),
    ],
)
def test_the_rows_that_a_submission_of_moodle_may_be_of(submission, numbers):
    people = [
        {"Identifier": "Participant 42", "Full name": "Anna Lee", "Email address": "anna@example.org"},
        {"Identifier": "Participant 43", "Full name": "Bo Berg", "Email address": "bo@example.org"},
    ]
    found = [person["Identifier"].split()[1] for person in find(submission, people, MOODLE_KEYS)]
    assert found == numbers


def test_whatever_a_file_is_called_its_grade_goes_to_who_handed_it_in():
    tails = [text for person in PEOPLE for text in (*person.values(), f"x_{person['ID']}_555_y", person["ID"] + "_9_")]
    for person in PEOPLE:
        slug = "".join(letter for letter in person["Student"].casefold() if letter.isalnum())
        for tail in [*tails, "_LATE_7001_1_", "Anna Lee_42_assignsubmission_file_", "_", "1_2_3"]:
            for late in ("", "LATE_"):
                assert find(f"{slug}_{late}{person['ID']}_555_{tail}", PEOPLE, CANVAS_KEYS) == [person]
    people = [{"Identifier": f"Participant {p['ID']}", "Full name": p["Student"], "Username": p["SIS Login ID"]}
              for p in PEOPLE]  # fmt: skip
    for person in people:
        for tail in [*tails, f"{people[0]['Full name']}_7001_assignsubmission_file_"]:
            name = f"{person['Full name']}_{person['Identifier'].split()[1]}_assignsubmission_file_{tail}"
            assert find(name, people, MOODLE_KEYS) == [person]


def test_an_id_is_all_of_its_cell():
    people = [{"Student": "Lee, Anna", "ID": "x101"}, {"Student": "Eva, Eve", "ID": "102"}]
    for name in ("101", "eva_101_555_x", "leeanna_101_555_x"):
        assert find(name, people, CANVAS_KEYS) == []
    assert find("X101", people, CANVAS_KEYS) == people[:1]


def test_what_differs_in_marks_only_is_another_name():
    people = [{"Student": name, "ID": str(at)} for at, name in enumerate(("की राम", "का राम"))]
    assert [person["ID"] for person in find("राम की", people, CANVAS_KEYS)] == ["0"]


ROSTER = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Lab 01 (7)\n"
    ",,,,,Manual Posting\n    Points Possible,,,,,9\n"
    '"Lee, Anna",101,s1,alee,A,\n"Núñez, José",102,s2,jn,A,\n"Points Possible",103,s3,pp,A,\n'
)


def test_all_who_are_not_found_are_named_at_once_and_asked_for_in_a_file(tmp_path, capsys):
    graded(tmp_path, made("Anna Lee"), made("nobody"), made("=1+1"), made("report_103"))
    roster = table(tmp_path / "roster.csv", ROSTER)
    for _ in range(2):
        assert main(["export", str(tmp_path), *CANVAS, str(roster)]) == 2
        said = capsys.readouterr().err
        assert "no one row for '=1+1', 'nobody', 'report_103'" in said
        assert "names.csv" in said
        assert not (tmp_path / "export").exists()
        asked = rows(tmp_path / "names.csv")
        assert asked == [["submission", "id"], ["'=1+1", ""], ["nobody", ""], ["report_103", ""]]
    table(tmp_path / "names.csv", "submission;id\n'=1+1;jn\nnobody;9\nreport_103;103\nwithdrawn;101\n")
    assert main(["export", str(tmp_path), *CANVAS, str(roster)]) == 2
    assert "no one row for 'nobody':" in capsys.readouterr().err
    assert ["report_103", "103"] in rows(tmp_path / "names.csv")
    (tmp_path / "auto" / "nobody.json").unlink()
    assert main(["export", str(tmp_path), *CANVAS, str(roster)]) == 0
    found = rows(tmp_path / "export" / "canvas" / "canvas.csv")[2:]
    assert [row[:2] for row in found] == [["Núñez, José", "102"], ["Lee, Anna", "101"], ["Points Possible", "103"]]


def test_names_that_contradict_each_other_are_refused(tmp_path, capsys):
    graded(tmp_path, made("alee"), made("Anna Lee"))
    roster = table(tmp_path / "roster.csv", ROSTER)
    assert main(["export", str(tmp_path), *CANVAS, str(roster)]) == 2
    assert "one row for both 'Anna Lee' and 'alee'" in capsys.readouterr().err
    table(tmp_path / "names.csv", "submission,id\nalee,102\nalee,103\n")
    assert main(["export", str(tmp_path), *CANVAS, str(roster)]) == 2
    assert "names a submission twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["José Núñez.ipynb", f"{NFD}.zip"])
def test_results_are_named_in_one_form_of_accents(tmp_path, name):
    assert student_name(tmp_path / name) == "José Núñez"


def test_a_submission_that_is_gone_is_left_out_with_a_word(tmp_path, capsys):
    anna, old = made("anna"), made("nobody")
    graded(tmp_path, anna, old)
    write_run(tmp_path, [anna])
    write_text(tmp_path / "manual" / "nobody.yaml", "submission: s1\nexercises: {lab02.4: {points: 1}}\n")
    assert [grade.student for grade in final_grades(tmp_path)] == ["anna"]
    assert main(["export", str(tmp_path), "--format", "csv"]) == 0
    assert "left out, not among the submissions of the last grading: nobody (with marks)" in capsys.readouterr().out
    assert [row[0] for row in rows(tmp_path / "export" / "csv" / "grades.csv")] == ["student", "anna"]


def test_a_renamed_submission_is_graded_again_and_exported_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("grader.sandbox.best_isolation", lambda: "reduced")
    monkeypatch.setattr("grader.grade.grade_submission", lambda s, *_: made(s.student, sha256=s.sha256))
    notebook = (ROOT / "labs" / "lab02_process_steps.ipynb").read_bytes()
    command = ["grade", str(tmp_path / "in"), "--lab", "lab02", "--seed", "5", "--accept-reduced", "--quiet"]
    for name in ("nobody", "101"):
        (tmp_path / "in").mkdir(exist_ok=True)
        for path in (tmp_path / "in").iterdir():
            path.unlink()
        (tmp_path / "in" / f"{name}.ipynb").write_bytes(notebook)
        assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "last grading: nobody\n" in capsys.readouterr().out
    roster = table(tmp_path / "roster.csv", ROSTER)
    assert main(["export", str(tmp_path / "out"), *CANVAS, str(roster)]) == 0
    assert [row[1] for row in rows(tmp_path / "out" / "export" / "canvas" / "canvas.csv")[2:]] == ["101"]
    assert main([*command[:3], "lab03", *command[4:], "--out", str(tmp_path / "out")]) == 2
    assert "holds grades of lab02: give each lab a folder of its own" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "auto" / "101.json").read_text("utf-8"))["lab"] == "lab02"


def test_a_damaged_result_is_named(tmp_path, capsys):
    graded(tmp_path, made("anna"))
    (tmp_path / "auto" / "boris.json").write_text('{"student": "bo')
    assert main(["export", str(tmp_path), "--format", "csv"]) == 2
    assert "boris.json is damaged: run `python -m grader grade" in capsys.readouterr().err


@pytest.fixture
def _nine_points(monkeypatch):
    """Grading without a sandbox: whatever can be read earns nine points."""
    monkeypatch.setattr("grader.grade.grade_submission", lambda s, *_: made(s.student, sha256=s.sha256))


def handed_in(folder: Path, *names: str) -> Path:
    """Grade a folder of such files: notebooks are the lab's, damaged where their name says so."""
    notebook = (ROOT / "labs" / "lab02_process_steps.ipynb").read_bytes()
    for name in names:
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(notebook if path.suffix == ".ipynb" and "damaged" not in name else b"something else")
    command = ["grade", str(folder / "in"), "--lab", "lab02", "--seed", "5", "--accept-reduced", "--quiet"]
    assert main([*command, "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.usefixtures("_nine_points")
@pytest.mark.parametrize(
    ("stray", "left"),
    [
        ("leeanna_101_556_notes.pdf", "leeanna_101_556_notes"),  # of one who has handed in a notebook
        ("leeanna_101_556_figures.zip/notes.txt", "leeanna_101_556_figures.zip"),
        ("desktop.ini", "desktop"),  # of nobody
        ("jn.pdf", "jn.pdf"),  # named in full, as the name is that of the notebook beside it
        ("bo_9_556_notes.pdf", "bo_9_556_notes"),
    ],
)
def test_a_stray_file_stops_no_export_to_canvas(tmp_path, capsys, stray, left):
    out = handed_in(tmp_path, "leeanna_101_555_lab02.ipynb", "jn.ipynb", stray)
    assert main(["export", str(out), *CANVAS, str(table(tmp_path / "roster.csv", ROSTER))]) == 0
    assert f"left out, no student's: {left}\n" in capsys.readouterr().out
    assert [(row[1], row[-1]) for row in rows(out / "export" / "canvas" / "canvas.csv")[2:]] == [
        ("102", "9"),
        ("101", "9"),
    ]


@pytest.mark.usefixtures("_nine_points")
def test_a_folder_of_text_stops_no_export_to_moodle(tmp_path, capsys):
    name = "Anna Lee_42_assignsubmission_{}_"
    out = handed_in(tmp_path, f"{name.format('file')}/a.ipynb", f"{name.format('onlinetext')}/onlinetext.html")
    text = "Identifier,Full name,Grade,Feedback comments\nParticipant 42,Anna Lee,,\n"
    sheet = table(tmp_path / "sheet.csv", text)
    assert main(["export", str(out), "--format", "moodle", "--worksheet", str(sheet)]) == 0
    assert f"left out, no student's: {name.format('onlinetext')}\n" in capsys.readouterr().out
    assert [row[2] for row in rows(out / "export" / "moodle" / "moodle.csv")[1:]] == ["9"]
    assert [row[2] for row in rows(out / "export" / "moodle" / "moodle_plain.csv")[1:]] == ["9"]


@pytest.mark.usefixtures("_nine_points")
def test_who_handed_in_what_can_not_be_graded_is_no_stray(tmp_path, capsys):
    """A student's only file has its row whatever it is, and a notebook that can't be read is asked for."""
    roster = table(tmp_path / "roster.csv", ROSTER)
    out = handed_in(tmp_path, "leeanna_101_555_lab02.pdf", "leeanna_101_556_more.pdf", "jn.ipynb")
    assert main(["export", str(out), *CANVAS, str(roster)]) == 0
    assert "left out, no student's: leeanna_101_556_more\n" in capsys.readouterr().out
    canvas = rows(out / "export" / "canvas" / "canvas.csv")[2:]
    assert sorted((row[1], row[-1]) for row in canvas) == [("101", "0"), ("102", "9")]
    out = handed_in(tmp_path, "damaged.ipynb", "desktop.ini")
    assert main(["export", str(out), *CANVAS, str(roster)]) == 2
    assert "no one row for 'damaged':" in capsys.readouterr().err


# Rosters and tables

SHEETS = {
    "German": "ID,Vollständiger Name,E-Mail-Adresse,Status,Gruppe,Bewertung,Bestwertung,Bewertung kann geändert werden,"
    "Zuletzt geändert (Abgabe),Zuletzt geändert (Bewertung),Feedback als Kommentar\n"
    'Teilnehmer/in42,Anna Lee,al@example.org,Abgegeben,G,,"16,00",Ja,"Montag, 2. November 2026",-,\n'
    'Teilnehmer/in43,Bo Berg,bo@example.org,Abgegeben,G,,"16,00",Ja,-,-,\n',
    "French": "Identifiant;Nom complet;Adresse de courriel;Statut;Note;Note maximale;La note peut être modifiée;"
    "Dernière modification (note);Feedback par commentaires\n"
    "Participant 42;Anna Lee;al@example.org;Remis;;16,00;Oui;-;\n"
    "Participant 43;Bo Berg;bo@example.org;Remis;;16,00;Oui;-;\n",
    "blind": "Identifier,Status,Grade,Maximum Grade,Grade can be changed,Feedback comments\n"
    "Participant 42,Submitted,,16.00,Yes,\nParticipant 43,Submitted,,16.00,Yes,\n",
    "German, blind": "ID\tStatus\tBewertung\tBestwertung\tBewertung kann geändert werden\tFeedback als Kommentar\n"
    "Teilnehmer/in42\tAbgegeben\t\t16,00\tJa\t\nTeilnehmer/in43\tAbgegeben\t\t16,00\tJa\t\n",
}


@pytest.mark.parametrize("kind", SHEETS)
def test_worksheets_of_other_languages_and_of_blind_marking(tmp_path, kind):
    name = "Participant" if "blind" in kind else "Anna Lee"
    graded(tmp_path, made(f"{name}_42_assignsubmission_file_"))
    sheet = table(tmp_path / "sheet.csv", SHEETS[kind])
    assert main(["export", str(tmp_path), "--format", "moodle", "--worksheet", str(sheet)]) == 0
    delimiter = next(letter for letter in ";\t," if letter in SHEETS[kind])
    header, *found = rows(tmp_path / "export" / "moodle" / "moodle.csv", delimiter)
    assert header == rows(sheet, delimiter)[0]
    before = rows(sheet, delimiter)[1:]
    at = next(place for place, value in enumerate(before[0]) if value.startswith("16")) - 1
    assert found[0][at] == "9"
    assert "lab02.1: 4 of 4" in found[0][-1]
    assert found[0][:at] + found[0][at + 1 : -1] == before[0][:at] + before[0][at + 1 : -1]
    assert found[1] == before[1]
    if name == "Anna Lee":
        assert rows(tmp_path / "export" / "moodle" / "moodle_plain.csv")[1][0] == "al@example.org"


# A roster for tables and pages

PLAIN = "id,name,email\n7,Anna Lee,anna@example.org\n8,José Núñez,\n9,+1 Bo,bo@example.org\n"


@pytest.mark.parametrize(
    ("text", "head", "first"),
    [
        (PLAIN, ["name", "id", "email"], ["Anna Lee", "7", "anna@example.org"]),
        (ROSTER, ["Student", "ID", "SIS User ID", "SIS Login ID"], ["Lee, Anna", "101", "s1", "alee"]),
        (
            "Identifier,Full name,Email address,Grade,Maximum Grade\nParticipant 4,Anna Lee,a@x.org,,16\n"
            "Participant 5,José Núñez,,,16\n",
            ["Full name", "Identifier", "Email address"],
            ["Anna Lee", "Participant 4", "a@x.org"],
        ),
    ],
)
def test_a_table_says_who_a_person_is_where_a_roster_is_given(tmp_path, text, head, first):
    graded(tmp_path, made("Anna Lee"), made("José Núñez"))
    roster = table(tmp_path / "roster.csv", text)
    assert main(["export", str(tmp_path), "--format", "csv", "--roster", str(roster)]) == 0
    header, *found = rows(tmp_path / "export" / "csv" / "grades.csv")
    assert header[: len(head) + 4] == ["student", *head, "lab", "earned", "points"]
    assert found[0][: len(head) + 4] == ["Anna Lee", *first, "lab02", "9", "16"]


def test_a_german_worksheet_serves_as_a_roster(tmp_path):
    graded(tmp_path, made("Anna Lee_42_assignsubmission_file_"))
    sheet = table(tmp_path / "sheet.csv", SHEETS["German"])
    assert main(["export", str(tmp_path), "--format", "csv", "--roster", str(sheet)]) == 0
    assert "al@example.org" in rows(tmp_path / "export" / "csv" / "grades.csv")[1]


@pytest.mark.parametrize("format_", ["csv", "html"])
def test_who_a_roster_does_not_name_is_asked_for_and_then_exported(tmp_path, capsys, format_):
    stray = made("desktop", problem="no notebook", stray=True)
    graded(tmp_path, made("Anna Lee"), made("=1+1"), made("x1"), stray)
    command = ["export", str(tmp_path), "--format", format_, "--roster", str(table(tmp_path / "r.csv", PLAIN))]
    assert main(command) == 2
    assert "no one row for '=1+1', 'x1': write the id of each into" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()
    assert rows(tmp_path / "names.csv") == [["submission", "id"], ["'=1+1", ""], ["x1", ""]]
    table(tmp_path / "names.csv", "submission,id\n'=1+1,8\nx1,bo@example.org\n")
    assert main(command) == 0
    assert "left out, no student's: desktop\n" in capsys.readouterr().out
    out = tmp_path / "export" / format_
    if format_ == "csv":
        told = [row[:3] for row in rows(out / "grades.csv")[1:]]
        assert told == [["'=1+1", "José Núñez", "8"], ["Anna Lee", "Anna Lee", "7"], ["x1", "'+1 Bo", "9"]]
    else:
        assert sorted(path.name for path in out.iterdir()) == ["=1+1.html", "Anna Lee.html", "x1.html"]
        assert "<p>José Núñez: <strong>" in (out / "=1+1.html").read_text("utf-8")


def test_a_table_that_names_nobody_is_no_roster(tmp_path, capsys):
    graded(tmp_path, made("Anna Lee"))
    roster = table(tmp_path / "r.csv", "colour,shape\nred,round\nblue,flat\n")
    assert main(["export", str(tmp_path), "--format", "csv", "--roster", str(roster)]) == 2
    assert "or a CSV with the columns name and id" in capsys.readouterr().err


def test_the_help_says_what_asks_for_ids(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "GRADES/names.csv (submission,id)" in " ".join(capsys.readouterr().out.split())


# What is for the instructor alone

SECRETS = {
    "seed": 424242424242,
    "failure of the grader": "SECRET-FAILURE",
    "rubric": "SECRET-RUBRIC",
    "note after #": "SECRET-NOTE",
    "look_again": "SECRET-AGAIN",
    "other key": "SECRET-KEY",
    "record": 0.515151,
    "answer in the form": "SECRET-FORM",
}


def test_what_is_for_the_instructor_alone_reaches_no_student(tmp_path, monkeypatch, capsys):
    """A marker in each place where there is such text; then every file that any export writes, and every page."""
    seed, failure = SECRETS["seed"], SECRETS["failure of the grader"]
    record = {"objective": "grpo", "seed": 1, "accuracy": SECRETS["record"]}
    anna = made("Anna Lee", (0, 5, 3), seed=seed)
    part = replace(anna.exercises[0].parts[0], records=(record,))
    broken = replace(anna.exercises[1], failed=failure, parts=())
    anna = replace(anna, exercises=(replace(anna.exercises[0], parts=(part,)), broken, *anna.exercises[2:]))
    lost = replace(failed("José Núñez"), failed=failure, seed=seed)
    graded(tmp_path, anna, lost)
    texts = dict.fromkeys(RUBRICS, f"model answer {SECRETS['rubric']}")
    for result in (anna, lost):
        write_manual(result, ENTRY, tmp_path, texts)
    form = tmp_path / "manual" / "Anna Lee.yaml"
    text = form.read_text("utf-8")
    assert SECRETS["rubric"] in text
    text = text.replace("One set.", SECRETS["answer in the form"])
    text = text.replace("points:\n", f"points: 1 # {SECRETS['note after #']}\n")
    text = text.replace("comment:\n", f"comment: well done # {SECRETS['note after #']}\n")
    lines = f"look_again: {SECRETS['look_again']}\n    note: {SECRETS['other key']}\n    out_of:"
    write_text(form, text.replace("out_of:", lines))
    assert final_grades(tmp_path)[0].stale
    assert main(["mark", str(tmp_path), "lab02.4", "--write", str(tmp_path / "marking.yaml")]) == 0
    assert main(["report", str(tmp_path)]) == 0
    sheet = table(
        tmp_path / "sheet.csv",
        "Identifier,Full name,Grade,Maximum Grade,Feedback comments\nParticipant 1,Anna Lee,,16,\n"
        "Participant 2,José Núñez,,16,\n",
    )
    roster = str(table(tmp_path / "roster.csv", ROSTER))
    options = {
        "csv": ["--roster", roster],
        "html": ["--roster", roster],
        "canvas": CANVAS[2:] + [roster],
        "moodle": ["--worksheet", str(sheet)],
        "gradescope": [],
    }
    for format_, more in options.items():
        assert main(["export", str(tmp_path), "--format", format_, *more]) == 0
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "export").parts[0] for path in files} == set(options)
    written = {path: path.read_text("utf-8") for path in files}
    assert sum("well done" in text for text in written.values()) >= 3  # a comment is for the student
    for place, secret in SECRETS.items():
        assert [path.name for path, text in written.items() if str(secret) in text] == [], place
    assert failure in (tmp_path / "class.html").read_text("utf-8")


def test_a_worksheet_whose_columns_can_not_be_told_apart_is_refused(tmp_path):
    for text in ("ID,Name,Punkte\nx1,Anna,3\nx2,Bo,4\n", "ID,Name,Nr,Bewertung,Best\nx1,A,5,,16\nx2,B,5,,16\n"):
        with pytest.raises(ValueError, match="set your Moodle to English"):
            moodle_columns(read_roster(table(tmp_path / "s.csv", text)))


@pytest.mark.parametrize(
    "text", ["Student;ID\nLee, Anna;101\n", '\ufeffStudent\tID\n"Lee, Anna"\t101\n', 'Student,ID\n"Lee, Anna",101\n']
)
def test_a_roster_is_read_whatever_separates_its_cells(tmp_path, text):
    found = read_roster(table(tmp_path / "r.csv", text), ("Student", "ID"))
    assert found.rows == [{"Student": "Lee, Anna", "ID": "101"}]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"Student,ID\n", "holds none"),
        (b"", "lacks Student, ID"),
        (b"Student,ID\nJos\xe9,1\n", "is not in UTF-8"),
        (b'Student,ID\n"' + b"x" * 200_000, "can't be read as a CSV"),
    ],
)
def test_what_is_no_roster_is_refused_in_a_sentence(tmp_path, content, sentence):
    (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_roster(tmp_path / "r.csv", ("Student", "ID"))


def test_a_table_for_excel(tmp_path):
    """It tells UTF-8 by its mark, and splits at semicolons in much of Europe: a cell must not become two."""
    graded(tmp_path, made("x;=1+1;José"))
    assert main(["export", str(tmp_path), "--format", "csv"]) == 0
    content = (tmp_path / "export" / "csv" / "grades.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    semicolons = list(csv.reader(io.StringIO(content.decode("utf-8-sig")), delimiter=";"))
    assert not [text for row in semicolons for text in row if text.startswith(("=", "+", "-", "@"))]
    assert rows(tmp_path / "export" / "csv" / "grades.csv")[1][0] == "x;=1+1;José"
    assert [cell(text)[0] for text in ("=1", "＝1", "\n=1", "＠x")] == ["'"] * 4


def test_a_submission_on_which_the_grader_failed_has_no_grade_until_it_is_marked(tmp_path, capsys):
    graded(tmp_path, failed("Anna Lee"), made("José Núñez"))
    roster = table(tmp_path / "roster.csv", ROSTER)
    sheet = table(
        tmp_path / "sheet.csv",
        "Identifier,Full name,Grade,Maximum Grade,Feedback comments\nParticipant 1,Anna Lee,3,16,kept\n"
        "Participant 2,José Núñez,,16,\n",
    )

    def canvas() -> dict:
        assert main(["export", str(tmp_path), *CANVAS, str(roster)]) == 0
        return {row[1]: row[-1] for row in rows(tmp_path / "export" / "canvas" / "canvas.csv")[2:]}

    assert canvas() == {"101": "", "102": "9"}
    assert "no grade, as the grader failed: mark by hand: Anna Lee" in capsys.readouterr().out
    assert main(["export", str(tmp_path), "--format", "moodle", "--worksheet", str(sheet)]) == 0
    assert rows(tmp_path / "export" / "moodle" / "moodle.csv")[1] == ["Participant 1", "Anna Lee", "3", "16", "kept"]
    assert main(["export", str(tmp_path), "--format", "html"]) == 0
    assert "0 of 16" not in (tmp_path / "export" / "html" / "Anna Lee.html").read_text("utf-8")
    write_manual(failed("Anna Lee"), ENTRY, tmp_path, RUBRICS)
    path = tmp_path / "manual" / "Anna Lee.yaml"
    path.write_text(path.read_text("utf-8").replace("points:\n", "points: 2\n"), encoding="utf-8")
    assert canvas() == {"101": "10", "102": "9"}
    write_manual(failed("Anna Lee"), ENTRY, tmp_path, RUBRICS)  # failed again: the marks stay
    assert canvas()["101"] == "10"


@pytest.fixture
def _second_exercise_fails(monkeypatch):
    """The grader fails on lab02.2, and takes every other answer for wrong."""

    def grade(exercise, *arguments, **options):
        if exercise.id == "lab02.2":
            raise ZeroDivisionError("told to the instructor")
        return [PartResult(part.name, part.points, 0, False, part.hint) for part in exercise.parts]

    monkeypatch.setattr("grader.grade.grade_exercise", grade)


@pytest.mark.usefixtures("_second_exercise_fails")
def test_an_exercise_on_which_the_grader_failed_is_no_zero(tmp_path, capsys):
    """No table has a grade for its student until a person has marked that exercise, and no page tells why it failed."""
    notebook = (ROOT / "labs" / "lab02_process_steps.ipynb").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Anna Lee.ipynb").write_bytes(notebook)
    out = tmp_path / "out"
    command = ["grade", str(tmp_path / "in"), "--lab", "lab02", "--seed", "5", "--accept-reduced", "--quiet"]
    assert main([*command, "--out", str(out)]) == 0
    assert "the grader failed on lab02.2: ZeroDivisionError: told to the instructor\n" in capsys.readouterr().out
    roster = table(tmp_path / "roster.csv", ROSTER)
    sheet = table(
        tmp_path / "sheet.csv",
        "Identifier,Full name,Grade,Maximum Grade,Feedback comments\nParticipant 1,Anna Lee,3,16,kept\n",
    )

    def written(format_: str, *options: str) -> Path:
        assert main(["export", str(out), "--format", format_, *options]) == 0
        return out / "export" / format_

    def cells() -> list[str]:
        canvas = rows(written(*CANVAS[1:], str(roster)) / "canvas.csv")[2][-1]
        moodle = written("moodle", "--worksheet", str(sheet))
        own = rows(written("csv") / "grades.csv")[1]
        return [canvas, rows(moodle / "moodle.csv")[1][2], rows(moodle / "moodle_plain.csv")[1][2], own[2], own[5]]

    assert cells() == ["", "3", "", "", ""]
    said = capsys.readouterr().out
    assert "1 exercises have no mark yet" in said
    assert "no grade, as the grader failed: mark by hand: Anna Lee" in said
    page = (written("html") / "Anna Lee.html").read_text("utf-8")
    assert "<strong>no grade yet</strong>; 5 points are not marked yet" in page
    assert "a person has to grade it" in page
    assert "told to the instructor" not in page
    form = out / "manual" / "Anna Lee.yaml"
    before, _, rest = form.read_text("utf-8").partition("lab02.2:")
    form.write_text(f"{before}lab02.2:{rest.replace('points:', 'points: 4', 1)}", encoding="utf-8")
    assert cells() == ["4"] * 5


@pytest.mark.usefixtures("_second_exercise_fails")
def test_in_gradescope_too_the_instructor_alone_reads_why_the_grader_failed(tmp_path, capsys):
    notebook = ROOT / "labs" / "lab02_process_steps.ipynb"
    command = ["gradescope", str(notebook), "--lab", "lab02", "--accept-reduced", "--out", str(tmp_path / "r.json")]
    assert main(command) == 0
    assert "the grader failed on lab02.2: ZeroDivisionError: told to the instructor\n" in capsys.readouterr().out
    text = (tmp_path / "r.json").read_text("utf-8")
    assert json.loads(text)["stdout_visibility"] == "hidden"
    assert "a person has to grade it" in text
    assert "told to the instructor" not in text


def test_what_could_not_be_read_is_said_beside_its_zero(tmp_path, capsys):
    graded(tmp_path, made("Anna Lee", (0, 0, 0), problem="the notebook is damaged"))
    assert main(["export", str(tmp_path), *CANVAS, str(table(tmp_path / "roster.csv", ROSTER))]) == 0
    assert "can't be read; only a person's marks count: Anna Lee" in capsys.readouterr().out
    assert rows(tmp_path / "export" / "canvas" / "canvas.csv")[2][-1] == "0"


# Marks by people


@pytest.mark.usefixtures("_nine_points")
def test_forms_and_pages_are_the_same_wherever_the_command_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = handed_in(tmp_path, "anna.ipynb")
    assert "*Rubric.* 1 point: one leaf with two members" in (out / "manual" / "anna.yaml").read_text("utf-8")
    assert main(["export", str(out), "--format", "html"]) == 0
    assert "lab02.2 · Sizes, on tensors: 5 of 5" in (out / "export" / "html" / "anna.html").read_text("utf-8")


def form_of(folder: Path, student="anna") -> dict:
    return yaml.safe_load((folder / "manual" / f"{student}.yaml").read_text("utf-8"))


def fill_in(folder: Path, **changes) -> None:
    """Write into the form as a person does."""
    form = form_of(folder)
    for exercise, mark in changes.items():
        form["exercises"].setdefault(exercise.replace("_", "."), {}).update(mark)
    write_text(folder / "manual" / "anna.yaml", yaml.safe_dump(form, allow_unicode=True))


def test_a_form_reads_like_text_and_holds_question_and_rubric(tmp_path):
    write_manual(made(), ENTRY, tmp_path, RUBRICS)
    text = (tmp_path / "manual" / "anna.yaml").read_text("utf-8")
    assert "    answer: |-\n      No:\n          ids differ.\n    out_of: 2\n    points:\n    comment:\n" in text
    assert "    question: |-\n      **lab02.4** Two completions of a group are identical." in text
    assert "\n      *Rubric.* 1 point: one leaf with two members" in text
    assert set(RUBRICS) == {"lab02.4", "lab02.5"}
    assert merge(made(), read_manual(tmp_path, "anna")).earned == 9


@pytest.mark.parametrize(
    "answer",
    ["\r\nA\r\nB", "  indented", "x: |\n  y", "'\"", "# no comment", "\x9b2J\x1b", "a\x85b\u2028c\ufeff", "- \n\n-"],
)
def test_whatever_a_student_writes_is_shown_as_a_block_and_read_back(tmp_path, answer):
    write_manual(made(answers=(answer, None)), ENTRY, tmp_path, RUBRICS)
    text = (tmp_path / "manual" / "anna.yaml").read_text("utf-8")
    assert "    answer: |" in text
    shown = form_of(tmp_path)["exercises"]["lab02.4"]["answer"]
    written = readable(answer).replace("\ufeff", "").splitlines()
    assert [line.rstrip() for line in shown.split("\n")] == [line.rstrip() for line in written]
    assert not {"\x9b", "\x1b"} & set(text)


def test_an_unanswered_question_waits_for_no_mark(tmp_path, capsys):
    graded(tmp_path, made(answers=(None, "Yes.")))
    (grade,) = final_grades(tmp_path)
    assert main(["mark", str(tmp_path), "lab02.4"]) == 0
    assert "no answer waits for a mark" in capsys.readouterr().out
    assert [row.id for row in grade.exercises if row.open] == ["lab02.5"]
    assert main(["export", str(tmp_path), "--format", "html"]) == 0
    assert "1 written answers have no mark yet" in capsys.readouterr().out
    assert "0 of 2 (no answer)" in (tmp_path / "export" / "html" / "anna.html").read_text("utf-8")


def test_a_form_follows_the_submission_and_keeps_the_marks(tmp_path):
    write_manual(made(), ENTRY, tmp_path, RUBRICS)
    fill_in(tmp_path, lab02_4={"points": 2, "comment": "good: yes"}, lab02_5={"points": 1}, lab02_1={"delta": -1})
    earlier = (tmp_path / "manual" / "anna.yaml").read_text("utf-8")
    second = made(sha256="s2", answers=("One set.", "Another answer."))
    write_manual(second, ENTRY, tmp_path, RUBRICS)
    form = form_of(tmp_path)
    assert form["submission"] == "s2"
    assert form["exercises"]["lab02.5"]["answer"] == "Another answer."
    points = {exercise: (mark.get("points"), mark.get("delta")) for exercise, mark in form["exercises"].items()}
    assert points == {"lab02.4": (2, None), "lab02.5": (1, None), "lab02.1": (None, -1)}
    assert form["exercises"]["lab02.4"]["comment"] == "good: yes"
    assert [exercise for exercise, mark in form["exercises"].items() if "look_again" in mark] == ["lab02.5", "lab02.1"]
    assert (tmp_path / "manual" / "earlier" / "anna-s1.yaml").read_text("utf-8") == earlier
    merged = merge(second, read_manual(tmp_path, "anna"))
    assert (merged.earned, merged.stale) == (4 - 1 + 5 + 2 + 1, True)
    third = replace(second, sha256="s3")
    write_manual(third, ENTRY, tmp_path, RUBRICS)  # nobody has looked in between
    assert merge(third, read_manual(tmp_path, "anna")).stale
    path = tmp_path / "manual" / "anna.yaml"
    kept = [line for line in path.read_text("utf-8").splitlines() if "look_again" not in line]
    path.write_text("\n".join(kept), encoding="utf-8")
    merged = merge(third, read_manual(tmp_path, "anna"))
    assert (merged.earned, merged.stale) == (11, False)


def test_a_form_that_a_person_wrote_becomes_that_of_the_present_submission(tmp_path):
    write_text(tmp_path / "manual" / "anna.yaml", "exercises:\n  lab02.3: {points: 3, comment: right}\n")
    assert not merge(made(), read_manual(tmp_path, "anna")).stale
    write_manual(made(), ENTRY, tmp_path, RUBRICS)
    assert form_of(tmp_path)["submission"] == "s1"
    merged = merge(made(), read_manual(tmp_path, "anna"))
    assert (merged.earned, merged.stale) == (12, False)
    write_manual(made(sha256="s2"), ENTRY, tmp_path, RUBRICS)
    assert merge(made(sha256="s2"), read_manual(tmp_path, "anna")).stale


@pytest.mark.parametrize("comment", ["yes", "2026-11-26", "1.50", "null and void", "good: but", "~ fine"])
def test_a_comment_is_what_a_person_wrote(tmp_path, comment):
    quoted = f"'{comment}'" if ":" in comment else comment
    text = f"submission: s1\nexercises:\n  lab02.4:\n    points: 1\n    comment: {quoted}\n"
    write_text(tmp_path / "manual" / "anna.yaml", text)
    assert merge(made(), read_manual(tmp_path, "anna")).exercises[3].comment == comment


def test_a_form_that_is_no_utf_8_is_named(tmp_path):
    write_text(tmp_path / "manual" / "anna.yaml", "")
    (tmp_path / "manual" / "anna.yaml").write_bytes("exercises: {} # très".encode("latin-1"))
    with pytest.raises(ValueError, match="anna.yaml is not in UTF-8"):
        read_manual(tmp_path, "anna")


def test_one_question_is_marked_for_the_whole_class(tmp_path, monkeypatch, capsys):
    class_ = [made("anna"), made("boris", answers=(None, "x")), made("chen", answers=("\x1b[2J", "y")), made("dora")]
    graded(tmp_path, *class_)
    for result in class_[:3]:  # and none of dora's: `grade` was stopped
        write_manual(result, ENTRY, tmp_path, RUBRICS)
    given = iter(["3", "two", "1", "half: right", "", "2", "", EOFError])

    def answer(prompt: str) -> str:
        if (said := next(given)) is EOFError:
            raise EOFError
        return said

    monkeypatch.setattr("builtins.input", answer)
    assert main(["mark", str(tmp_path), "lab02.4"]) == 0
    said = capsys.readouterr().out
    assert said.count("Two completions of a group are identical.") == 1
    assert said.count("*Rubric.* 1 point: one leaf with two members") == 1
    assert "boris" not in said
    assert "\x1b" not in said
    marks = {result.student: read_manual(tmp_path, result.student)["exercises"]["lab02.4"] for result in class_}
    assert [mark["points"] for mark in marks.values()] == [1, None, None, 2]
    assert marks["anna"]["comment"] == "half: right"
    assert "    answer: |-\n      One set.\n" in (tmp_path / "manual" / "anna.yaml").read_text("utf-8")
    anna = write_result(made("anna", sha256="s2", answers=("New.", "z")), tmp_path)
    write_manual(anna, ENTRY, tmp_path, RUBRICS)
    given = iter(["2.5", "2", "", EOFError])
    assert main(["mark", str(tmp_path), "lab02.4"]) == 0
    assert "anna, 1 point before" in capsys.readouterr().out
    merged = merge(anna, read_manual(tmp_path, "anna"))
    assert (merged.earned, merged.stale) == (11, False)
    assert merged.exercises[3].comment == "half: right"
    assert main(["mark", str(tmp_path), "lab02.1"]) == 2
    assert "no written question 'lab02.1', it has lab02.4, lab02.5" in capsys.readouterr().err


def test_marks_of_what_can_not_be_read_any_more_count_and_are_not_asked_for_again(tmp_path, capsys):
    graded(tmp_path, made())
    write_text(tmp_path / "manual" / "anna.yaml", "submission: s1\nexercises: {lab02.4: {points: 1}}\n")
    damaged = made(earned=(0, 0, 0), sha256="", answers=(None, None), problem="the notebook is damaged")
    graded(tmp_path, damaged)
    assert main(["mark", str(tmp_path), "lab02.4"]) == 0  # a mark could not be kept: there is nothing that it is for
    assert "no answer waits for a mark" in capsys.readouterr().out
    assert main(["export", str(tmp_path), "--format", "csv"]) == 0
    assert "can't be read; only a person's marks count: anna\n" in capsys.readouterr().out
    assert rows(tmp_path / "export" / "csv" / "grades.csv")[1][2] == "1"


# Pages, and what is said


def page(**marks) -> str:
    result = made(earned=(4, 5, 0))
    parts = [PartResult(name, 1, 0, False, "cut at t.") for name in "ab"]
    parts += [PartResult("c", 1, 0, False, "sizes only fall.", mistake=True)]
    rows = list(result.exercises)
    rows[2] = replace(rows[2], parts=tuple(parts))
    result = replace(result, exercises=tuple(rows))
    given = {"submission": "s0", "exercises": {name.replace("_", "."): mark for name, mark in marks.items()}}
    return html_report(merge(result, given), ENTRY, headings(ROOT / "labs" / "lab02_process_steps.ipynb"))


def test_a_page_has_titles_questions_and_each_hint_once():
    text = page()
    assert "lab02.2 · Sizes, on tensors: 5 of 5" in text
    assert "Two completions of a group are identical." in text
    assert "**" not in text
    assert text.count("cut at t.") == 1
    assert text.count("It looks like this: sizes only fall.") == 1
    assert "It looks like this: cut" not in text


def test_a_page_shows_what_a_person_changed_and_no_sentence_of_the_instructors():
    text = page(lab02_3={"delta": 2, "comment": "nearly"}, lab02_4={"points": 1})
    assert "2 of 3 (marked by a person; the grader gave 0)" in text
    assert "1 of 2 (marked by a person)" in text
    assert "earlier submission" not in text


def test_marks_for_an_earlier_submission_are_said_to_the_instructor(tmp_path, capsys):
    graded(tmp_path, made())
    write_text(tmp_path / "manual" / "anna.yaml", "submission: s0\nexercises: {lab02.4: {points: 1}}\n")
    assert main(["export", str(tmp_path), "--format", "html"]) == 0
    assert "marks for an earlier submission, look again: anna" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure("error", "NameError: name 'x' is not defined"), "error: NameError"),
        (Failure("error", "MemoryError"), "error: MemoryError"),
        (Failure("error", "ValueError: NameError: [3, 1, 4]"), "error"),
        (Failure("error", "TELL_3_1_4: "), "error"),
        (Failure("crash", "NameError: x"), "crash"),
        (Failure("import", "cell 3: ModuleNotFoundError: No module named 'seaborn'"), "import: ModuleNotFoundError"),
        (Failure("import", "lab02.1: NameError: x\ncell 4: KeyError: y"), "import: NameError"),
        (Failure("import", "lab02.1: Secret: NameError"), "import"),
        (Failure("missing"), "missing"),
    ],
)
def test_the_type_of_an_exception_is_named_from_a_closed_list(failure, kind):
    assert _kind(failure) == kind
    assert kind.partition(": ")[2] in ("", *NAMED)


def test_what_students_write_steers_no_terminal():
    assert readable("a\r\nb\rc\td\x9b2J\x1b[0m\ud800") == "a\nb\nc\td_2J_[0m_"
    assert readable("e\u0301 漢\u200d字\xa0") == "e\u0301 漢\u200d字\xa0"


def test_a_full_disk_is_said_with_the_file(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_text(tmp_path / "anna.json", "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # as a full disk: writing fails, without a name
    try:
        with pytest.raises(OSError, match="anna.json") as raised:
            write_text(tmp_path / "anna.json", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno
    assert [path.name for path in tmp_path.iterdir()] == ["anna.json"]
    assert (tmp_path / "anna.json").read_text() == "old"


def test_a_result_holds_no_control_characters(tmp_path):
    answer = nbformat.v4.new_markdown_cell("A \x9b2J\r\n\x1b[0m B", metadata={"exercise": "lab02.4"})
    work = write_text(tmp_path / "a.ipynb", nbformat.writes(nbformat.v4.new_notebook(cells=[answer])))
    submission = read_submission(work, "anna", ENTRY)
    graded = grade_submission(submission, Grading("lab02", ENTRY, 5, "reduced"))  # no cell of code, so no worker
    assert graded.exercises[3].answer == "A _2J\n_[0m B"


def test_a_terminal_without_a_students_letters_shows_the_others(tmp_path, monkeypatch):
    graded(tmp_path, failed("b漢"), failed("é"))
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["export", str(tmp_path), "--format", "csv"]) == 0
    out.flush()
    assert "b\\u6f22, é" in out.buffer.getvalue().decode("latin-1")
