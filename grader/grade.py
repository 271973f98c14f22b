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
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from tqdm.auto import tqdm

from grader import confine
from grader.exercise import Artifact, Attempt, Case, Exercise, Part, explain
from grader.labs import artifacts, asked_files, exercises
from grader.protocol import ProtocolError
from grader.results import ExerciseResult, Grading, PartResult, Result, read_result, write_result
from grader.sandbox import Answer, Failure, SandboxError, Worker
from grader.submission import (
    StrayError,
    Submission,
    SubmissionError,
    is_notebook,
    is_zip,
    read_apart,
)

HERE = Path(__file__).resolve().parent
# Files and folders of grader and minigrpo that decide no points.
NO_POINTS = frozenset(
    "__main__ check class_report cli doctor exports feedback local marking oral release report roster source "
    "README commands demo explorer plots viz".split()
)
# bytes of a student's name: with what our own files' names add, a file system takes 255
LONGEST_NAME = 200
# what a failure of the worker is called in the feedback; nothing of the student's output is shown
KINDS = {
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


# all that a student reads of a fault of ours
FAILED = "the grader failed on this {}: a person has to grade it"


class CrowdedError(RuntimeError):
    """A worker did not get as far as it would have alone."""


class Turns:
    """Exercises take turns: many beside each other, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = self._alone = 0  # exercises; those that work alone or wait to

    @contextmanager
    def take(self, *, alone: bool) -> Generator[None]:
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
        raise ValueError(
            f"{path} can't be read ({error}): run this in the course's folder"
        ) from error


def grade_submission(submission: Submission, grading: Grading) -> Result:
    """Grade one submission: every exercise, whatever becomes of the others."""
    exercises = [_grade_entry(row, submission, grading) for row in grading.entry["exercises"]]
    return _result(grading, submission.student, submission.sha256, exercises)


def _grade_entry(row: Mapping, submission: Submission, grading: Grading) -> ExerciseResult:
    """Grade an exercise by its entry in the manifest. A fault of the grader's own is said, and no other's loss."""
    failed = None
    try:
        parts = _grade_parts(row, submission, grading)
    except Exception as error:  # noqa: BLE001  (whatever it is, the other exercises count)
        failed = _fault(error)
        parts = [
            PartResult(
                "all of it",
                row["points"],
                earned=0,
                passed=False,
                feedback=FAILED.format("exercise"),
            )
        ]
    earned = sum(part.earned for part in parts)
    answer = submission.answers.get(row["id"])
    text = readable(answer) if answer else answer
    return ExerciseResult(row["id"], row["kind"], row["points"], earned, tuple(parts), text, failed)


def _fault(error: BaseException) -> str:
    """What the grader failed with, for the instructor alone."""
    return printable(f"{type(error).__name__}: {error}")


def _grade_parts(row: Mapping, submission: Submission, grading: Grading) -> list[PartResult]:
    """Grade the parts of an exercise; what a busy machine may have cost is asked again alone, and then stands."""
    if row["kind"] == "artifact":
        artifact = next(artifact for artifact in artifacts(grading.lab) if artifact.id == row["id"])
        with TURNS.take(alone=False):
            return grade_files(artifact, submission, grading.seed)
    if row["kind"] != "code":
        return []
    exercise = next(exercise for exercise in exercises(grading.lab) if exercise.id == row["id"])
    if problem := submission.problems.get(row["id"]):
        return [_failed(part, printable(problem)) for part in exercise.parts]
    try:
        with TURNS.take(alone=False):
            return grade_exercise(exercise, submission, grading, last=False)
    except (CrowdedError, SandboxError):
        with TURNS.take(alone=True):
            return grade_exercise(exercise, submission, grading)


def nothing_graded(grading: Grading, student: str, problem: str, sha256: str = "") -> Result:
    """The result of a submission that could not be graded at all, and why.

    Args:
        grading: that it belongs to.
        student: who handed it in.
        problem: why.
        sha256: of the submission, where it can be read.
    """
    rows = [
        ExerciseResult(row["id"], row["kind"], row["points"], 0)
        for row in grading.entry["exercises"]
    ]
    return replace(_result(grading, student, sha256, rows), problem=printable(problem))


def _result(
    grading: Grading, student: str, sha256: str, exercises: Sequence[ExerciseResult]
) -> Result:
    """Put a submission's result together."""
    return Result(
        student=student,
        lab=grading.lab,
        sha256=sha256,
        seed=grading.seed,
        isolation=grading.isolation,
        version=version(grading.lab),
        problem=None,
        earned=sum(row.earned for row in exercises),
        points=sum(row.points for row in exercises),
        exercises=tuple(exercises),
    )


@cache
def version(lab: str) -> str:
    """A hash of the code that decides the lab's points; where it is another one, `grade` grades again."""
    digest, package = hashlib.sha256(), HERE.parent / "minigrpo"
    paths = [
        *HERE.rglob("*.py"),
        *HERE.rglob("*.json"),
        *package.rglob("*.py"),
        *package.glob("llm/tiny/*"),
    ]
    for path in sorted(paths):
        own = re.match(r"lab\d\d", path.stem)  # lab08_runs.json is lab 08's
        if own and own[0] != lab:
            continue
        if NO_POINTS & {path.stem, path.parent.name}:
            continue
        name = path.relative_to(HERE.parent).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def grade_exercise(
    exercise: Exercise, submission: Submission, grading: Grading, *, last: bool = True
) -> list[PartResult]:
    """Grade the parts of one exercise in a worker, and in a new one after each that died.

    Args:
        exercise: of the lab.
        submission: whose cells are run.
        grading: its setup cell, seed and isolation are used.
        last: whether what a crowded machine costs stands.

    Raises:
        CrowdedError: where a worker died that had to wait for the machine, unless this is the last try.
        SandboxError: where one does not start.
    """
    with _Workers(exercise, submission, grading, last) as workers:
        graded = [_grade_part(part, workers) for part in exercise.parts]
    left_out = submission.left_out(exercise.id)  # cells that may be why something is missing
    if not left_out:
        return graded
    return [_said_why(part, left_out) for part in graded]


def _grade_part(part: Part, workers: _Workers) -> PartResult:
    """Draw the hidden cases of a part until one is answered wrongly."""
    exercise = workers.exercise
    attempts: list[Attempt] = []
    for index in range(part.draws):
        case = exercise.case(part, workers.grading.seed, index)
        answer = workers.ask(case)
        attempts.append(_attempt(exercise, case, answer))
        if exercise.seeded and index == 0 and isinstance(answer, Answer) and attempts[-1].passed:
            attempts[-1] = _asked_again(exercise, case, answer, workers)
        if not attempts[-1].passed:
            return _explained(exercise, part, attempts)
    return PartResult(part.name, part.points, part.points, passed=True, feedback="")


def _asked_again(exercise: Exercise, case: Case, answer: Answer, workers: _Workers) -> Attempt:
    """Ask a new process for what has to follow from a seed: the very same answer."""
    again = workers.ask_anew(case)
    attempt = _attempt(exercise, case, again)
    if (
        isinstance(again, Answer)
        and attempt.passed
        and not exercise.repeats(answer.value, again.value)
    ):
        return Attempt(case, None, error="changed")
    return attempt


class _Workers:
    """The workers of one exercise: one at a time, and a new one after each that died."""

    def __init__(
        self, exercise: Exercise, submission: Submission, grading: Grading, last: bool
    ) -> None:
        self.exercise = exercise
        self.grading = grading
        self._cells = submission.cells_for(exercise.id)
        self._last = last
        self._stack = ExitStack()
        self._worker: Worker | None = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def ask(self, case: Case) -> Answer | Failure:
        """Ask the worker at hand; cells that end it while they load would do so again in a new one."""
        if self._worker is None or (self._worker.loaded and not self._worker.alive):
            self._worker = self._start()
        return self._ask(self._worker, case)

    def ask_anew(self, case: Case) -> Answer | Failure:
        """Ask a new worker, which answers this alone."""
        return self._ask(self._start(), case)

    def _start(self) -> Worker:
        worker = Worker(
            self._cells, setup=self.grading.entry["setup"], isolation=self.grading.isolation
        )
        self._stack.enter_context(worker)
        return worker

    def _ask(self, worker: Worker, case: Case) -> Answer | Failure:
        exercise = self.exercise
        answer = worker.ask(exercise.driver, exercise.function, case, seconds=exercise.seconds)
        if not worker.alive and worker.crowded and not self._last:
            raise CrowdedError(exercise.id)
        return answer


def _attempt(exercise: Exercise, case: Case, answer: Answer | Failure) -> Attempt:
    """A case with what was expected and what came."""
    if isinstance(answer, Failure):
        return Attempt(case, None, error=_kind(answer))
    expected = exercise.run(exercise.reference, case)
    try:
        return Attempt(
            case, expected, answer.value, wrong=exercise.verdict(case, expected, answer.value)
        )
    # an answer that the judge can make nothing of costs its part, and nothing else
    except ProtocolError:
        return Attempt(case, expected, error="protocol")


def _kind(failure: Failure) -> str:
    """The kind of a failure, with the exception's type where it is one of those that are named: "error: NameError"."""
    # "cell 3: NameError: …"
    texts = {"error": failure.detail, "import": failure.detail.partition(": ")[2]}
    raised = texts.get(failure.kind, "").partition(":")[0]
    return f"{failure.kind}: {raised}" if raised in NAMED else failure.kind


def _explained(exercise: Exercise, part: Part, attempts: Sequence[Attempt]) -> PartResult:
    """A part that failed, with a sentence written beforehand: nothing of the hidden cases is shown."""
    if attempts[-1].error:
        kind, _, raised = attempts[-1].error.partition(": ")
        return _failed(part, KINDS[kind] + (f" ({raised})" if raised else ""))
    mistake = explain(exercise, attempts)
    if mistake is None:
        return _failed(part, part.hint)
    return replace(_failed(part, mistake.hint), mistake=True)


def _failed(part: Part, feedback: str) -> PartResult:
    """A part that earned nothing, and why."""
    return PartResult(part.name, part.points, earned=0, passed=False, feedback=feedback)


def _said_why(part: PartResult, left_out: str) -> PartResult:
    """Add which cells were left out, where that may be why the code raised."""
    raised = tuple(KINDS[kind] for kind in ("error", "missing", "import"))
    return (
        replace(part, feedback=f"{part.feedback}; {left_out}")
        if part.feedback.startswith(raised)
        else part
    )


def grade_files(artifact: Artifact, submission: Submission, seed: int) -> list[PartResult]:
    """Grade the files that an exercise asks for; they are read as data, here.

    Args:
        artifact: the exercise.
        submission: with its files.
        seed: of the grading.
    """
    contents = {name: submission.files.get(name) for name in artifact.files}
    problem = submission.problems.get(artifact.id)  # a file was refused, and is missing
    graded = []
    for row in artifact.grade(contents, seed):
        part = PartResult(**row)
        feedback = f"{part.feedback}; {problem}" if problem and not part.passed else part.feedback
        # names of weights are the student's
        graded.append(replace(part, feedback=printable(feedback)))
    return graded


def find_submissions(folder: Path) -> dict[str, list[Path]]:
    """List what each student handed in: every file and folder in a folder but hidden ones, by its student's name.

    A name with two notebooks, zips or folders can't be graded, nor can a file of another kind; both are listed, so that
    each gets a result that says why. Raises: ValueError for a folder that does not exist or holds nothing.
    """
    if not folder.is_dir():
        raise ValueError(f"submissions must be a folder, got {folder}")
    found: dict[str, list[Path]] = {}
    paths = [
        path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__MACOSX"))
    ]
    readable = [
        path for path in paths if path.is_dir() or is_notebook(path.name) or is_zip(path.name)
    ]
    for path in readable:
        found.setdefault(student_name(path), []).append(path)
    for path in paths:
        if path not in readable:  # a report beside the student's notebook is named in full
            name = student_name(path)
            found.setdefault(fit_name(path.name) if name in found else name, []).append(path)
    if not found:
        raise ValueError(
            f"no submission in {folder}: it must hold a notebook, a zip or a folder for each student"
        )
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
    """A text on one line, control characters and lone surrogates replaced by "_"."""
    return "".join(letter if letter.isprintable() else "_" for letter in text)


def readable(text: str) -> str:
    """A text of several lines, without what steers a terminal."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = (
        "_" if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" else letter
        for letter in text
    )
    return "".join(kept)


def grade_folder(
    folder: Path, grading: Grading, out: Path, *, jobs: int = 2, progress: bool = True
) -> Iterator[Result]:
    """Grade every submission of a folder into out/auto/<student>.json, those that are new or have changed.

    A submission that can't be graded gets a result that says why; none stops the others, and what is written stays.

    Args:
        folder: of the submissions.
        grading: what they have in common.
        out: where the results go.
        jobs: submissions at a time.
        progress: show a bar.

    Returns:
        Each result, as it is finished.

    Raises:
        ValueError: before anything is written, as `find_submissions`, and for a folder that workers see.
    """
    for path in (folder, out):
        if grading.isolation == "bubblewrap" and (place := confine.shows(path)):
            raise ValueError(
                f"{path} lies in {place}, where student code can read it: put it somewhere else"
            )
    return _grade_all(find_submissions(folder), grading, out, jobs, progress)


def _grade_all(
    submissions: Mapping[str, Sequence[Path]],
    grading: Grading,
    out: Path,
    jobs: int,
    progress: bool,
) -> Iterator[Result]:
    bar = tqdm(total=len(submissions), desc=grading.lab, unit=" submissions", disable=not progress)
    pool = ThreadPoolExecutor(jobs)
    try:
        work = {
            pool.submit(_grade_paths, paths, student, grading, out): student
            for student, paths in submissions.items()
        }
        for future in as_completed(work):
            failure = future.exception()
            if failure is None:
                yield future.result()
            else:  # the grader's own fault: said, never the others' loss
                nothing = nothing_graded(grading, work[future], FAILED.format("submission"))
                yield write_result(replace(nothing, failed=_fault(failure)), out)
            bar.update()
    finally:
        # Ctrl-C does not wait for a submission that hangs
        pool.shutdown(wait=False, cancel_futures=True)
        bar.close()


def _grade_paths(paths: Sequence[Path], student: str, grading: Grading, out: Path) -> Result:
    """Grade what a student handed in, unless it was graded like this before."""
    try:
        if len(paths) > 1:
            names = " and ".join(repr(path.name) for path in paths)
            raise SubmissionError(
                f"{names} are of one name, {student!r}: leave one, or rename them, and grade again"
            )
        submission = read_apart(paths[0], student, grading.entry, asked_files(grading.lab))
    except SubmissionError as error:
        nothing = nothing_graded(grading, student, str(error))
        return write_result(replace(nothing, stray=isinstance(error, StrayError)), out)
    done = read_result(out / "auto" / f"{student}.json")
    if done and _is_current(done, submission, grading):
        return done
    return write_result(grade_submission(submission, grading), out)


def _is_current(done: Result, submission: Submission, grading: Grading) -> bool:
    """Whether a result is what grading would give again, and whole."""
    had = (done.sha256, done.seed, done.isolation, done.version, done.lab)
    wanted = (submission.sha256, grading.seed, grading.isolation, version(grading.lab), grading.lab)
    return had == wanted and not any(row.failed for row in done.exercises)
