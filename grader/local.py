"""What a student runs in a shell: check a notebook on the public cases, and pack it to hand it in."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from grader.check import public_report
from grader.labs import artifacts, exercises
from grader.submission import Submission, read_submission
from minigrpo.files import write_bytes


def check_notebook(path: Path, lab: str, entry: Mapping) -> list[str]:
    """Run the public cases of every exercise in a notebook, in this process; return what to print.

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
            lines += public_report(exercise, namespace[exercise.function])[0]
        else:
            lines += [f"{exercise.id}: {exercise.function} is not there after its cells ran", *errors]
    for row in entry["exercises"]:
        if row["kind"] == "written":
            answered = row["id"] in submission.answers
            lines.append(f"{row['id']}: {'written; a person reads it' if answered else 'not written yet'}.")
    return lines


def run_cells(submission: Submission, exercise_id: str, setup: str) -> tuple[dict, list[str]]:
    """Run the cells that an exercise needs, as the grader's worker does; say which of them raised, and what."""
    namespace: dict = {"__name__": "lab"}
    errors = []
    for label, source in [("setup", setup), *submission.cells_for(exercise_id)]:
        try:
            exec(compile(source, f"<{label}>", "exec"), namespace)
        except Exception as error:  # noqa: BLE001  (a student's cell may raise anything; it has to be said)
            errors.append(f"  {label} raised {type(error).__name__}: {error}")
    return namespace, errors


def pack(path: Path, lab: str, entry: Mapping, files: Path | None, out: Path) -> list[str]:
    """Make the zip to hand in: the notebook, the files that the lab asks for, and a manifest with their hashes.

    Unfinished work is packed too. Args: path: the notebook; files: the folder with a run's files; out: the zip.
    Returns: what to print. Raises: SubmissionError, OSError.
    """
    submission = read_submission(path, "you", entry)
    contents = {entry["notebook"]: path.read_bytes()}
    lines = [f"{name}: {problem}" for name, problem in submission.problems.items()]
    for name in (name for artifact in artifacts(lab) for name in artifact.files):
        source = None if files is None else next(iter(sorted(files.rglob(name))), None)
        if source is None:
            lines.append(f"{name} is not packed: name the folder it lies in, with --files DIR")
        else:
            contents[name] = source.read_bytes()
    manifest = {"lab": lab, "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}}
    contents["manifest.json"] = json.dumps(manifest, indent=1).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    write_bytes(out, archive.getvalue())
    return [*lines, f"{out} holds {', '.join(contents)}: hand it in."]
