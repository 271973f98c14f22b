"""The lessons stay true: how each is built, what its prose points to, and (marked `lessons`) what its cells compute.

make test                     # structure
make test ARGS="-m lessons"   # runs every lesson and compares its key numbers with the committed ones
"""

import ast
import importlib.util
import math
import re
import shlex
from pathlib import Path

import nbformat
import pytest

import minigrpo
from minigrpo.cli import build_parser
from minigrpo.llm import cli as llm

ROOT = Path(__file__).resolve().parent.parent
FOLDER, LABS = ROOT / "lessons", ROOT / "labs"
COURSE = """
    01_policy_gradients_to_grpo 02_process_steps 03_monte_carlo_rewards 04_the_theorem 05_where_it_breaks 06_lambda_grpo
    07_real_trees 08_silent_bugs 09_language_models 10_scaling_out 11_each_step_once
""".split()
PATHS = sorted(FOLDER.glob("*.ipynb"))
SETUP = """
try:
    import minigrpo
except ModuleNotFoundError:  # on Colab, say: `make demo` has done this on your machine
    %pip install -q "minigrpo[plots,llm,notebooks] @ git+https://github.com/minigrpo/minigrpo"
    import minigrpo
import torch

torch.set_num_threads(1)  # the tensors are small: a second thread costs more than it brings
print("minigrpo", minigrpo.__version__)
""".strip()
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+−]?\d+)?|(?<!\w)[-+−]?(?:nan|inf)(?!\w)")
MACHINE = re.compile(r"(?:^|[\s\"'(=:])/(?:tmp|home|root|work|Users|opt|usr)/|[A-Z]:\\|site-packages|0x[0-9a-f]{6,}")
TOTAL, ONE = 12 * 60, 3 * 60  # seconds that all lessons together, and that one may take on two cores


def load_runner():
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = load_runner()


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def lesson(path):
    return RUN.read(path)


def code(lesson):
    return [cell for cell in lesson.cells if cell.cell_type == "code"]


def prose(lesson):
    """The text cells, without their blocks of code."""
    text = "\n\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def text_outputs(cell):
    """What a cell printed or ended in, as text."""
    parts = [
        output.text if output.output_type == "stream" else output.data.get("text/plain", "") for output in cell.outputs
    ]
    return "\n".join(parts)


def key_cells(lesson):
    return [cell for cell in code(lesson) if "key-numbers" in cell.metadata.get("tags", ())]


# ---------------------------------------------------------------------------------------------------------------------
# How a lesson is built
# ---------------------------------------------------------------------------------------------------------------------


def test_every_lesson_has_its_place_in_the_course():
    assert PATHS
    assert [path.stem for path in PATHS if path.stem not in COURSE] == []


def test_is_a_valid_notebook_of_modest_size(path, lesson):
    nbformat.validate(lesson)
    assert (lesson.nbformat, lesson.nbformat_minor) == (4, 5)
    assert path.stat().st_size <= 600_000


def test_is_committed_as_it_ran(lesson):
    """With the outputs of one run from top to bottom, as lessons/run.py leaves them."""
    cells = code(lesson)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.source for cell in cells if not cell.outputs] == []  # every cell ends in something to look at
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    kept = nbformat.from_dict(lesson)
    RUN.clean(kept)
    assert kept == lesson, "run python lessons/run.py"


def test_begins_with_the_same_setup(lesson):
    first = code(lesson)[0]
    assert first.source == SETUP
    assert first.metadata.tags == ["setup"]


def test_cells_are_short(lesson):
    assert [cell.source for cell in code(lesson) if len(cell.source.splitlines()) > 15] == []


def test_opens_with_what_it_teaches_needs_and_takes(path, lesson):
    setup = next(k for k, cell in enumerate(lesson.cells) if cell.cell_type == "code")
    header = "\n".join(cell.source for cell in lesson.cells[:setup])
    assert header.startswith(f"# Lesson {path.stem[:2]} · ")
    assert [word for word in ("learn", "need", "two", "cores", "read") if word not in header.lower()] == []
    stated = re.search(r"(half a|a|\d+) (s|seconds?|minutes?) to run on two cores", header)
    assert stated, "the header says '30 s to run on two cores', 'half a minute to run on two cores' or the like"
    number = {"half a": 0.5, "a": 1.0}.get(stated[1]) or float(stated[1])
    assert 0 < number * (60 if stated[2].startswith("minute") else 1) <= ONE


def test_closes_with_summary_quiz_and_what_comes_next(lesson):
    text = prose(lesson)
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[-3:] == ["In short", "Quiz", "Next"]
    quiz = text.partition("## Quiz")[2].partition("## Next")[0]
    answers = re.findall(r"<details>\s*<summary>Answer</summary>(.*?)</details>", quiz, re.DOTALL)
    assert len(answers) == 3
    assert [answer for answer in answers if len(answer.split()) < 5] == []


def test_every_figure_has_words(lesson):
    for cell in code(lesson):
        shows = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert shows == ("alt" in cell.metadata), cell.source
        assert not shows or len(cell.metadata.alt) >= 30
    assert [alt for alt in re.findall(r"!\[([^\]]*)\]", prose(lesson)) if len(alt) < 30] == []


def test_names_no_machine(lesson):
    for cell in lesson.cells:
        outputs = [
            str(o.get("text", "")) + str({k: v for k, v in o.get("data", {}).items() if "image" not in k})
            for o in cell.get("outputs", ())
        ]
        for text in (cell.source, *outputs):
            assert MACHINE.search(text) is None, MACHINE.search(text)


def test_links_lead_somewhere(path, lesson):
    links = re.findall(r"\]\(([^)#\s]+)", prose(lesson))
    local = [link for link in links if not link.startswith("https://")]
    assert any(link.startswith(f"../labs/lab{path.stem[:2]}_") for link in local)
    later = {f"{name}.ipynb" for name in COURSE}
    if not list(LABS.glob("*.ipynb")):  # the labs are made after the lessons
        later |= {link for link in local if re.fullmatch(r"\.\./labs/lab\d\d_\w+\.ipynb", link)}
    assert [link for link in local if link not in later and not (FOLDER / link).exists()] == []


def test_claims_name_what_exists(lesson):
    """Files, tests and commands that prose names in backticks."""
    spans = re.findall(r"`([^`\n]+)`", prose(lesson))
    for span in spans:
        name, _, test = span.partition("::")
        if re.fullmatch(r"(?:tests|docs|benchmarks|minigrpo|labs|lessons)/[\w./-]+\.(?:py|md|json|csv|yaml)", name):
            assert (ROOT / name).is_file(), name
        if test:
            defined = {
                node.name
                for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
                if isinstance(node, ast.FunctionDef)
            }
            assert test in defined, span
    for command in (span.partition("-m minigrpo ")[2] for span in spans if re.match(r"python3? -m minigrpo \w", span)):
        words = shlex.split(command)
        parser = llm.build_parser() if words[0] == "llm" else build_parser()
        arguments = words[words[0] == "llm" :]
        if len(arguments) == 1:  # the bare name of a command, which may need more to run
            with pytest.raises(SystemExit, match="^0$"):
                parser.parse_args([*arguments, "--help"])
        else:
            parser.parse_args(arguments)


def test_has_key_numbers(lesson):
    cells = key_cells(lesson)
    assert cells
    for cell in cells:
        assert text_outputs(cell).strip(), cell.source
        assert 0 < cell.metadata.get("rtol", 1e-3) <= 0.5
    assert [cell.source for cell in code(lesson) if "rtol" in cell.metadata and cell not in cells] == []


# ---------------------------------------------------------------------------------------------------------------------
# What its cells compute
# ---------------------------------------------------------------------------------------------------------------------


def differences(committed, found, rtol):
    """Say in what two texts differ: words (spaces apart), or numbers by more than `rtol` of the larger."""
    words, other = ("".join(NUMBER.sub("#", text).split()) for text in (committed, found))
    if words != other:
        return [f"words: {words!r} became {other!r}"]
    pairs = zip(NUMBER.findall(committed), NUMBER.findall(found), strict=True)
    return [f"{a} became {b}" for a, b in pairs if not math.isclose(value(a), value(b), rel_tol=rtol)]


def value(number):
    return float(number.replace("−", "-"))


@pytest.mark.parametrize(
    ("found", "count"),
    [
        ("grpo  0.412 of −3 in 1.5e-3", 0),
        ("grpo   0.4121 of -3.0 in .0015", 0),  # within the tolerance; spaces and ways of writing do not count
        ("grpo  0.413 of −3 in 1.5e-3", 1),  # 0.2% off
        ("grpo  0.412 of 3 in 1.5e-3", 1),
        ("grpo  0.412 of −3 in 1.5e-4", 1),
        ("grpo  nan of −3 in 1.5e-3", 1),
        ("prm  0.412 of −3 in 1.5e-3", 1),
        ("grpo  0.412 of −3", 1),
        ("", 1),
    ],
)
def test_comparison_finds_a_changed_number(found, count):
    committed = "grpo  0.412 of −3 in 1.5e-3"
    assert len(differences(committed, found, rtol=1e-3)) == count
    assert differences(committed, "grpo  0.5 of −3 in 1.5e-3", rtol=0.3) == []


def test_progress_and_metadata_do_not_stay():
    v4 = nbformat.v4
    kept = v4.new_output("stream", name="stdout", text="kept\r")
    warning = v4.new_output("stream", name="stderr", text="a warning stays, and fails the test above")
    bars = [v4.new_output("stream", name="stderr", text="\r 50%|██"), v4.new_output("display_data", {RUN.WIDGET: {}})]
    metadata = {"tags": ["key-numbers"], "execution": {"iopub.execute_input": "2026"}, "scrolled": True}
    cell = v4.new_code_cell("x", outputs=[kept, *bars, warning], metadata=metadata)
    language = {"name": "python", "version": "3.12.1"}
    notebook = v4.new_notebook(cells=[cell], metadata={"widgets": {}, "language_info": language})
    RUN.clean(notebook)
    assert notebook.cells[0].outputs == [kept, warning]
    assert notebook.cells[0].metadata == {"tags": ["key-numbers"]}
    assert notebook.metadata == RUN.METADATA


SECONDS = {}


@pytest.mark.slow
@pytest.mark.lessons
def test_runs_and_gives_the_committed_numbers(path, lesson):
    committed = [text_outputs(cell) for cell in key_cells(lesson)]
    SECONDS[path] = RUN.execute(lesson, timeout=ONE)
    test_is_committed_as_it_ran(lesson)
    found = zip(key_cells(lesson), committed, strict=True)
    changed = [differences(text, text_outputs(cell), cell.metadata.get("rtol", 1e-3)) for cell, text in found]
    assert sum(changed, []) == []
    assert SECONDS[path] < ONE


@pytest.mark.slow
@pytest.mark.lessons
def test_all_together_stay_below_their_time():
    if set(SECONDS) != set(PATHS):
        pytest.skip("not every lesson ran")
    print({path.stem: round(seconds) for path, seconds in SECONDS.items()})
    assert sum(SECONDS.values()) < TOTAL


@pytest.mark.slow
@pytest.mark.lessons
def test_setup_works_a_second_time():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SETUP) for _ in range(2)])
    RUN.execute(notebook)
    first, second = notebook.cells
    assert text_outputs(first) == text_outputs(second) == f"minigrpo {minigrpo.__version__}\n"
