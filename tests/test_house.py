"""The house keeps its own promises: requirements, imports, public names, file sizes."""

import ast
import re
import shutil
import subprocess
import sys
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
    script = ROOT / ".ci" / "run"
    commands = [line.strip() for line in script.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert script.stat().st_mode & 0o100, ".ci/run is not executable"
    assert "set -euo pipefail" in commands
    makes = [c.removeprefix("timed make ") for c in commands if c.startswith("timed make ")]
    assert makes[:3] == ["lint", "test", "demo"]
    left_out = PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"][-1]  # what `make test` leaves out runs there
    promised = set(re.findall(r"\w+", left_out)) - {"not", "or"}
    assert promised == {m for c in makes for m in re.findall(r"-m (\w+)", c)}
    assert 'export PIP_CONSTRAINT="$PWD/.ci/constraints.txt"' in script.read_text(encoding="utf-8")
    assert {"site", "test-trl-oldest"} <= set(makes)


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
