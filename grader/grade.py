"""Grading: each exercise in a worker of its own, each submission by itself, a folder of them resumed where it stopped.

Nothing that a student wrote is imported or run in this process; a worker's answer is compared here, and only here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from tqdm.auto import tqdm

from grader import confine
from grader.exercise import Artifact, Attempt, Exercise, Part, explain
from grader.labs import artifacts, asked_files, exercises
from grader.protocol import ProtocolError
from grader.sandbox import Answer, Failure, SandboxError, Worker
from grader.submission import StrayError, Submission, SubmissionError, is_notebook, is_zip, read_apart
from minigrpo.files import write_json

HERE = Path(__file__).resolve().parent
NO_POINTS = {  # files that decide none
    *("__main__", "check", "cli", "doctor", "exports", "feedback", "local", "release", "report", "roster", "source"),
    *("README", "commands", "demo", "explorer", "plots", "viz"),
}
LONGEST_NAME = 200  # bytes of a student's name: with what our own files' names add, a file system takes 255
KINDS = {  # what a failure of the worker is called in the feedback; nothing of the student's output is shown
    "crash": "the code ended Python itself (os._exit, a crash, or a limit on processes or memory)",
    "timeout": "the code did not answer in time",
    "changed": "the same arguments gave another answer in a new process: draw from the seed, and from nothing else",
    "memory": "the code used too much memory",
    "error": "the code raised an exception",
    "protocol": "the answer is not of a kind that can be read (plain numbers, lists, dicts, tensors; no NaN)",
    "missing": "the function is not there",
    "import": "a cell that it needs raised an exception when it was run",
}
# Types that the feedback names: faults of the code, whatever the case. A closed list, as what a worker says is shown
# nowhere else, and as a type that the code can choose tells something about the hidden case.
NAMED = (
    "ImportError",
    "MemoryError",
    "ModuleNotFoundError",
    "NameError",
    "NotImplementedError",
    "RecursionError",
    "SyntaxError",
    "UnboundLocalError",
)


FAILED = "the grader failed on this {}: a person has to grade it"  # all that a student reads of a fault of ours


class CrowdedError(RuntimeError):
    """A worker did not get as far as it would have alone."""


class Turns:
    """Exercises take turns: many beside each other, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = self._alone = 0  # exercises; those that work alone or wait to

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._alone += alone
            self._changed.wait_for(lambda: not (self._working if alone else self._alone))
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._alone -= alone
                self._changed.notify_all()


TURNS = Turns()


def load_manifest(labs: Path) -> dict:
    """Read labs/manifest.json. Raises ValueError with what to do."""
    path = labs / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} can't be read ({error}): run this in the course's folder") from error


def grade_submission(submission: Submission, lab: str, entry: Mapping, seed: int, isolation: str) -> dict:
    """Grade one submission of one lab.

    Args: submission; lab as in "lab02"; entry: the lab in the manifest; seed: the instructor's secret; isolation.
    Returns: the result: points, and for each exercise its parts with what the student may read about them.
    """
    rows = []
    for row in entry["exercises"]:
        kept, failed = {key: row[key] for key in ("id", "kind", "points")}, None
        try:
            parts = _grade_row(row, submission, lab, entry["setup"], seed, isolation)
        except Exception as error:  # noqa: BLE001  (the grader's own fault: said, and no other exercise's loss)
            failed, nothing = _fault(error), {"points": row["points"], "earned": 0, "passed": False}
            parts = [{"name": "all of it", **nothing, "feedback": FAILED.format("exercise")}]
        earned = sum(part["earned"] for part in parts)
        answer = submission.answers.get(row["id"])
        rows.append(kept | {"earned": earned, "parts": parts, "answer": answer and readable(answer), "failed": failed})
    return result(submission.student, lab, submission.sha256, seed, isolation, rows)


def _fault(error: BaseException) -> str:
    """What the grader failed with, for the instructor alone."""
    return printable(f"{type(error).__name__}: {error}")


def _grade_row(row: Mapping, submission: Submission, lab: str, setup: str, seed: int, isolation: str) -> list[dict]:
    """Grade one exercise; what a busy machine may have cost is asked again alone, and then stands."""
    if row["kind"] == "artifact":
        artifact = next(artifact for artifact in artifacts(lab) if artifact.id == row["id"])
        with TURNS.take(alone=False):
            return grade_files(artifact, submission, seed)
    if row["kind"] != "code":
        return []
    exercise = next(exercise for exercise in exercises(lab) if exercise.id == row["id"])
    if problem := submission.problems.get(row["id"]):
        return [_part(part, False, {"feedback": printable(problem)}) for part in exercise.parts]
    try:
        with TURNS.take(alone=False):
            return grade_exercise(exercise, submission, setup, seed, isolation, last=False)
    except (CrowdedError, SandboxError):
        with TURNS.take(alone=True):
            return grade_exercise(exercise, submission, setup, seed, isolation)


def result(student: str, lab: str, sha256: str, seed: int, isolation: str, rows: Sequence[dict], problem=None) -> dict:
    """Put a submission's result together; `problem` says why nothing could be graded."""
    return {
        "student": student,
        "lab": lab,
        "sha256": sha256,
        "seed": seed,
        "isolation": isolation,
        "version": version(lab),
        "problem": problem and printable(problem),
        "failed": None,  # what the grader itself failed with, where it could grade nothing
        "stray": False,  # no notebook: perhaps a file that lies beside a submission
        "earned": sum(row["earned"] for row in rows),
        "points": sum(row["points"] for row in rows),
        "exercises": list(rows),
    }


@cache
def version(lab: str) -> str:
    """A hash of the code that decides the lab's points; where it is another one, `grade` grades again."""
    digest, package = hashlib.sha256(), HERE.parent / "minigrpo"
    paths = [*HERE.rglob("*.py"), *HERE.rglob("*.json"), *package.rglob("*.py"), *package.glob("llm/tiny/*")]
    for path in sorted(paths):
        own = re.match(r"lab\d\d", path.stem)  # lab08_runs.json is lab 08's
        if path.stem not in NO_POINTS and (not own or own[0] == lab):
            digest.update(path.relative_to(HERE.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def grade_exercise(
    exercise: Exercise, submission: Submission, setup: str, seed: int, isolation: str, *, last: bool = True
) -> list[dict]:
    """Grade the parts of one exercise in a worker, and in a new one after each that died.

    Raises: CrowdedError where one died that had to wait for the machine, unless this is the last try; SandboxError
        where one does not start.
    """
    cells, graded, worker = submission.cells_for(exercise.id), [], None
    with ExitStack() as workers:
        for part in exercise.parts:
            attempts: list[Attempt] = []
            for index in range(part.draws):
                if worker is None or (worker.loaded and not worker.alive):  # cells that end it would do so again
                    worker = Worker(cells, setup=setup, isolation=isolation)
                    workers.enter_context(worker)
                case = exercise.case(part, seed, index)
                answer = worker.ask(exercise.driver, exercise.function, case, seconds=exercise.seconds)
                if not worker.alive and worker.crowded and not last:
                    raise CrowdedError(exercise.id)
                attempts.append(_attempt(exercise, case, answer))
                if exercise.seeded and index == 0 and attempts[-1].passed:
                    fresh = workers.enter_context(Worker(cells, setup=setup, isolation=isolation))
                    again = fresh.ask(exercise.driver, exercise.function, case, seconds=exercise.seconds)
                    if not fresh.alive and fresh.crowded and not last:
                        raise CrowdedError(exercise.id)
                    attempts[-1] = _attempt(exercise, case, again)
                    if attempts[-1].passed and not exercise.repeats(answer.value, again.value):
                        attempts[-1] = Attempt(case, None, error="changed")
                if not attempts[-1].passed:
                    break
            graded.append(_part(part, attempts[-1].passed, _feedback(exercise, part, attempts)))
    raised = tuple(KINDS[kind] for kind in ("error", "missing", "import"))
    if left_out := submission.left_out(exercise.id):  # which may be why
        for part in graded:
            part["feedback"] += f"; {left_out}" if part["feedback"].startswith(raised) else ""
    return graded


def _attempt(exercise: Exercise, case: dict, answer: Answer | Failure) -> Attempt:
    if isinstance(answer, Failure):
        return Attempt(case, None, error=_kind(answer))
    expected = exercise.run(exercise.reference, case)
    try:
        return Attempt(case, expected, answer.value, wrong=exercise.verdict(case, expected, answer.value))
    except ProtocolError:  # an answer that the judge can make nothing of costs its part, and nothing else
        return Attempt(case, expected, error="protocol")


def _kind(failure: Failure) -> str:
    """The kind of a failure, with the exception's type where it is one of those that are named: "error: NameError"."""
    texts = {"error": failure.detail, "import": failure.detail.partition(": ")[2]}  # "cell 3: NameError: …"
    raised = texts.get(failure.kind, "").partition(":")[0]
    return f"{failure.kind}: {raised}" if raised in NAMED else failure.kind


def _feedback(exercise: Exercise, part: Part, attempts: Sequence[Attempt]) -> dict:
    """What a student reads of hidden cases: a sentence written beforehand, nothing of the cases themselves.

    Returns: `feedback`, and `mistake`: whether it is the hint of a known mistake that gives the student's answers.
    """
    if attempts[-1].passed:
        return {"feedback": ""}
    if attempts[-1].error:
        kind, _, raised = attempts[-1].error.partition(": ")
        return {"feedback": KINDS[kind] + f" ({raised})" * bool(raised)}
    mistake = explain(exercise, attempts)
    return {"feedback": mistake.hint, "mistake": True} if mistake else {"feedback": part.hint}


def _part(part: Part, passed: bool, feedback: Mapping) -> dict:
    return {
        "name": part.name,
        "points": part.points,
        "earned": part.points if passed else 0,
        "passed": passed,
        **feedback,
    }


def grade_files(artifact: Artifact, submission: Submission, seed: int) -> list[dict]:
    """Grade the files that an exercise asks for; they are read as data, here."""
    parts = artifact.grade({name: submission.files.get(name) for name in artifact.files}, seed)
    if problem := submission.problems.get(artifact.id):  # a file was refused, and is missing
        parts = [part if part["passed"] else part | {"feedback": f"{part['feedback']}; {problem}"} for part in parts]
    return [part | {"feedback": printable(part["feedback"])} for part in parts]  # names of weights are the student's


def find_submissions(folder: Path) -> dict[str, list[Path]]:
    """List what each student handed in: every file and folder in a folder but hidden ones, by its student's name.

    A name with two notebooks, zips or folders can't be graded, nor can a file of another kind; both are listed, so that
    each gets a result that says why. Raises: ValueError for a folder that does not exist or holds nothing.
    """
    if not folder.is_dir():
        raise ValueError(f"submissions must be a folder, got {folder}")
    found: dict[str, list[Path]] = {}
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__MACOSX"))]
    readable = [path for path in paths if path.is_dir() or is_notebook(path.name) or is_zip(path.name)]
    for path in readable:
        found.setdefault(student_name(path), []).append(path)
    for path in paths:
        if path not in readable:  # a report beside the student's notebook is named in full
            name = student_name(path)
            found.setdefault(fit_name(path.name) if name in found else name, []).append(path)
    if not found:
        raise ValueError(f"no submission in {folder}: it must hold a notebook, a zip or a folder for each student")
    return found


def student_name(path: Path) -> str:
    """Who handed this in: the name of the file or folder."""
    return fit_name(path.name if path.is_dir() else path.stem)


def fit_name(name: str) -> str:
    """A name made fit to be printed and to name our own files.

    Accents are put into one form: macOS takes "é" apart in names of files, and a roster does not.
    """
    name = unicodedata.normalize("NFC", name)
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return printable(name)


def printable(text: str) -> str:
    """A text on one line, without what steers a terminal or can't be written as UTF-8."""
    return "".join(letter if letter.isprintable() else "_" for letter in text)


def readable(text: str) -> str:
    """A text of several lines, without what steers a terminal."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = ("_" if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" else letter for letter in text)
    return "".join(kept)


def grade_folder(
    folder: Path, lab: str, manifest: Mapping, seed: int, out: Path, isolation: str, *, jobs: int = 2, progress=True
) -> Iterator[dict]:
    """Grade every submission of a folder into out/auto/<student>.json, those that are new or have changed.

    A submission that can't be graded gets a result that says why; none stops the others, and what is written stays.
    Returns: each result, as it is finished. Raises, before anything is written: as `find_submissions`; ValueError for a
        folder that workers see.
    """
    for path in (folder, out):
        if isolation == "bubblewrap" and (place := confine.shows(path)):
            raise ValueError(f"{path} lies in {place}, where student code can read it: put it somewhere else")
    submissions = find_submissions(folder)
    return _grade_all(submissions, lab, manifest[lab], seed, out, isolation, jobs, progress)


def _grade_all(
    submissions: Mapping[str, Sequence[Path]],
    lab: str,
    entry: Mapping,
    seed: int,
    out: Path,
    isolation: str,
    jobs: int,
    progress: bool,
) -> Iterator[dict]:
    bar = tqdm(total=len(submissions), desc=lab, unit=" submissions", disable=not progress)
    pool = ThreadPoolExecutor(jobs)
    try:
        work = {
            pool.submit(_grade_paths, paths, student, lab, entry, seed, out, isolation): student
            for student, paths in submissions.items()
        }
        for future in as_completed(work):
            student = work[future]
            if (failure := future.exception()) is not None:  # the grader's own fault: said, never the others' loss
                nothing = _nothing(student, lab, "", seed, isolation, entry, FAILED.format("submission"))
                yield _write(nothing | {"failed": _fault(failure)}, out)
            else:
                yield future.result()
            bar.update()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for a submission that hangs
        bar.close()


def _grade_paths(
    paths: Sequence[Path], student: str, lab: str, entry: Mapping, seed: int, out: Path, isolation: str
) -> dict:
    try:
        if len(paths) > 1:
            names = " and ".join(repr(path.name) for path in paths)
            raise SubmissionError(f"{names} are of one name, {student!r}: leave one, or rename them, and grade again")
        submission = read_apart(paths[0], student, entry, asked_files(lab))
    except SubmissionError as error:
        nothing = _nothing(student, lab, "", seed, isolation, entry, str(error))
        return _write(nothing | {"stray": isinstance(error, StrayError)}, out)
    done = read_result(out / "auto" / f"{student}.json")
    wanted = {"sha256": submission.sha256, "seed": seed, "isolation": isolation, "version": version(lab), "lab": lab}
    if done and all(done.get(key) == value for key, value in wanted.items()):
        if not any(row.get("failed") for row in done["exercises"]):
            return done
    return _write(grade_submission(submission, lab, entry, seed, isolation), out)


def _nothing(student: str, lab: str, sha256: str, seed: int, isolation: str, entry: Mapping, why: str) -> dict:
    """The result of a submission that could not be graded at all."""
    rows = [
        {key: row[key] for key in ("id", "kind", "points")} | {"earned": 0, "parts": [], "answer": None, "failed": None}
        for row in entry["exercises"]
    ]
    return result(student, lab, sha256, seed, isolation, rows, problem=why)


def _write(graded: dict, out: Path) -> dict:
    write_json(out / "auto" / f"{graded['student']}.json", graded)
    return graded


def read_result(path: Path) -> dict | None:
    """What the grader wrote into a file, or None where it is missing or damaged: `grade` writes it again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
