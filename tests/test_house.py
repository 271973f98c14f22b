"""The house keeps its own promises: requirements, imports, public names, file sizes."""

import ast
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import minigrpo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it on Python 3.10

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGE = ROOT / "minigrpo"
ROOMS = ("experiments", "viz")  # packages whose modules may import what their row of MAY_IMPORT names
FILES = sorted([*PACKAGE.glob("*.py"), *(file for room in ROOMS for file in (PACKAGE / room).glob("*.py"))])


def test_requirements_stand_in_pyproject_with_the_same_bounds():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    student = {r.name: r.specifier for r in map(Requirement, lines)}
    extras = PROJECT["optional-dependencies"]
    core = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    student_extras = set(extras) - {"dev", "trl", "gym", "browser", "site"}
    optional = {r.name: r.specifier for name in student_extras for r in map(Requirement, extras[name])}
    assert student == core | optional
    assert {"torch", "transformers", "gymnasium", "jupyter", "matplotlib", "datasets"} <= set(student)


def test_an_upper_bound_has_a_reason():
    comment, bounded = "", set()
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comment += line
            continue
        if line and "<" in str(Requirement(line).specifier):
            bounded.add(Requirement(line).name)
            assert "release" in comment, f"{line}: say which releases break what"
        comment = ""
    assert bounded == {"transformers", "math-verify"}
    extras = PROJECT["optional-dependencies"]
    everywhere = {r.name for lines in extras.values() for r in map(Requirement, lines) if "<" in str(r.specifier)}
    assert everywhere == bounded | {"reasoning-gym", "ruff", "ty"}, "its reason stands in pyproject.toml"


def test_the_pythons_are_told_alike():
    from grader.doctor import PYTHONS

    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    lowest, highest = (".".join(map(str, version)) for version in PYTHONS)
    assert (named[0], named[-1]) == (lowest, highest)
    assert PROJECT["requires-python"] == f">={lowest}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"not {PYTHONS[0]} <= sys.version_info[:2] <= {PYTHONS[1]}" in makefile
    assert f'"{highest}"' in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_one_version():
    assert minigrpo.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_runs_what_it_promises():
    """`.ci/run` is the one list; the public workflow calls both of its parts."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100, ".ci/run is not executable"
    assert "set -euo pipefail" in script
    fast, slow = (re.search(rf"{part}\(\) {{\n(.*?)\n}}", script, re.DOTALL)[1] for part in ("fast", "slow"))
    assert re.findall(r"timed make ([\w-]+)", fast) == ["lint", "test", "demo"]
    assert {"site", "test-trl-oldest"} <= set(re.findall(r"timed make ([\w-]+)", slow))
    left_out = PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"][-1]  # what `make test` leaves out runs there
    promised = set(re.findall(r"\w+", left_out)) - {"not", "or"}
    assert promised == set(re.findall(r"-m (\w+)", slow)) | {"engines", "slurm"}
    assert re.search(r"engines\(\) {\n  timed make test-engines\n}", script)
    cluster = re.search(r"cluster\(\) {\n(.*?)\n}", script, re.DOTALL)[1]
    assert re.findall(r"timed make (.+)", cluster) == [".venv/hub/.installed", 'test ARGS="-n 0 -m slurm"']
    whole = script.rpartition('if [ "$part" = all ]; then\n')[2].partition("\nelse")[0]
    assert re.findall(r"^  (\w+)$", whole, re.MULTILINE) == ["fast", "slow", "cluster", "engines"]
    assert 'export PIP_CONSTRAINT="$PWD/.ci/constraints.txt"' in script
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert [part for part in ("fast", "slow") if f"run: .ci/run {part}" not in workflow] == []
    assert "apt-get" not in workflow


def test_ci_installs_nothing_unasked():
    """On a machine that lacks the packages, with somebody at a terminal, it says what to do, and stops."""
    if shutil.which("bash") is None or shutil.which("script") is None:
        pytest.skip("needs bash, and util-linux's script for a terminal")
    tools = {name: shutil.which(name) for name in ("bash", "dirname", "id")}
    code = 'PATH=$1; hash -r; apt-get() { echo INSTALLS; }; export -f apt-get; exec "$2" "$3"'
    with tempfile.TemporaryDirectory() as folder:
        for name, path in tools.items():
            (Path(folder) / name).symlink_to(path)
        inner = ["bash", "-c", code, "_", folder, tools["bash"], str(ROOT / ".ci" / "run")]
        command = ["script", "-qec", shlex.join(inner), "/dev/null"]
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    packages = "bubblewrap chromium chromium-driver slurm-wlm munge slurmdbd mariadb-server task-spooler npm"
    assert f"{packages} missing: install them" in done.stdout
    assert "INSTALLS" not in done.stdout


def test_no_tracked_file_exceeds_5_mb():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git clone, or no git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip(f"git cannot list the files: {listed.stderr.decode()}")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert files
    assert [str(f) for f in files if f.is_file() and f.stat().st_size > 5_000_000] == []


def test_public_names():
    functions = "same_prefix step_sizes step_mean process_rewards group_advantages policy_loss ProcessTree".split()
    assert [name for name in functions if not callable(getattr(minigrpo, name, None))] == []
    assert {"grpo", "prm", "lambda_grpo"} <= set(minigrpo.OBJECTIVES)


def test_import_is_light():
    code = "import sys, minigrpo; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torch" in loaded.stdout.split()
    assert {"transformers", "matplotlib", "datasets", "trl"} & set(loaded.stdout.split()) == set()


# What a file may import besides the standard library: other distributions, and modules of the package. A file that
# is not listed may import anything but the ends of the package, which only the command line imports.
ENDS = {"viz", "report", "demo", "cli", "llm", "integrations"}
BASE = {"torch", "checks"}
CORE = BASE | {"steps", "losses"}
MIDDLE = CORE | {"numpy", "gymnasium", "objectives", "packing", "tree", "envs"}
TOP = MIDDLE | {"tqdm", "files", "policies", "rollout"}
MAY_IMPORT = {
    "checks": {"torch"},
    "steps": BASE,
    "losses": BASE,
    "objectives": CORE,
    "packing": CORE,
    "tree": {"explorer"},
    "explorer": set(),
    "files": set(),
    "commands": set(),
    "paper": set(),
    "stats": {"numpy"},
    "settings": {"checks"},
    "envs": {"gymnasium", "numpy"},
    "policies": MIDDLE,
    "rollout": MIDDLE,
    "trainer": TOP | {"settings"},
    "experiments": TOP | {"trainer", "settings", "paper", "stats"},
    "viz": {"torch", "numpy", "matplotlib", "checks", "paper", "packing", "report", "tree", "experiments"},
}


def imports(source):
    """Names that a file imports anywhere in it: `steps` for minigrpo.steps, `torch` for torch.nn."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "minigrpo" + (f".{node.module}" if node.module else "") if node.level else node.module
            names = [f"minigrpo.{alias.name}" for alias in node.names] if module == "minigrpo" else [module]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            found = rest.partition(".")[0] if top == "minigrpo" else top
            if found not in sys.stdlib_module_names:
                yield found


def test_imports_reads_every_form():
    source = "import os, torch.nn as nn, minigrpo.steps\nfrom minigrpo import viz\nfrom .llm import tasks\n"
    source += "from . import cli\ndef f():\n    from minigrpo.integrations.trl import x\n"
    assert set(imports(source)) == {"torch", "steps", "viz", "llm", "cli", "integrations"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(file):
    found = set(imports(file.read_text(encoding="utf-8")))
    name = file.stem if file.parent == PACKAGE else file.parent.name
    if name in MAY_IMPORT:
        assert found - {name} - MAY_IMPORT[name] == set()
    elif name not in {"cli", "demo", "report", "__main__"}:
        assert found & ENDS == set()


# One thought a line outside the core, and what CONTRIBUTING says of it

CORE_FILES = {PACKAGE / f"{name}.py" for name in ("steps", "objectives", "losses")}
SECOND_CIRCLE = [*PACKAGE.rglob("*.py"), *(ROOT / "grader").rglob("*.py")]
NO_TOKEN = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}


def tokens_and_lines(text):
    """Python's tokens, comments left out, and the lines that are not empty."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type not in NO_TOKEN for token in tokens), sum(bool(line.strip()) for line in text.splitlines())


def test_tokens_and_lines_by_hand():
    text = '"""Two\nlines."""\n\nx = f(1)  # a comment\n'  # a string, x, =, f, (, 1, )
    assert tokens_and_lines(text) == (7, 3)


@pytest.mark.parametrize("folder", ["minigrpo", "grader"])
def test_one_thought_a_line(folder):
    counts = [
        tokens_and_lines(path.read_text(encoding="utf-8"))
        for path in (ROOT / folder).rglob("*.py")
        if path not in CORE_FILES
    ]
    tokens, lines = map(sum, zip(*counts, strict=True))
    assert tokens / lines <= 7.5


def public_functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [*tree.body, *(member for owner in classes for member in owner.body)]:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield node, [argument.arg for argument in arguments if argument.arg not in {"self", "cls"}]


def test_three_arguments_or_more_are_told_one_a_line():
    silent = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "grader").glob("*.py")]:
        for node, arguments in public_functions(path):
            text = ast.get_docstring(node) or ""
            if len(arguments) < 3 or not text or re.search("^Args: as `", text, re.MULTILINE):
                continue
            told = set(re.findall(r"^    (\w+): ", text, re.MULTILINE))
            if missing := sorted(set(arguments) - told):
                silent.append(f"{path.name}, {node.name}: {', '.join(missing)}")
    assert silent == []


RUN_FILES = ("manifest.json", "metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors")


@pytest.mark.parametrize("name", RUN_FILES)
def test_one_module_spells_the_files_of_a_run(name):
    """Text and messages may name them; a string that is the name and nothing else is a path."""
    spelt = []
    for path in [*PACKAGE.rglob("*.py"), ROOT / "grader" / "adapters.py", *(ROOT / "lessons" / "data").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value == name:
                spelt.append(path.name)
    assert spelt in (["runs.py"], ["files.py"])


def test_no_ladder_asks_which_forward_it_is():
    """What differs between forwards stands in their entries of FORWARDS."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq):
                sides = [node.left, *node.comparators]
                named = {side.value for side in sides if isinstance(side, ast.Constant)}
                assert not named & {"padded", "shared", "packed"}, f"{path.name}, line {node.lineno}"


def test_the_loop_of_the_language_models_fits_a_screen():
    path = PACKAGE / "llm" / "training.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 260
    (train,) = (node for node, _ in public_functions(path) if node.name == "train")
    body = train.body[1:]  # without its docstring
    assert body[-1].end_lineno - body[0].lineno < 60


def test_no_library_code_raises_an_interrupt():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"raise KeyboardInterrupt", path.read_text(encoding="utf-8")), path.name
