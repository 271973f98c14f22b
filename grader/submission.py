"""A student's submission: one notebook, alone, in a folder or in a zip. It is read as data and never run here.

Cells are found by the exercise in their metadata, else by the function they define; other metadata, outputs and claimed
points are ignored. Sizes are capped, links and paths that lead outside are refused, and only expected names are read.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import stat
import symtable
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

MIB = 2**20
LARGEST_NOTEBOOK = 8 * MIB  # with its pictures
LARGEST_CELL = 100_000  # characters of code
LARGEST_FILE = 64 * MIB  # an adapter
LARGEST_ZIP = 80 * MIB
MOST_MEMBERS = 200  # of a zip
MOST_CELLS = 1000  # of a notebook

WRITE_HERE = "*Write your answer here.*"
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what reading a source may raise


class SubmissionError(ValueError):
    """A submission that can't be read; the sentence is for the student."""


@dataclass(frozen=True)
class Cell:
    """A cell of code: what it defines at its top level, and every name it reads."""

    place: int  # in the notebook
    label: str  # the exercise, or "cell 7"
    source: str
    defines: frozenset[str]
    reads: frozenset[str]


@dataclass(frozen=True)
class Submission:
    """What a student handed in for one lab."""

    student: str
    sha256: str  # of all the bytes that are graded
    exercises: Mapping[str, Cell]  # by exercise
    helpers: tuple[Cell, ...]  # imports and definitions in other cells
    answers: Mapping[str, str]  # what was written under the questions, by exercise
    files: Mapping[str, bytes]  # what else the lab asks for
    problems: Mapping[str, str]  # why an exercise can't be graded, by exercise

    def cells_for(self, exercise_id: str) -> list[tuple[str, str]]:
        """The cells that an exercise needs, as they stand: its own, and those that define a name which these read.

        So a cell that breaks costs only the exercises that use it.
        """
        others = [*self.helpers, *(cell for name, cell in self.exercises.items() if name != exercise_id)]
        needed = [self.exercises[exercise_id]]
        for cell in needed:  # which grows meanwhile
            found = [other for other in others if other.defines & cell.reads]
            others = [other for other in others if other not in found]
            needed += found
        return [(cell.label, cell.source) for cell in sorted(needed, key=lambda cell: cell.place)]


def read_submission(path: Path, student: str, entry: Mapping, extra_files: Sequence[str] = ()) -> Submission:
    """Read the submission of one lab.

    Args: path: a notebook, a zip made by `python -m grader submit`, or a folder that holds one of them;
        student: who handed it in; entry: the lab in labs/manifest.json; extra_files: other names the lab asks for.
    Raises: SubmissionError where there is no notebook, or none that can be read.
    """
    files = _files(path, {entry["notebook"], *extra_files})
    notebooks = [name for name in files if name.endswith(".ipynb")]
    if not notebooks:
        raise SubmissionError(f"no notebook in {path.name}: hand in {entry['notebook']}, or the zip made of it")
    cells = _cells(files[notebooks[0]])
    digest = hashlib.sha256(b"".join(os.fsencode(name) + b"\0" + files[name] for name in sorted(files))).hexdigest()
    extra = {name: content for name, content in files.items() if name not in notebooks}
    return Submission(student, digest, files=extra, **_sort_cells(cells, entry["exercises"]))


def _files(path: Path, names: set[str]) -> dict[str, bytes]:
    """The expected files of a submission, and its one notebook, by their bare names."""
    if path.is_symlink():
        raise SubmissionError(f"{path.name} is a link: hand in the file itself")
    if path.is_dir():
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.is_symlink()]
        zips = [p for p in inside if p.suffix == ".zip"]
        if zips and not any(p.suffix == ".ipynb" for p in inside):
            if len(zips) > 1:
                raise SubmissionError(f"{len(zips)} zips in {path.name}: hand in one")
            return _files(zips[0], names)
        chosen = _choose([p.relative_to(path).as_posix() for p in inside], names)
        return {name: _read((path / place).open("rb"), name) for name, place in chosen.items()}
    if path.suffix == ".zip" and path.is_file():
        return _unzip(path, names)
    if path.suffix == ".ipynb" and path.is_file():
        return {path.name: _read(path.open("rb"), path.name)}
    raise SubmissionError(f"{path.name} is neither a notebook (.ipynb) nor a zip")


def _choose(places: Sequence[str], names: set[str]) -> dict[str, str]:
    """Which of all the files to read, by bare name: the expected ones and one notebook, none out of hidden folders."""
    chosen: dict[str, str] = {}
    for place in places:
        parts = _parts(place)
        name = parts[-1]
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if name in names or name.endswith(".ipynb"):
            if name in chosen:
                raise SubmissionError(f"{name} is there twice: hand in one")
            chosen[name] = place
    notebooks = [name for name in chosen if name.endswith(".ipynb")]
    if len(notebooks) > 1:
        raise SubmissionError(f"{len(notebooks)} notebooks, {', '.join(notebooks[:2])} among them: hand in one")
    return chosen


def _parts(place: str) -> list[str]:
    return re.split(r"[/\\]", place)


def _read(file: IO[bytes], name: str) -> bytes:
    largest = LARGEST_NOTEBOOK if name.endswith(".ipynb") else LARGEST_FILE
    with file:
        content = file.read(largest + 1)  # what a header claims about the size is not believed
    if len(content) > largest:
        raise SubmissionError(f"{name} is larger than {largest // MIB} MiB: clear its outputs and hand it in again")
    return content


def _unzip(path: Path, names: set[str]) -> dict[str, bytes]:
    """Read the expected members of a zip into memory; nothing is ever extracted."""
    if path.stat().st_size > LARGEST_ZIP:
        raise SubmissionError(f"{path.name} is larger than {LARGEST_ZIP // MIB} MiB: hand in the zip that submit makes")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_MEMBERS:
                raise SubmissionError(f"{path.name} holds {len(members)} files: hand in the zip that submit makes")
            for member in members:
                _refuse_unsafe(member)
            chosen = _choose([member.filename for member in members], names)
            return {name: _read(archive.open(place), name) for name, place in chosen.items()}
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, RuntimeError, EOFError, OSError) as error:
        raise SubmissionError(f"{path.name} can't be read as a zip ({error}): make it again with submit") from error


def _refuse_unsafe(member: zipfile.ZipInfo) -> None:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise SubmissionError(f"the zip holds a link, {member.filename!r}: hand in the zip that submit makes")
    parts = _parts(member.filename)
    if ".." in parts or not parts[0] or ":" in parts[0]:
        raise SubmissionError(f"the zip holds a path that leads outside, {member.filename!r}")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others can't be read in part
        raise SubmissionError(f"the zip packs {member.filename!r} in a rare way: hand in the zip that submit makes")


def _cells(content: bytes) -> list[dict]:
    """A notebook's cells as plain dicts with cell_type, source, metadata; nothing else of it is looked at."""
    try:
        notebook = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number of 5000 digits
        raise SubmissionError("the notebook is damaged (it is no JSON): save it again and hand it in again") from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise SubmissionError("the notebook has no cells: is it a notebook of version 4?")
    if len(cells) > MOST_CELLS:
        raise SubmissionError(f"the notebook holds {len(cells)} cells, more than {MOST_CELLS}: take the lab's notebook")
    read = []
    for cell in cells:
        if isinstance(cell, dict) and cell.get("cell_type") in ("code", "markdown"):
            source = cell.get("source", "")
            source = "".join(line for line in source if isinstance(line, str)) if isinstance(source, list) else source
            metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
            if isinstance(source, str):
                source = source.encode("utf-8", "replace").decode()  # half a character could not be written again
                read.append({"type": cell["cell_type"], "source": source, "exercise": metadata.get("exercise")})
    return read


def _sort_cells(cells: list[dict], rows: Sequence[Mapping]) -> dict:
    """Find each exercise's cell: by its metadata, else by the name of its function."""
    code = {row["id"]: row["function"] for row in rows if row["kind"] == "code"}
    written = {row["id"]: row["question"] for row in rows if row["kind"] == "written"}
    found: dict[str, list[Cell]] = {exercise: [] for exercise in code}
    answers: dict[str, str] = {}
    problems: dict[str, str] = {}
    helpers, unclaimed = [], []
    for place, cell in enumerate(cells, start=1):
        exercise = cell["exercise"] if isinstance(cell["exercise"], str) else None
        if exercise in written and cell["type"] == "markdown":
            answer = cell["source"][:LARGEST_CELL].removeprefix(written[exercise]).replace(WRITE_HERE, "").strip()
            answers |= {exercise: answer} if answer else {}
        elif cell["type"] == "code":
            parsed = _parse(place, exercise if exercise in code else f"cell {place}", cell["source"])
            (found[exercise] if exercise in code else unclaimed).append(parsed)
    for exercise, function in code.items():
        if not found[exercise]:
            found[exercise] = [cell for cell in unclaimed if function in cell.defines]
        if len(found[exercise]) > 1:
            problems[exercise] = f"{len(found[exercise])} cells say they are {exercise}: keep one of them"
        elif not found[exercise]:
            problems[exercise] = f"no cell for {exercise}: take the lab's notebook and write in its cells"
    kept = {exercise: cells[0] for exercise, cells in found.items() if exercise not in problems}
    helpers = tuple(_definitions(cell) for cell in unclaimed if cell not in kept.values())
    for exercise, cell in kept.items():  # a later cell that defines the function anew counts, as in the notebook
        kept[exercise] = replace(cell, reads=cell.reads | {code[exercise]})
    return {"exercises": kept, "helpers": helpers, "answers": answers, "problems": problems}


def _parse(place: int, label: str, source: str) -> Cell:
    """Read which names a cell defines and reads; what is no Python defines nothing, and fails where it is run."""
    if len(source) > LARGEST_CELL:
        source = f'raise ValueError("this cell is longer than {LARGEST_CELL} characters")'
    elif not _is_python(source):  # in Python a line may begin with % too
        source = plain_python(source)
    return Cell(place, label, source, *_names(source))


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except NOT_PYTHON:
        return False
    return True


def _names(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a cell binds at its top level, and those that it reads from there, in whatever scope."""
    try:
        top = symtable.symtable(source, "cell", "exec")
    except NOT_PYTHON:
        return frozenset(), frozenset()
    defines = {name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()}
    reads, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        reads |= {n.get_name() for n in table.get_symbols() if n.is_referenced() and (table is top or n.is_global())}
    return frozenset(defines), frozenset(reads)


def plain_python(source: str) -> str:
    """Drop IPython's magics, shell lines and questions; a cell of another language becomes empty."""
    if re.match(r"\s*%%(?!time|capture|timeit)", source):
        return ""
    return re.sub(r"(?m)^([ \t]*)([%!?].*|[\w.]+\?\??)[ \t]*$", r"\1pass", source)


def _definitions(cell: Cell) -> Cell:
    """Of a cell that is no exercise keep imports, functions, classes and assignments: no plots, no checks."""
    keep = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    try:
        tree = ast.parse(cell.source)
        tree.body = [node for node in tree.body if isinstance(node, keep)]
        return _parse(cell.place, cell.label, ast.unparse(tree))
    except NOT_PYTHON:
        return _parse(cell.place, cell.label, "")
