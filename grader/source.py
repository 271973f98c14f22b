"""One source for each lab: solutions/labNN_slug.py makes labs/labNN_slug.ipynb and its entry in labs/manifest.json.

The source is in jupytext's percent format. An exercise is a cell with `exercise="lab02.1" points=4` in its header; what
stands between `### BEGIN SOLUTION` and `### END SOLUTION` becomes a stub that raises. In a text cell the same markers
hold the model answer and the rubric of a written question.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from grader.exercise import Artifact, Exercise
from grader.labs import artifacts, exercises
from grader.submission import WRITE_HERE

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
LOOKS_LIKE_MARKER = re.compile(r"\b(begin|start|end|stop)\W*solution", re.IGNORECASE)
SHORTEST_SECRET = 20  # a solution's line of so many characters must not stand in labs/


class SourceError(ValueError):
    """A lab's source that can't be built; says where and why."""


@dataclass(frozen=True)
class Lab:
    """A lab, read from its source."""

    name: str  # "lab02"
    slug: str  # "lab02_process_steps"
    title: str
    cells: list[NotebookNode]  # with the solutions in them


def read_source(path: Path) -> Lab:
    """Read a lab's source. Raises SourceError."""
    import jupytext  # builds only: a student has no need of it

    slug = path.stem
    if not re.fullmatch(r"lab\d\d_[a-z0-9_]+", slug):
        raise SourceError(f"{path.name}: a source must be named as in lab02_process_steps.py")
    cells = jupytext.read(path, fmt="py:percent").cells
    title = re.match(r"# (.+)", cells[0].source) if cells else None
    if not title:
        raise SourceError(f"{path.name}: the first cell must begin with '# Lab NN · Title'")
    lab = Lab(slug[:5], slug, title[1], cells)
    _check(lab, path.name)
    return lab


def strip_solutions(cell: NotebookNode, where: str) -> str:
    """Give a cell's source without its solution: a stub that raises, or a place to write. Raises SourceError."""
    kept, inside, found = [], False, 0
    for line in cell.source.split("\n"):
        marker = line.strip()
        if marker in (BEGIN, END):
            if inside == (marker == BEGIN):
                raise SourceError(f"{where}: {marker!r} where none belongs")
            inside = marker == BEGIN
            if inside:
                found += 1
                stub = (
                    WRITE_HERE
                    if cell.cell_type == "markdown"
                    else f'raise NotImplementedError("{_id(cell)}")'
                )
                kept.append(line[: len(line) - len(line.lstrip())] + stub)
        elif LOOKS_LIKE_MARKER.search(line):
            raise SourceError(
                f"{where}: {marker!r} resembles a marker but is not one: write {BEGIN!r} or {END!r}"
            )
        elif not inside:
            kept.append(line)
    if inside:
        raise SourceError(f"{where}: {BEGIN!r} without {END!r}")
    if bool(found) != bool(_id(cell)):
        raise SourceError(
            f"{where}: a cell with an exercise must hold a solution, and no other cell may"
        )
    return "\n".join(kept)


def solution_lines(lab: Lab) -> list[str]:
    """The lines of a lab's solutions that are long enough to be told apart from ordinary text."""
    lines = []
    for cell in lab.cells:
        for block in re.findall(f"{BEGIN}\n(.*?){END}", cell.source, re.DOTALL):
            lines += [line.strip() for line in block.split("\n")]
    return [line for line in lines if len(line) >= SHORTEST_SECRET]


def notebook(lab: Lab) -> NotebookNode:
    """Make the student's notebook: no solutions, no outputs, ids that do not change from build to build."""
    cells = []
    for number, cell in enumerate(lab.cells):
        source = strip_solutions(cell, f"{lab.slug}, cell {number + 1}")
        make = (
            nbformat.v4.new_markdown_cell
            if cell.cell_type == "markdown"
            else nbformat.v4.new_code_cell
        )
        made = make(source, metadata=dict(cell.metadata))
        made.id = f"{lab.name}-{number:02d}"
        cells.append(made)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )


def entry(lab: Lab) -> dict:
    """Describe a lab for those who have only its notebook: titles, points, function names, and the setup cell."""
    graded = _graded(lab.name)
    rows = []
    for cell in lab.cells:
        if exercise_id := _id(cell):
            row = {"id": exercise_id, "points": cell.metadata["points"]}
            rows.append(row | _kind(graded.get(exercise_id), cell))
    setup = [cell.source for cell in lab.cells if "setup" in cell.metadata.get("tags", ())]
    return {
        "title": lab.title,
        "notebook": f"{lab.slug}.ipynb",
        "setup": "\n".join(setup),
        "exercises": rows,
    }


def build(solutions: Path, labs: Path) -> dict[Path, str]:
    """Make every generated file: its path and its text. Raises SourceError for any source that can't be built."""
    sources = [read_source(path) for path in sorted(solutions.glob("lab*.py"))]
    made = {labs / f"{lab.slug}.ipynb": nbformat.writes(notebook(lab)) + "\n" for lab in sources}
    manifest = {lab.name: entry(lab) for lab in sources}
    for lab in sources:
        digest = hashlib.sha256(made[labs / f"{lab.slug}.ipynb"].encode()).hexdigest()
        manifest[lab.name]["sha256"] = digest
    made[labs / "manifest.json"] = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    for lab in sources:
        _check_leaks(lab, made)
    return made


def stale(made: dict[Path, str], labs: Path) -> list[Path]:
    """The generated files that are missing, differ from what was made, or have no source any more."""
    old = [
        path
        for path, text in made.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    return old + [path for path in sorted(labs.glob("*.ipynb")) if path not in made]


def _check(lab: Lab, where: str) -> None:
    """Require that the cells with exercises and the grader's exercises are the same, with the same points."""
    graded = _graded(lab.name)
    seen = [name for cell in lab.cells if (name := _id(cell))]
    wanted = [f"{lab.name}.{number + 1}" for number in range(len(seen))]
    if seen != wanted:
        raise SourceError(
            f"{where}: exercises must be numbered {', '.join(wanted)} in order, got {', '.join(seen)}"
        )
    written = [cell.cell_type == "markdown" and bool(_id(cell)) for cell in lab.cells]
    if not all(written[written.index(True) :] if any(written) else ()):
        raise SourceError(
            f"{where}: nothing may follow written questions, as text below them counts as their answer"
        )
    if missing := sorted(set(graded) - set(seen)):
        raise SourceError(f"{where}: no cell for {', '.join(missing)}")
    for cell in lab.cells:
        if not (exercise_id := _id(cell)):
            continue
        points = cell.metadata.get("points")
        if not isinstance(points, int) or points < 1:
            raise SourceError(
                f"{where}: {exercise_id} needs points, a whole number of at least 1, got {points!r}"
            )
        if (cell.cell_type == "code") != (exercise_id in graded):
            raise SourceError(
                f"{where}: {exercise_id} is code with no exercise in grader/labs, or text with one"
            )
        if exercise_id in graded:
            _check_code(cell, graded[exercise_id], points, where)


def _graded(lab: str) -> dict[str, Exercise | Artifact]:
    """What a lab has that the grader judges, by id."""
    return {exercise.id: exercise for exercise in (*exercises(lab), *artifacts(lab))}


def _kind(exercise: Exercise | Artifact | None, cell: NotebookNode) -> dict:
    """What the manifest says of an exercise besides its points: None is a written question."""
    if exercise is None:
        return {"kind": "written", "question": _question(cell)}
    if isinstance(exercise, Artifact):
        return {"kind": "artifact", "files": list(exercise.files)}
    return {"kind": "code", "function": exercise.function}


def _check_code(cell: NotebookNode, exercise: Exercise | Artifact, points: int, where: str) -> None:
    if points != exercise.points:
        raise SourceError(
            f"{where}: {exercise.id} has {points} points here and {exercise.points} in grader/labs"
        )
    if isinstance(exercise, Artifact):
        return
    definitions = (ast.FunctionDef, ast.ClassDef)
    if exercise.function not in [
        node.name for node in ast.parse(cell.source).body if isinstance(node, definitions)
    ]:
        raise SourceError(f"{where}: {exercise.id} must define {exercise.function}")


def _check_leaks(lab: Lab, made: dict[Path, str]) -> None:
    for path, text in made.items():
        plain = (
            text
            if path.suffix == ".json"
            else "\n".join(c.source for c in nbformat.reads(text, 4).cells)
        )
        for line in solution_lines(lab):
            if line in plain:
                raise SourceError(
                    f"{lab.slug}: a line of its solution stands in {path.name}: {line!r}"
                )


def _id(cell: NotebookNode) -> str | None:
    return cell.metadata.get("exercise")


def _question(cell: NotebookNode) -> str:
    """The text of a written question."""
    return cell.source.split(BEGIN)[0].strip()
