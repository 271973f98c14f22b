"""What students hand in: every honest shape is read as Jupyter reads it, and nothing that was handed in vanishes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
import warnings
import zipfile

import nbformat
import pytest

from grader import submission as module
from grader.cells import plain_python
from grader.cli import main
from grader.exercise import Artifact
from grader.feedback import final_grades
from grader.grade import find_submissions, grade_files, load_manifest
from grader.results import ExerciseResult, PartResult, Result
from grader.source import SourceError, build
from grader.submission import SubmissionError, read_apart, read_submission
from tests import class_of_thirty as thirty

MANIFEST = load_manifest(thirty.ROOT / "labs")
ENTRY = MANIFEST["lab02"]
NAME = "lab02_process_steps.ipynb"
SOLVED = nbformat.writes(thirty.notebook())
UNTOUCHED = nbformat.writes(thirty.stub())
ALL = {"lab02.1", "lab02.2", "lab02.3"}
RIGHT = "def step_sizes(completion_ids, completion_mask):\n    return 'right'\n"


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def with_cells(*sources, **edits) -> str:
    """The solved lab, with more cells of code at its end."""
    made = thirty.notebook(**edits)
    made.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.writes(made)


def read(folder, content, name="anna.ipynb"):
    return read_submission(write(folder, name, content), "anna", ENTRY)


def run(submission, exercise="lab02.2") -> dict:
    """What stands in a worker's namespace after the cells of an exercise, as in the sandbox without minigrpo."""
    namespace: dict = {"torch": __import__("torch"), "Tensor": __import__("torch").Tensor}
    for label, source in submission.cells_for(exercise):
        try:
            exec(compile(source.replace("minigrpo", "no_such_package"), label, "exec", dont_inherit=True), namespace)
        except Exception as error:  # noqa: BLE001  as in the worker: later cells run all the same
            namespace.setdefault("errors", []).append(error)
    return namespace


# Cells are read as Jupyter reads them


@pytest.mark.parametrize(
    "before",
    [
        "files = !ls\nassert files == []",
        "!pip install --quiet torch \\\n    numpy",
        "%matplotlib inline\nprint('%s'\n      % 3)",
        "%%prun -q",
        "%%time",
        "\n\n%%capture out\n!pip list",
        "%%time\n%%capture",
        "torch?",
        "torch.ones??",
        "%load_ext autoreload\n%autoreload 2",
        "x = 7 \\\n  % 4\n%time x",
        "if True:\n    %time torch.ones(1)\n    !ls",
        "version = %sql select 1",
        "display(torch.ones(2))",
        "get_ipython().run_line_magic('matplotlib', 'inline')",
        "text = '''\n%matplotlib inline\n!ls\n'''\nassert '!ls' in text and '%matplotlib' in text",
    ],
)
def test_what_runs_in_jupyter_runs_here(tmp_path, before):
    namespace = run(read(tmp_path, with_cells(lab02_2=f"{before}\n{RIGHT}")))
    assert "errors" not in namespace
    assert namespace["step_sizes"](0, 0) == "right"


def test_an_indented_cell_a_prompt_and_a_timed_line_make_their_names(tmp_path):
    indented = "".join(f"    {line}\n" for line in RIGHT.splitlines())
    assert run(read(tmp_path, with_cells(lab02_2=indented)))["step_sizes"](0, 0) == "right"
    prompts = ">>> def step_sizes(a, b):\n...     return helper\n"
    namespace = run(read(tmp_path, with_cells("%time helper = 3", lab02_2=prompts)))
    assert namespace["step_sizes"](0, 0) == 3


@pytest.mark.parametrize("source", ["%%bash\nrm -rf ~", "%%writefile a.py\nx = 1", "%%html\n<b>", "%%latex\n\\alpha"])
def test_a_cell_of_another_language_is_empty(source):
    assert plain_python(source) == ""


@pytest.mark.parametrize("source", ["def f(:\n    pass", "Yes, they stay in one set.", "x = (1,\n", "%%time\nx = (\n"])
def test_what_is_no_python_in_jupyter_either_fails_where_it_is_run(tmp_path, source):
    submission = read(tmp_path, with_cells(lab02_2=source))
    assert [type(error) for error in run(submission)["errors"]] == [SyntaxError]
    assert "errors" not in run(submission, "lab02.1")


def test_line_ends_are_made_equal(tmp_path):
    """VS Code on Windows leaves \\r\\n inside the sources."""
    for end in ("\r\n", "\r"):
        made = json.loads(UNTOUCHED)
        for cell in made["cells"]:
            cell["source"] = "".join(cell["source"]).replace("\n", end)
        assert read(tmp_path, json.dumps(made)).answers == {}
        made = json.loads(with_cells(lab02_2=f"%matplotlib inline\n{RIGHT}"))
        for cell in made["cells"]:
            cell["source"] = [line.replace("\n", end) for line in cell["source"]]
        assert run(read(tmp_path, json.dumps(made)))["step_sizes"](0, 0) == "right"


def test_a_byte_order_mark_does_not_matter(tmp_path):
    assert set(read(tmp_path, b"\xef\xbb\xbf" + SOLVED.encode()).exercises) == ALL


# Cells that are no exercise


@pytest.mark.parametrize(
    "helper",
    [
        "try:\n    import numpy as np\nexcept ImportError:\n    np = None\ndef helper():\n    return np and 5",
        "if True:\n    def helper(): return 5\nelse:\n    helper = None",
        "import contextlib\nwith contextlib.suppress(ValueError):\n    helper = lambda: 5",
        "for helper in [lambda: 4, lambda: 5]:\n    pass",
        "TABLE = {}\nTABLE['five'] = 5\ndef helper(): return TABLE['five']",
        "TABLE = {}\nTABLE.update(five=5)\ndef helper(): return TABLE['five']",
        "ROWS = []\nfor row in range(6):\n    ROWS.append(row)\ndef helper(): return ROWS[5]",
        "class Box: pass\nBox.five = 5\ndef helper(): return Box.five",
        "from minigrpo import ProcessTree\nprint(ProcessTree)\ndef helper(): return 5",
        "raise RuntimeError('a check of my own')\ndef helper(): return 5",
        "import functools\n@functools.cache\ndef helper():\n    'é'; return 5; print('ü')",
        "a = 'é'; helper = lambda: 5; print(a)",
        "helper = lambda: 4\nhelper = lambda: 5",
        "from math import *\nhelper = lambda: floor(5.5)",
        "%matplotlib inline\nhelper = lambda: 5\n!ls",
    ],
)
def test_an_exercise_gets_what_makes_the_names_it_reads(tmp_path, helper):
    submission = read(tmp_path, with_cells(helper, lab02_2="def step_sizes(a, b):\n    return helper()"))
    namespace = run(submission)
    assert namespace["step_sizes"](0, 0) == 5
    assert "errors" not in namespace


def test_plots_checks_and_training_beside_a_helper_are_not_run(tmp_path):
    beside = (
        "HELP = 5\nprint(undefined)\ncheck('lab02.2', step_sizes)\ntorch.save(train_for_hours(), 'x')\nplot = train()"
    )
    submission = read(tmp_path, with_cells(beside, lab02_2="def step_sizes(a, b):\n    return HELP * torch.e"))
    helpers = [source for label, source in submission.cells_for("lab02.2") if label.startswith("cell")]
    assert [source for source in helpers if "import" not in source] == ["HELP = 5"]
    last = len(json.loads(with_cells(beside))["cells"])
    assert submission.left_out("lab02.2") == f"of cell {last} only the statements ran that make a name"
    assert submission.left_out("lab02.1") == ""


# Written answers


def answer(folder, change) -> dict[str, str]:
    """The answers of the untouched lab after a change of its list of cells, from the first question on."""
    made = json.loads(UNTOUCHED)
    at = next(i for i, cell in enumerate(made["cells"]) if cell["metadata"].get("exercise") == "lab02.4")
    for cell in made["cells"]:
        cell["source"] = "".join(cell["source"])
    made["cells"][at:] = change(*made["cells"][at:])
    return dict(read(folder, json.dumps(made)).answers)


def text(source, kind="markdown") -> dict:
    return {"cell_type": kind, "metadata": {}, "source": source}


MINE = "They stay in one set."


@pytest.mark.parametrize(
    "change",
    [
        lambda four, five: [four | {"source": four["source"].replace("*Write your answer here.*", MINE)}, five],
        lambda four, five: [
            four | {"source": four["source"] + f"\n\n{MINE}\n", "metadata": {}},
            five | {"metadata": {}},
        ],
        lambda four, five: [four | {"source": four["source"] + MINE, "cell_type": "code"}, five],
        lambda four, five: [four | {"source": four["source"].replace("\n", " ") + MINE}, five],
        lambda four, five: [four, text(MINE), five],
        lambda four, five: [four, text(MINE, "raw"), five],
        lambda four, five: [four, text("", "code"), text(MINE, "code"), five],
        lambda four, five: [four, text("sizes = [1]\nprint(sizes)", "code"), text(MINE), five],
        lambda four, five: [four, text(f"**lab02.4** {MINE}"), five],
        lambda four, five: [five, four | {"metadata": {}}, text(MINE)],
    ],
)
def test_an_answer_counts_wherever_it_stands_under_its_question(tmp_path, change):
    assert answer(tmp_path, change) == {"lab02.4": MINE}


@pytest.mark.parametrize("source", ["# They stay.", '"""They stay."""', "yes", "yes, and\nno", "one is not two"])
def test_words_in_a_cell_of_code_are_an_answer_where_python_can_read_them_too(tmp_path, source):
    assert answer(tmp_path, lambda four, five: [four, text(source, "code"), five]) == {"lab02.4": source}


@pytest.mark.parametrize("source", ["print(3)", "x = 3", "# Try it.\nimport math", "%%bash\nls", "%pip list", " \n"])
def test_code_below_a_question_is_no_answer(tmp_path, source):
    assert answer(tmp_path, lambda four, five: [four, text(source, "code"), five]) == {}


def test_an_answer_in_two_cells_is_one(tmp_path):
    def change(four, five):
        return [four, five | {"source": f"{five['source']} Yes."}, text("# Or no"), text("No.")]

    assert answer(tmp_path, change) == {"lab02.5": "Yes.\n\n# Or no\n\nNo."}


@pytest.mark.parametrize("lab", sorted(MANIFEST))
def test_no_untouched_lab_has_an_answer(tmp_path, lab):
    """With its metadata and without."""
    made = json.loads((thirty.ROOT / "labs" / MANIFEST[lab]["notebook"]).read_text(encoding="utf-8"))
    for _ in range(2):
        found = read_submission(write(tmp_path, "a.ipynb", json.dumps(made)), "anna", MANIFEST[lab])
        assert (found.answers, found.problems) == ({}, {})
        assert len(found.exercises) == sum(row["kind"] == "code" for row in MANIFEST[lab]["exercises"])
        for cell in made["cells"]:
            cell["metadata"] = {}


def test_a_lab_ends_with_its_questions(tmp_path):
    source = (thirty.ROOT / "solutions" / "lab02_process_steps.py").read_text(encoding="utf-8")
    write(tmp_path, "lab02_process_steps.py", source + "\n# %% [markdown]\n# One more word.\n")
    with pytest.raises(SourceError, match="nothing may follow written questions"):
        build(tmp_path, tmp_path)


# Zips and folders


@pytest.mark.parametrize(
    "members",
    [
        [f"./{NAME}"],
        [f"anna//./{NAME}"],
        [f"course\\labs\\{NAME}", "course\\labs\\"],
        [NAME, f"__MACOSX/._{NAME}", f"./.ipynb_checkpoints/{NAME}"],
        [NAME.upper()],
        [unicodedata.normalize("NFD", "Lösung.ipynb")],
        [NAME, "lab01_orm_grpo.ipynb", "lab02_process_steps (1).ipynb", "manifest.json", "gpu/README.md"],
    ],
)
def test_a_notebook_is_found_in_any_honest_zip_and_folder(tmp_path, members):
    contents = [(m, SOLVED if m.lower().endswith((NAME, ".ipynb")) and "lab01" not in m else "{") for m in members]
    for name in ("anna.zip", "anna.ZIP"):
        assert set(read(tmp_path, thirty.zipped(*contents), name).exercises) == ALL
    for member, content in contents:
        if "\\" not in member:
            write(tmp_path / "anna", member, content)
    if "\\" not in members[0]:
        assert set(read_submission(tmp_path / "anna", "anna", ENTRY).exercises) == ALL
    shutil.rmtree(tmp_path / "anna", ignore_errors=True)
    write(tmp_path / "anna", "mine.ZIP", thirty.zipped(*contents))
    assert set(read_submission(tmp_path / "anna", "anna", ENTRY).exercises) == ALL


def test_a_renamed_notebook_is_the_same_submission(tmp_path):
    """As a single file, in a folder and in a zip; another file that the lab asks for keeps its name."""
    alone = [read(tmp_path, SOLVED, name=name) for name in (NAME, "anna.ipynb", "boris (2).ipynb")]
    packed = write(tmp_path, "packed.zip", thirty.zipped(("mine.ipynb", SOLVED)))
    write(tmp_path / "folder", "other.ipynb", SOLVED)
    packs = [read_submission(path, "anna", ENTRY) for path in (packed, tmp_path / "folder")]
    assert len({submission.sha256 for submission in (*alone, *packs)}) == 1
    folders = [write(tmp_path / name, name, "{}").parent for name in ("config", "weights")]
    for folder in folders:
        write(folder, "other.ipynb", SOLVED)
    extra = [read_submission(folder, "anna", ENTRY, ["config", "weights"]).sha256 for folder in folders]
    assert len({alone[0].sha256, *extra}) == 3
    assert read(tmp_path, UNTOUCHED).sha256 != alone[0].sha256


def test_upper_case_endings_are_read(tmp_path):
    assert set(read(tmp_path, SOLVED, "anna.IPYNB").exercises) == ALL


def test_the_notebook_of_another_lab_is_called_that(tmp_path):
    path = thirty.ROOT / "labs" / "lab03_monte_carlo_rewards.ipynb"
    made = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(2):
        with pytest.raises(SubmissionError, match=f"this is lab03's notebook: hand in {NAME}"):
            read(tmp_path, json.dumps(made))
        for cell in made["cells"]:
            cell["metadata"] = {}  # its questions still tell
    both = json.loads(SOLVED)
    both["cells"] += made["cells"]
    assert set(read(tmp_path, json.dumps(both)).exercises) == ALL


PASSED = {"name": "a", "points": 1, "earned": 1, "passed": True, "feedback": ""}
FAILED = {"name": "b", "points": 1, "earned": 0, "passed": False, "feedback": "why"}
FILES = tuple(next(row for row in MANIFEST["lab09"]["exercises"] if row["kind"] == "artifact")["files"])


def test_two_metrics_cost_the_files_alone(tmp_path):
    """A folder of two runs: the exercise on files is told what is wrong, those on code are graded."""
    entry = MANIFEST["lab09"]
    problem = "metrics.jsonl is there twice: hand in one"
    notebook = (thirty.ROOT / "labs" / entry["notebook"]).read_text(encoding="utf-8")
    write(tmp_path, f"anna/{entry['notebook']}", notebook)
    write(tmp_path, "anna/runs/run0/metrics.jsonl", "one")
    write(tmp_path, "anna/runs/adapter/metrics.jsonl", "one")
    same = read_submission(tmp_path / "anna", "anna", entry, FILES)
    assert (dict(same.files), dict(same.problems)) == ({"metrics.jsonl": b"one"}, {})
    write(tmp_path, "anna/runs/adapter/metrics.jsonl", "two")
    found = read_submission(tmp_path / "anna", "anna", entry, FILES)
    assert found.problems == {"lab09.3": problem}
    assert set(found.exercises) == {"lab09.1", "lab09.2"}
    grader = Artifact(
        "lab09.3", 6, FILES, lambda contents, seed: [PASSED, FAILED | {"feedback": str(sorted(contents))}]
    )

    def parts(feedback):
        return [PartResult(**PASSED), PartResult(**FAILED | {"feedback": feedback})]

    assert grade_files(grader, found, 5) == parts(f"{sorted(FILES)}; {problem}")
    assert grade_files(grader, same, 5) == parts(str(sorted(FILES)))


# What a folder holds


def test_every_file_of_a_folder_is_listed(tmp_path):
    names = ["anna.IPYNB", "boris.ZIP", "chen/a.ipynb", "dora.7z", "emil.tar.gz", "fatma.py", "goran.ipynb.json"]
    names += ["hanna.ipynb", "hanna.pdf", "ivan.pdf", "ivan.docx", "__MACOSX/._a", ".DS_Store", "Jose\u0301.ipynb"]
    for name in names:
        write(tmp_path, name, "")
    found = {student: [path.name for path in paths] for student, paths in find_submissions(tmp_path).items()}
    assert found == {
        "anna": ["anna.IPYNB"],
        "boris": ["boris.ZIP"],
        "chen": ["chen"],
        "dora": ["dora.7z"],
        "emil.tar": ["emil.tar.gz"],
        "fatma": ["fatma.py"],
        "goran.ipynb": ["goran.ipynb.json"],
        "hanna": ["hanna.ipynb"],
        "hanna.pdf": ["hanna.pdf"],
        "ivan": ["ivan.docx"],
        "ivan.pdf": ["ivan.pdf"],
        "Jos\u00e9": ["Jose\u0301.ipynb"],
    }


def grade(folder, out, lab="lab02") -> int:
    options = ["--seed", "5", "--out", str(out), "--quiet", "--accept-reduced"]
    return main(["grade", str(folder), "--lab", lab, *options])


@pytest.fixture
def _all_points(monkeypatch):
    """Grading without a sandbox: whatever can be read earns 12 points."""

    def full(submission, grading):
        rows = (ExerciseResult("lab02.1", "code", 12, 12),)
        head = {"student": submission.student, "lab": grading.lab, "sha256": submission.sha256, "seed": grading.seed}
        head |= {"version": "1", "isolation": grading.isolation, "problem": None}
        return Result(**head, earned=12, points=12, exercises=rows)

    monkeypatch.setattr("grader.grade.grade_submission", full)


@pytest.mark.usefixtures("_all_points")
def test_nothing_that_was_handed_in_vanishes_or_stops_the_others(tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("anna.IPYNB", "boris.ipynb", "a\u200eb.ipynb", "a\u200fb.ipynb", "chen.ipynb"):
        write(folder, name, SOLVED)
    write(folder, "chen.zip", thirty.zipped((NAME, SOLVED)))
    write(folder, "boris.pdf", "my report")
    write(folder, "dora.7z", "no zip")
    write(folder, f"{'l' * 240}.pdf", "long")
    shutil.copy(thirty.ROOT / "labs" / "lab03_monte_carlo_rewards.ipynb", folder / "emil.ipynb")
    assert grade(folder, tmp_path / "out") == 0
    grades = {grade.student: grade for grade in final_grades(tmp_path / "out")}
    why = {student: grade.problem for student, grade in grades.items()}
    assert why.pop("anna") is None
    assert why.pop("boris") is None
    assert sorted(sentence.split(":")[0] for sentence in why.values()) == sorted(
        [
            r"'a\u200eb.ipynb' and 'a\u200fb.ipynb' are of one name, 'a_b'",
            "'chen.ipynb' and 'chen.zip' are of one name, 'chen'",
            "boris.pdf is neither a notebook (.ipynb) nor a zip",
            "dora.7z is neither a notebook (.ipynb) nor a zip",
            f"{'l' * 240}.pdf is neither a notebook (.ipynb) nor a zip",
            "this is lab03's notebook",
        ]
    )
    said = capsys.readouterr().out
    assert all(f"not graded: {sentence}" in said for sentence in why.values())
    write(tmp_path, "later/chen.ipynb", SOLVED)
    assert grade(tmp_path / "later", tmp_path / "out") == 0
    assert {grade.student: grade.earned for grade in final_grades(tmp_path / "out")}["chen"] == 12


@pytest.mark.usefixtures("_all_points")
def test_a_folder_of_another_labs_grades_is_refused_before_anything_is_written(tmp_path, capsys):
    write(tmp_path, "in/anna.ipynb", SOLVED)
    assert grade(tmp_path / "in", tmp_path / "out") == 0
    write(tmp_path, "out/auto/damaged.json", "{")

    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = contents()
    assert grade(tmp_path / "in", tmp_path / "out", "lab03") == 2
    assert "holds grades of lab02: give each lab a folder of its own" in capsys.readouterr().err
    assert grade(tmp_path / "nowhere", tmp_path / "new") == 2
    assert contents() == before


# What reading costs


def test_what_a_process_of_its_own_reads_is_the_same(tmp_path):
    entry = MANIFEST["lab09"]
    notebook = (thirty.ROOT / "labs" / entry["notebook"]).read_bytes()
    weights = os.urandom(1 << 20)
    names = [(entry["notebook"], notebook), ("adapter_model.safetensors", weights), ("metrics.jsonl", b"\xff\x00")]
    path = write(tmp_path, "anna.zip", thirty.zipped(*names, method=zipfile.ZIP_STORED))
    found = read_apart(path, "anna", entry, FILES)
    assert found == read_submission(path, "anna", entry, FILES)
    assert found.files == {"adapter_model.safetensors": weights, "metrics.jsonl": b"\xff\x00"}
    write(tmp_path, "boris.ipynb", "{")
    with pytest.raises(SubmissionError, match="damaged"):
        read_apart(tmp_path / "boris.ipynb", "boris", entry)


def test_what_takes_too_long_or_too_much_memory_to_read_is_refused(tmp_path, monkeypatch):
    magics = write(tmp_path, "anna.ipynb", with_cells("%x\n" * 16_000))  # IPython reads the cell anew for each
    monkeypatch.setattr(module, "MOST_SECONDS", 1)
    with pytest.raises(SubmissionError, match="anna.ipynb takes more than .* to read"):
        read_apart(magics, "anna", ENTRY)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MOST_MEMORY", 128 << 20)
    entry = MANIFEST["lab09"]
    members = [(entry["notebook"], UNTOUCHED.replace("lab02", "lab09")), ("metrics.jsonl", bytes(60 << 20))]
    with pytest.raises(SubmissionError, match="boris.zip takes more than .* to read"):
        read_apart(write(tmp_path, "boris.zip", thirty.zipped(*members)), "boris", entry, FILES)
    assert set(read_apart(write(tmp_path, "chen.ipynb", SOLVED), "chen", ENTRY).exercises) == ALL


def test_a_cell_that_python_can_not_parse_in_so_much_memory_costs_itself_alone(tmp_path, monkeypatch):
    dots = write(tmp_path, "anna.ipynb", with_cells("import a" + ".a" * 30_000))  # nearly a gigabyte in Python's parser
    monkeypatch.setattr(module, "MOST_MEMORY", 512 << 20)
    found = read_apart(dots, "anna", ENTRY)
    assert set(found.exercises) == ALL
    assert not any("a" in cell.defines for cell in found.helpers)


def test_a_notebook_holds_no_more_than_so_much_code(tmp_path):
    small = with_cells(*["x = '" + "a" * 60_000 + "'"] * 3)
    assert set(read(tmp_path, small).exercises) == ALL
    with pytest.raises(SubmissionError, match="characters of code, more than 200000"):
        read(tmp_path, with_cells(*["x = '" + "a" * 60_000 + "'"] * 4))


def test_what_python_says_of_a_students_code_is_not_printed(tmp_path, capfd):
    source = "x = '\\d \\\x1b[2J'\nassert (x, 'always true')\n"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read(tmp_path, with_cells(source, lab02_2=f"{source}{RIGHT}"))
    assert said == []
    read_apart(tmp_path / "anna.ipynb", "anna", ENTRY)
    assert capfd.readouterr() == ("", "")


# The student's commands


def test_a_terminal_without_some_letters_gets_the_rest(tmp_path):
    """In a process of its own, in a folder far from the course."""
    wrong = thirty.notebook(lab02_2=thirty.EQUAL_TOKENS)
    write(tmp_path, NAME, nbformat.writes(wrong))
    command = [sys.executable, "-m", "grader", "check", NAME]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(thirty.ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"of \u201crandom groups\u201d:" in done.stdout
    assert b"lab02.5: written" in done.stdout


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A student's folder with a half-written lab, and no course around it."""
    write(tmp_path, f"labs/{NAME}", nbformat.writes(thirty.notebook(lab02_3=thirty.stub().cells[14].source)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lab", ["lab02", "Lab02", "lab2", "2", "02", f"labs/{NAME}", "labs/lab02_process_steps"])
def test_a_lab_may_be_named_in_any_plain_way(mine, capsys, lab):
    assert main(["submit", lab]) == 0
    assert "lab02.zip holds" in capsys.readouterr().out
    assert set(read_submission(mine / "lab02.zip", "anna", ENTRY).exercises) == ALL


def test_a_lab_that_is_not_there_is_refused(mine, capsys):
    for lab in ("lab77", "2b", "", "lab2b", "labs", "lab02.1"):  # an exercise is no lab
        assert main(["submit", lab]) == 2
        assert f"lab must be one of {', '.join(MANIFEST)}, got {lab!r}" in capsys.readouterr().err


def test_a_folder_without_labs_is_told_where_to_go(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.json can't be read .*: run this in the course's folder$"):
        load_manifest(tmp_path)


def test_check_and_submit_work_from_any_folder(mine, capsys, monkeypatch):
    monkeypatch.chdir(mine / "labs")
    assert main(["check", "lab02"]) == 0
    assert "lab02.1: all 4 public cases pass" in capsys.readouterr().out
    (mine / "elsewhere").mkdir()
    monkeypatch.chdir(mine / "elsewhere")
    assert main(["submit", f"../labs/{NAME}"]) == 0
    assert (mine / "elsewhere" / "lab02.zip").is_file()
    assert main(["check", "lab02.zip"]) == 0
    assert main(["check", "lab02", "lab02.zip"]) == 0
    capsys.readouterr()
    assert main(["submit", "lab02"]) == 2
    assert capsys.readouterr().err == (
        f"grader submit: no notebook {NAME}: name yours, as in `python -m grader submit lab02 NOTEBOOK`\n"
    )


def test_submit_says_what_is_not_written_yet(mine, capsys):
    assert main(["submit", "lab02"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "not written yet: lab02.3"
    write(mine, f"labs/{NAME}", UNTOUCHED)
    assert main(["submit", "lab02"]) == 0
    wanted = "not written yet: lab02.1, lab02.2, lab02.3, lab02.4, lab02.5"
    assert capsys.readouterr().out.splitlines()[0] == wanted
    commented = thirty.notebook(lab02_3="# raise NotImplementedError('lab02.3')\ndef process_steps(sizes): return []")
    write(mine, f"labs/{NAME}", nbformat.writes(commented))
    assert main(["submit", "lab02"]) == 0
    assert "not written yet" not in capsys.readouterr().out


@pytest.mark.parametrize("lab", ["lab02", "lab09"])
def test_submit_refuses_a_folder_that_is_not_there(mine, capsys, lab):
    shutil.copy(thirty.ROOT / "labs" / MANIFEST["lab09"]["notebook"], mine / "labs")
    assert main(["submit", lab, "--files", "nope"]) == 2
    assert capsys.readouterr().err == "grader submit: --files must be a folder, got nope\n"
    assert not list(mine.glob("*.zip"))


def test_submit_takes_the_files_of_one_run(mine, capsys):
    shutil.copy(thirty.ROOT / "labs" / MANIFEST["lab09"]["notebook"], mine / "labs")
    for folder, content in (("a", "1"), ("b", "1")):
        write(mine, f"runs/{folder}/metrics.jsonl", content)
    assert main(["submit", "lab09", "--files", "runs"]) == 0
    said = capsys.readouterr().out
    assert "metrics.jsonl" not in said.split("lab09.zip holds")[0]
    assert "adapter_config.json is not packed: it is not in runs" in said
    (mine / "lab09.zip").unlink()
    write(mine, "runs/b/metrics.jsonl", "2")
    assert main(["submit", "lab09", "--files", "runs"]) == 2
    assert "metrics.jsonl is in runs twice" in capsys.readouterr().err
    assert not (mine / "lab09.zip").exists()


def test_submit_packs_notebooks_only(mine, capsys):
    write(mine, "lab02.zip", thirty.zipped((NAME, SOLVED)))
    before = (mine / "lab02.zip").read_bytes()
    assert main(["submit", "lab02", "lab02.zip"]) == 2
    assert "submit packs a notebook (.ipynb), got lab02.zip" in capsys.readouterr().err
    assert (mine / "lab02.zip").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (thirty.DELEGATING, "ModuleNotFoundError: minigrpo cannot be used while your work is graded"),
        ("from minigrpo import step_sizes", "ModuleNotFoundError: minigrpo cannot be used while your work is graded"),
        ("from grader import check\n" + RIGHT, "ModuleNotFoundError: grader cannot be used while your work is graded"),
        ("import sys\nsys.exit()\n" + RIGHT, "raised SystemExit"),
        ("def step_sizes(a=Undefined, b=0): return a", "NameError: name 'Undefined' is not defined"),
        ("await step()\n" + RIGHT, "SyntaxError: 'await' outside function"),
        (thirty.WITH_HELPER, "NameError: name 'shared' is not defined"),
    ],
)
def test_check_says_what_would_fail_when_the_work_is_graded(mine, capsys, source, said):
    write(mine, f"labs/{NAME}", with_cells("from minigrpo import step_sizes as shared", lab02_2=source))
    assert main(["check", "lab02"]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert "lab02.2: all" not in printed
    assert "lab02.1: all 4 public cases pass" in printed
