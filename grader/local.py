"""What a student runs in a shell: check a notebook on the public cases, and pack it to hand it in."""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from grader.check import public_report
from grader.labs import asked_files, exercises
from grader.submission import Submission, SubmissionError, is_notebook, read_submission
from minigrpo.files import write_bytes


def check_notebook(path: Path, lab: str, entry: Mapping) -> list[str]:
    """Run the public cases of every exercise in a notebook, in this process; return what to print.

    Args:
        path: of the notebook.
        lab: as in "lab02".
        entry: the lab in the manifest.

    Raises: SubmissionError for a notebook that can't be read.
    """
    submission = read_submission(path, "you", entry)
    lines = []
    for exercise in exercises(lab):
        if exercise.id in submission.problems:
            lines.append(f"{exercise.id}: {submission.problems[exercise.id]}")
            continue
        namespace, errors = run_cells(submission, exercise.id, entry["setup"])
        if callable(namespace.get(exercise.function)):
            report, passed = public_report(exercise, namespace[exercise.function])
            left_out = submission.left_out(exercise.id)
            lines += (
                report if passed else [*report, *errors, *([f"  {left_out}"] if left_out else [])]
            )
        else:
            lines += [
                f"{exercise.id}: {exercise.function} is not there after its cells ran",
                *errors,
            ]
    for row in entry["exercises"]:
        if row["kind"] == "written":
            answered = row["id"] in submission.answers
            lines.append(
                f"{row['id']}: {'written; a person reads it' if answered else 'not written yet'}."
            )
    return lines


def run_cells(submission: Submission, exercise_id: str, setup: str) -> tuple[dict, list[str]]:
    """Run the cells that an exercise needs, as the grader's worker does; say which of them raised, and what.

    Args:
        submission: with its cells.
        exercise_id: as in "lab02.1".
        setup: the cell that every exercise needs.
    """
    namespace: dict = {
        "__name__": "__main__",
        "__builtins__": vars(builtins) | {"__import__": _import},
    }
    errors = []
    for label, source in [("setup", setup), *submission.cells_for(exercise_id)]:
        try:
            exec(compile(source, f"<{label}>", "exec", dont_inherit=True), namespace)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a cell may raise anything; it has to be said)
            errors.append(f"  {label} raised {type(error).__name__}: {error}")
    return namespace, errors


def _import(name: str, *arguments, **options):
    """Import for a student's cells: what a sandbox does not have can't be imported here either."""
    if name.partition(".")[0] in ("minigrpo", "grader"):
        raise ModuleNotFoundError(f"{name} cannot be used while your work is graded", name=name)
    return builtins.__import__(name, *arguments, **options)


def pack(path: Path, lab: str, entry: Mapping, files: Path | None, out: Path) -> list[str]:
    """Make the zip to hand in: the notebook, the files that the lab asks for, and a manifest with their hashes.

    Unfinished work is packed too.

    Args:
        path: the notebook.
        lab: as in "lab02".
        entry: the lab in the manifest.
        files: the folder with a run's files; None for none.
        out: the zip.

    Returns: what to print. Raises: SubmissionError; ValueError where `files` is no folder, or holds two of one name;
        OSError.
    """
    if not is_notebook(path.name):
        raise SubmissionError(f"submit packs a notebook (.ipynb), got {path.name}")
    if files is not None and not files.is_dir():
        raise ValueError(f"--files must be a folder, got {files}")
    submission = read_submission(path, "you", entry)
    contents = {entry["notebook"]: path.read_bytes()}
    lines = [f"{name}: {problem}" for name, problem in submission.problems.items()]
    missing = unfinished(submission, entry)
    lines += [f"not written yet: {', '.join(missing)}"] if missing else []
    for name in asked_files(lab):
        if (source := _find(name, files)) is None:
            where = (
                "name the folder it lies in, with --files DIR"
                if files is None
                else f"it is not in {files}"
            )
            lines.append(f"{name} is not packed: {where}")
        else:
            contents[name] = source
    manifest = {
        "lab": lab,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    contents["manifest.json"] = json.dumps(manifest, indent=1).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(
                zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED
            )
    write_bytes(out, archive.getvalue())
    return [*lines, f"{out} holds {', '.join(contents)}: hand it in."]


def unfinished(submission: Submission, entry: Mapping) -> list[str]:
    """The exercises whose stub or question is as the lab gave it."""
    stub = r"^[ \t]*raise NotImplementedError\([\"']{}[\"']\)"
    code = {name: cell.source for name, cell in submission.exercises.items()}
    left = [
        name
        for name, source in code.items()
        if re.search(stub.format(re.escape(name)), source, re.MULTILINE)
    ]
    written = [row["id"] for row in entry["exercises"] if row["kind"] == "written"]
    return [*left, *(name for name in written if name not in submission.answers)]


def _find(name: str, files: Path | None) -> bytes | None:
    """A file that the lab asks for, out of a folder; None where it is not there."""
    found = [] if files is None else sorted(files.rglob(name))
    if len({path.read_bytes() for path in found}) > 1:
        raise ValueError(
            f"{name} is in {files} twice, {found[0]} and {found[1]}: name the folder of one run"
        )
    return found[0].read_bytes() if found else None
