"""The archive for students: the course without solutions/, tests and whatever is the instructor's.

The checks under the exercises stay, and what they compare with becomes data: of each lab in grader/labs its public
cases and what came out of them (grader/public.py), and of its code what judges an answer, or what a notebook imports.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from grader.exercise import Exercise
from grader.public import written
from minigrpo.files import write_bytes

CONTENTS = (
    "no solutions/, no model answers and no tests. Of grader/labs it holds the public cases and what they expect, "
    "and no function that answers an exercise; minigrpo itself has several of those that labs ask for"
)
FOLDERS = ("minigrpo", "grader", "labs", "lessons", "docs")
FILES = (
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "pyproject.toml",
    "requirements.txt",
    ".gitignore",
)
LEFT_OUT = ("__pycache__", ".ipynb_checkpoints", "instructor.md", "truth.json", "tutor.md")
TUTOR = ("AGENTS.md", "CLAUDE.md")  # where assistants look for what they are asked
LABS, MEASURED = "grader/labs/lab[0-9][0-9].py", "grader/thresholds/*.py"
# the module of a lab in the archive
MODULE = '''"""What the public check of {lab} needs beside {lab}.json; made by `python -m grader release`."""

from __future__ import annotations

from pathlib import Path

from grader.public import read_exercises

{code}

JUDGES = {{{judges}}}
EXERCISES = read_exercises(Path(__file__).with_suffix(".json"), JUDGES)
'''


def release(root: Path, out: Path, tutor: bool = True) -> int:
    """Write the archive, every file under one folder named after it.

    All files have the date of the newest: the same files make the same archive, but for what a mistake draws at random.

    Args:
        root: the course's folder.
        out: the archive.
        tutor: ask assistants, by the files of TUTOR, to help and not to solve.

    Returns: how many files it holds.

    Raises: ValueError where `root` is not the course's folder; OSError.
    """
    missing = [
        name for name in ("minigrpo", "grader", "labs", "README.md") if not (root / name).exists()
    ]
    if missing:
        raise ValueError(
            f"release runs in the course's folder, and {root} lacks {', '.join(missing)}"
        )
    inside = [root / name for name in FILES if (root / name).exists()]
    for folder in FOLDERS:
        inside += [
            p
            for p in sorted((root / folder).rglob("*"))
            if p.is_file() and not set(p.parts) & set(LEFT_OUT) and not p.match(MEASURED)
        ]
    newest = time.gmtime(max(path.stat().st_mtime for path in inside))
    date = max(newest[:6], (1980, 1, 1, 0, 0, 0))  # a zip knows none before
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in inside}
    asked = _asked(contents)
    for path in inside:
        if path.match(LABS):
            name = path.relative_to(root).with_suffix("").as_posix()
            module, data = students_lab(path.stem, asked.get(path.stem, set()))
            contents |= {f"{name}.py": module.encode(), f"{name}.json": data.encode()}
    if tutor:
        contents |= dict.fromkeys(TUTOR, Path(__file__).with_name("tutor.md").read_bytes())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(f"{out.stem}/{name}", date)
            entry.external_attr = 0o644 << 16
            file.writestr(entry, content, zipfile.ZIP_DEFLATED)
    write_bytes(out, archive.getvalue())
    return len(contents)


def _asked(contents: dict[str, bytes]) -> dict[str, set[str]]:
    """The names that notebooks import from a module of grader/labs."""
    asked: dict[str, set[str]] = {}
    for name, content in contents.items():
        if name.endswith(".ipynb"):
            lines = re.findall(r"from grader\.labs\.(lab\d\d) import ([\w, ]+)", content.decode())
            for lab, names in lines:
                asked.setdefault(lab, set()).update(re.findall(r"\w+", names))
    return asked


def students_lab(lab: str, asked: set[str]) -> tuple[str, str]:
    """The module of a lab and its data, as the archive has them.

    Raises: ValueError where the module would hold a reference or a mistake, or where it is itself of an archive.
    """
    module = import_module(f"grader.labs.{lab}")
    tree = ast.parse(inspect.getsource(module))
    judges = _judges(tree)
    if set(judges) != {exercise.id for exercise in module.EXERCISES}:
        text = f"release can't read the exercises in grader/labs/{lab}.py: each must be spelt with its id"
        raise ValueError(f"{text}, and in a students' archive there are none")
    own = {name: judge for name, judge in judges.items() if judge is not None}
    kept = _needed(tree, asked.union({"ARTIFACTS"}, *map(_names, own.values())))
    if answers := kept & _answers(module.EXERCISES, module.__name__):
        found = ", ".join(sorted(answers))
        raise ValueError(f"{lab}: a judge or a notebook needs {found}, which answers an exercise")
    code = "\n\n".join(ast.unparse(node) for node in _excerpt(tree, kept))
    rows = ", ".join(f"{name!r}: {ast.unparse(judge)}" for name, judge in own.items())
    return MODULE.format(lab=lab, code=code, judges=rows), written(module.EXERCISES)


def _judges(tree: ast.Module) -> dict[str, ast.expr | None]:
    """The judge of each exercise, by its id; None for the usual one."""
    judges = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _names(node.func) == {"Exercise"}:
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            judges[ast.literal_eval(options["id"])] = options.get("judge")
    return judges


def _needed(tree: ast.Module, names: set[str]) -> set[str]:
    """These names as far as the module binds them, and those that what they stand for needs."""
    bound = {name: node for node in tree.body for name in _bound(node)}
    needed: set[str] = set()
    while new := (names & set(bound)) - needed:
        needed |= new
        names = set().union(*(_names(bound[name]) for name in new))
    return needed


def _answers(exercises: Sequence[Exercise], module: str) -> set[str]:
    """The names in a module of its references and mistakes, or of the functions that make them."""
    functions: list[Any] = [exercise.reference for exercise in exercises]
    functions += [mistake.wrong for exercise in exercises for mistake in exercise.mistakes]
    return {f.__qualname__.partition(".")[0] for f in functions if f.__module__ == module}


def _excerpt(tree: ast.Module, names: set[str]) -> Iterator[ast.stmt]:
    """The statements that bind these names; of imports what is named."""
    for node in tree.body:
        if not names.intersection(_bound(node)):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [alias for alias in node.names if names & {alias.asname or alias.name}]
        yield node


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement of a module binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name for alias in node.names}
    return {
        name.id
        for target in (*getattr(node, "targets", ()), getattr(node, "target", None))
        if target is not None
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }


def _names(node: ast.AST) -> set[str]:
    """All names in a piece of code."""
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
