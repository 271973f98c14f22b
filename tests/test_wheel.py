"""The wheel, as somebody without a clone has it: built, installed into an empty environment, used in another folder."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.wheel


def run(*command, cwd):
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment's commands, with the wheel and what it asks for in it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves folders where it builds
    names = ("pyproject.toml", "README.md", "LICENSE", "minigrpo")
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("minigrpo-*.whl")
    venv.create(folder / "env", with_pip=True)
    commands = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    run(commands / "python", "-m", "pip", "install", "--quiet", f"{wheel}[plots,llm]", cwd=folder)
    return commands


def test_it_is_not_the_clone(installed, tmp_path):
    where = run(installed / "python", "-c", "import minigrpo; print(minigrpo.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_grader_stays_in_the_clone(installed, tmp_path):
    """It is a folder of the course and a very common name: nothing of the package imports it."""
    code = "import importlib.util; print(importlib.util.find_spec('grader'))"
    assert run(installed / "python", "-c", code, cwd=tmp_path).strip() == "None"


def test_demo(installed, tmp_path):
    printed = run(installed / "minigrpo", "demo", "--seeds", "5", "--json", "demo.json", cwd=tmp_path)
    assert "GRPO = PRM" in printed
    report = (tmp_path / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    assert report.count("<img") + report.count("<svg") >= 3
    assert set(json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))) >= {"theorem", "rows"}


def test_a_language_model_learns(installed, tmp_path):
    run(installed / "minigrpo", "llm", "train", "--preset", "cpu", "--out", "run", cwd=tmp_path)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    accuracy = [row["eval_accuracy"] for row in map(json.loads, lines) if "eval_accuracy" in row]
    assert accuracy[-1] > accuracy[0] + 0.15, accuracy


def test_the_explorer_and_the_theorem(installed, tmp_path):
    run(installed / "minigrpo", "explore", "--out", "page.html", cwd=tmp_path)
    assert "<script" in (tmp_path / "page.html").read_text(encoding="utf-8")
    run(installed / "minigrpo", "theorem", "--groups", "20", cwd=tmp_path)
