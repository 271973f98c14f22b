"""Two questions a student, drawn from what they handed in: parsed and never run, the same for the same submission."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import pytest

from grader.cli import main
from grader.feedback import merge, write_run
from grader.grade import load_manifest, student_name
from grader.labs import exercises
from grader.oral import ABOUT_AN_ANSWER, TEMPLATES, about_answer, about_code, draw
from grader.report import given_lines
from grader.results import ExerciseResult, Result, write_result
from grader.source import read_source
from grader.submission import SubmissionError, read_submission
from tests import class_of_thirty as thirty

ROOT = Path(__file__).parents[1]
MANIFEST = load_manifest(ROOT / "labs")
ENTRY = MANIFEST["lab02"]
GIVEN = given_lines(ROOT / "labs" / ENTRY["notebook"])


@pytest.fixture(autouse=True)
def _in_the_course(monkeypatch):
    monkeypatch.chdir(ROOT)


def graded(path: Path, earned=(4, 5, 3), entry=ENTRY) -> Result:
    """The result of a submission that earned so much."""
    student, problem, sha256 = student_name(path), None, ""
    try:
        sha256 = read_submission(path, student, entry).sha256
    except SubmissionError as error:
        problem = str(error)
    own = dict(zip((row["id"] for row in entry["exercises"]), earned, strict=False))
    rows = tuple(
        ExerciseResult(row["id"], row["kind"], row["points"], own.get(row["id"], 0)) for row in entry["exercises"]
    )
    lab = entry["notebook"][:5]
    return Result(student, lab, sha256, 5, "bubblewrap", "1", problem, sum(earned), 16, rows)


@pytest.fixture
def class_(tmp_path):
    """Submissions and grades: solved, by a helper, untouched, damaged, and one that is never to be run."""
    contents = {
        "anna": nbformat.writes(thirty.notebook()),
        "emil": thirty.submissions()["emil.ipynb"][0],
        "ivan": nbformat.writes(thirty.stub()),
        "karl": "{ no notebook",
        "mean": nbformat.writes(thirty.notebook(**thirty.all_exercises("open('RAN', 'w'); total = sum(args)"))),
    }
    for name, content in contents.items():
        path = tmp_path / "in" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    results = [write_result(graded(path), tmp_path / "out") for path in sorted((tmp_path / "in").iterdir())]
    write_run(tmp_path / "out", results, tmp_path / "in")
    return tmp_path


def oral(folder: Path, *options) -> int:
    return main(["oral", str(folder / "out"), *map(str, options)])


def kinds(body: str, parameters="completion_ids, completion_mask") -> dict[str, str]:
    """The questions on a function's one line, by kind."""
    return {q.kind: q.text for q in about_code("lab02.2", f"def f({parameters}):\n    {body}\n")}


# Templates


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("x = a.sum(dim=1)", "reduction", "`sum` goes over dimension 1 here."),
        ("x = a.cumprod(-1)", "reduction", "`cumprod` goes over dimension -1 here."),
        ("x = torch.sum(a, 0)", "reduction", "`sum` goes over dimension 0 here."),
        ("x = a.mean(axis=0)", "reduction", "shape comes out on a group of 3 completions of length 4?"),
        ("x = a[b < c]", "comparison", "What would change if `<` were `<=` here?"),
        ("if a >= b:\n        pass", "comparison", "What would change if `>=` were `>` here?"),
        ("x = a == b", "comparison", "the smallest input on which `==` is true here once and false once"),
        ("x = a * completion_mask", "mask", "What does `completion_mask` take away here"),
        ("size = a + b", "assignment", "What does `size` hold after this line"),
        ("size: int = a + b", "assignment", "What does `size` hold after this line"),
        ("total += 1", "left out", "What would change if this line were left out?"),
        ("x = 1\n    x = x + 1", "left out", "What would change if this line were left out?"),
        ("if a:\n        return b", "left out", "this line, with what stands under it, were left out?"),
        ("for i in range(3):\n        pass", "loop", "How often does this loop run"),
        ("return a + b", "return", "Say step by step what this line computes"),
    ],
)
def test_a_line_and_its_question(body, kind, words):
    assert words in kinds(body)[kind]


@pytest.mark.parametrize(
    "body",
    [
        '"""Words. a == b"""',
        "pass",
        "return None",
        "return a",
        "raise NotImplementedError('lab02.1')",
        "x = 3",
        "x = []",
        "import torch",
        "global x",
    ],
)
def test_lines_that_say_nothing_are_not_asked_about(body):
    assert kinds(body) == {}


@pytest.mark.parametrize(
    "body", ["x = a.sum()", "x = a.sum(n)", "x = a.unsqueeze(0)", "x = torch.sum(a)", "x = max(a, 1)"]
)
def test_what_names_no_dimension_is_no_reduction_over_one(body):
    assert "reduction" not in kinds(body)


def test_two_comparisons_on_a_line_are_not_told_apart_so_not_asked():
    assert "comparison" not in kinds("x = (a < b) & (b < c)")
    assert "comparison" not in kinds("x = a < b < c")


def test_the_example_fits_the_arguments():
    assert "a small example of your own" in kinds("x = a + b", "n, r")["assignment"]
    assert "3 completions of length 4" in kinds("x = a + b", "rewards, n")["assignment"]


def test_every_template_is_tried_above():
    marks = test_a_line_and_its_question.pytestmark[0].args[1]
    assert {kind for _, kind, _ in marks} == set(TEMPLATES)


@pytest.mark.parametrize(
    "source",
    [
        "def f(:",
        "",
        "x = 1",
        "def f():\n" + " x" * 3,
        "(" * 5000,
        "-" * 9000 + "1",
    ],
)
def test_what_is_no_python_gives_no_question(source):
    assert about_code("lab02.1", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(a):\n    return " + "a." * 4000 + "sum(1)",
        "def f(a):\n    return a" + ".sum(1)" * 2000,
        "def f(a):\n" + "    x = a == a\n" * 1300,
        "def f(a):\n    return " + "[" * 60 + "a" + "]" * 60,
        "".join(" " * depth + "def f(a):\n" for depth in range(90)) + " " * 90 + "x = a + a",
        "def f(a):\n    x = " + "a + " * 4000 + "a",
        "def f(a):\n    x = '" + "é" * 9000 + "' + a; y = x < a",
    ],
)
def test_code_that_is_made_to_be_slow_takes_a_moment(source):
    begin = time.perf_counter()
    found = about_code("lab02.1", source)
    assert time.perf_counter() - begin < 10
    assert all(len(question.line) <= 160 for question in found)


def test_a_line_is_shown_on_one_line_without_what_steers_a_terminal():
    (question,) = about_code("lab02.1", "def f(a):\n    x = g(a,\n          '\x1b[2J\u202e',   b)\n")
    assert question.line == "x = g(a, '_[2J_', b)"


def test_the_labs_own_lines_are_left_out():
    assert about_code("lab02.1", "def f(a):\n    x = a + b\n    y = a - b\n", ["x = a + b"])[0].line == "y = a - b"
    stub = ROOT / "labs" / ENTRY["notebook"]
    cells = [c.source for c in nbformat.read(stub, 4).cells if c.cell_type == "code"]
    assert [about_code("lab02.1", source, GIVEN) for source in cells] == [[]] * len(cells)


def test_an_answer_is_asked_about_sentence_by_sentence():
    found = about_answer("lab02.4", "No.  They share one set, as\nids agree. And λ is a set!")
    assert {question.line for question in found} == {"They share one set, as ids agree."}
    assert {question.text for question in found} == set(ABOUT_AN_ANSWER)
    assert about_answer("lab02.4", "No.")[0].line == "No."
    assert about_answer("lab02.4", " \n ") == []


# A submission


def drawn(path: Path, earned=(4, 5, 3)):
    student = student_name(path)
    submission = read_submission(path, student, ENTRY)
    return draw(submission, merge(graded(path, earned), {}), GIVEN)


def write(path: Path, notebook) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return path


def test_the_same_submission_gets_the_same_questions_and_others_get_others(tmp_path):
    names = [f"s{number}" for number in range(12)]
    asked = [drawn(write(tmp_path / f"{name}.ipynb", thirty.notebook())) for name in names]
    assert asked == [drawn(tmp_path / f"{name}.ipynb") for name in names]
    assert len({tuple(questions) for questions in asked}) >= 6
    for first, second in asked:
        assert first.exercise != second.exercise
        assert first.kind != second.kind
    path = write(tmp_path / "s0.ipynb", thirty.notebook(lab02_3=thirty.NOTHING.format("process_steps") + "return 1"))
    assert drawn(path) != asked[0]


def test_exercises_with_full_points_come_first(tmp_path):
    path = write(tmp_path / "anna.ipynb", thirty.notebook())
    for earned, wanted in (((4, 5, 0), {"lab02.1", "lab02.2"}), ((0, 5, 3), {"lab02.2", "lab02.3"})):
        assert {question.exercise for question in drawn(path, earned)} == wanted


def test_who_has_one_exercise_gets_two_questions_on_two_lines_of_it(tmp_path):
    nothing = thirty.all_exercises("return None") | {"lab02_2": thirty.EQUAL_TOKENS}
    first, second = drawn(write(tmp_path / "anna.ipynb", thirty.notebook(**nothing)), (0, 0, 0))
    assert (first.exercise, second.exercise) == ("lab02.2", "lab02.2")
    assert first.line != second.line


def test_who_has_no_code_to_ask_about_is_asked_about_the_answers(tmp_path):
    made = thirty.notebook(**thirty.all_exercises("return None"))
    questions = drawn(write(tmp_path / "anna.ipynb", made))
    assert [question.kind.split()[0] for question in questions] == ["answer", "answer"]
    assert {question.exercise for question in questions} <= {"lab02.4", "lab02.5"}
    one = thirty.notebook(
        **thirty.all_exercises("return None") | {"lab02_2": "def step_sizes(a, b):\n    return a + b"}
    )
    kinds = [question.kind.split()[0] for question in drawn(write(tmp_path / "b.ipynb", one))]
    assert kinds == ["return", "answer"]


@pytest.mark.parametrize("lab", sorted(set(MANIFEST) - {"lab00"}))
def test_every_lab_has_questions_on_its_solution(tmp_path, lab):
    """A solution of any lab has two questions, of two exercises where it has two."""
    entry = MANIFEST[lab]
    cells = read_source(next((ROOT / "solutions").glob(f"{lab}_*.py"))).cells
    path = write(tmp_path / "anna.ipynb", nbformat.v4.new_notebook(cells=cells))
    submission = read_submission(path, "anna", entry)
    grade = merge(graded(path, (), entry), {})
    asked = draw(submission, grade, given_lines(ROOT / "labs" / entry["notebook"]))
    assert len(asked) == 2
    assert len({question.exercise for question in asked}) == min(2, len(exercises(lab)))


# The command


def test_a_class_is_asked_and_nothing_of_it_runs(class_, capsys, monkeypatch):
    assert oral(class_) == 0
    said = capsys.readouterr().out
    assert said.count("  1. In your ") == 3
    assert said.count("  2. In your ") == 3
    assert "ivan: has handed in nothing to ask about\n" in said
    assert "karl: the notebook is damaged" in said
    assert "In your lab02" in said
    assert not list(class_.rglob("RAN"))
    assert not (ROOT / "RAN").exists()
    assert oral(class_) == 0
    assert capsys.readouterr().out == said
    assert oral(class_, "--student", "anna") == 0
    assert capsys.readouterr().out.rstrip() in said


def test_a_page_and_a_text(class_, capsys):
    assert oral(class_, "--out", class_ / "q.html") == 0
    assert "holds questions for 3 students" in capsys.readouterr().out
    page = (class_ / "q.html").read_text("utf-8")
    assert "Lab 02 · Process steps: questions" in page
    assert page.count("<pre") == 6
    assert oral(class_, "--student", "anna", "--out", class_ / "q.txt") == 0
    assert (class_ / "q.txt").read_text("utf-8").startswith("anna\n  1. In your lab02")


def test_a_students_line_is_no_markup(class_, capsys):
    code = "def step_sizes(a, b):\n    x = a + '<script>alert(1)</script>'\n    return x"
    made = thirty.notebook(**thirty.all_exercises("return None") | {"lab02_2": code})
    path = write(class_ / "in" / "anna.ipynb", made)
    write_result(graded(path), class_ / "out")
    assert oral(class_, "--student", "anna", "--out", class_ / "q.html") == 0
    page = (class_ / "q.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_what_is_missing_is_one_sentence(class_, tmp_path, capsys):
    assert oral(class_, "--student", "nobody") == 2
    assert "holds no grade of 'nobody'" in capsys.readouterr().err
    assert oral(class_, "--submissions", class_ / "gone") == 2
    assert "submissions must be a folder" in capsys.readouterr().err
    write_run(class_ / "out", [])
    assert oral(class_) == 2
    assert "no grades in" in capsys.readouterr().err
    (class_ / "out" / "run.json").unlink()
    assert oral(class_) == 2
    assert "Name their folder with --submissions DIR" in capsys.readouterr().err
    assert oral(class_, "--submissions", class_ / "in", "--student", "anna") == 0


def test_a_submission_that_has_changed_since_is_not_asked_about(class_, capsys):
    write(class_ / "in" / "anna.ipynb", thirty.notebook(lab02_1="def process_sets(c):\n    return c + c"))
    (class_ / "in" / "emil.ipynb").unlink()
    assert oral(class_) == 0
    said = capsys.readouterr().out
    assert "anna: has handed in again since: grade again\n" in said
    assert f"emil: is not in {class_ / 'in'} any more\n" in said
