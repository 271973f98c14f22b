"""A student's submission: one notebook, alone, in a folder or in a zip. It is read as data and never run here.

Cells are found by the exercise in their metadata, else by the function they define, answers by the question above them;
other metadata, outputs and claimed points are ignored. Sizes are capped, links and paths that lead outside are refused,
and only expected names are read. A class is read with `read_apart`: a file that was made to be slow or large to read
ends a process of its own.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import unicodedata
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from grader.cells import (
    ANYTHING,
    JUPYTER,
    LARGEST_CELL,
    Cell,
    code_cell,
    imported,
    is_text,
    statements,
)

MIB = 2**20
LARGEST_NOTEBOOK = 8 * MIB  # with its pictures
LARGEST_CODE = 200_000  # characters of code in a notebook; a solved lab has 10,000
LARGEST_FILE = 64 * MIB  # an adapter
LARGEST_ZIP = 80 * MIB
MOST_MEMBERS = 200  # of a zip
MOST_CELLS = 1000  # of a notebook
MOST_SECONDS = 10  # of the processor, to read a submission
MOST_MEMORY = 1024 * MIB
TOO_HARD = f"{{}} takes more than {MOST_SECONDS} seconds or {MOST_MEMORY // MIB} MiB to read: take the lab's notebook"

WRITE_HERE = "*Write your answer here.*"
QUESTION = re.compile(r"\s*\*\*(lab\d\d\.\d+)\*\*")  # how each written question begins


class SubmissionError(ValueError):
    """A submission that can't be read; the sentence is for the student."""


class StrayError(SubmissionError):
    """No notebook, and nothing that holds one: perhaps no submission at all, but a file that lies beside one."""


@dataclass(frozen=True)
class Submission:
    """What a student handed in for one lab."""

    student: str
    sha256: str  # of all the bytes that are graded
    exercises: Mapping[str, Cell]  # by exercise
    helpers: tuple[Cell, ...]  # the statements of other cells
    answers: Mapping[str, str]  # what was written under the questions, by exercise
    files: Mapping[str, bytes]  # what else the lab asks for
    problems: Mapping[str, str]  # why an exercise can't be graded, by exercise

    def cells_for(self, exercise_id: str) -> list[tuple[str, str]]:
        """The code that an exercise needs, in the notebook's order: its cell, and what makes a name that these read.

        Of the other exercises whole cells, of all other cells statements. So what breaks costs only the exercises that
        use it.
        """
        makers = defaultdict(list)
        for cell in (*self.helpers, *self.exercises.values()):
            for name in cell.defines:
                makers[name].append(cell)
        needed = {(cell := self.exercises[exercise_id]).place: cell}
        unread = [cell]
        while unread:
            for name in (ANYTHING, *unread.pop().reads):
                for cell in makers.pop(name, ()):
                    if cell.place not in needed:
                        needed[cell.place] = cell
                        unread.append(cell)
        return [(needed[place].label, needed[place].source) for place in sorted(needed)]

    def left_out(self, exercise_id: str) -> str:
        """A sentence that names the cells of which an exercise needs a part and the rest is not run; empty for none."""
        used = {label for label, _ in self.cells_for(exercise_id)}
        cells = dict.fromkeys(
            cell.label for cell in self.helpers if not cell.defines and cell.label in used
        )
        return f"of {', '.join(cells)} only the statements ran that make a name" if cells else ""


def read_submission(
    path: Path, student: str, entry: Mapping, extra_files: Sequence[str] = ()
) -> Submission:
    """Read the submission of one lab.

    Args:
        path: a notebook, a zip or a folder.
        student: who handed it in.
        entry: the lab in labs/manifest.json.
        extra_files: other names the lab asks for.

    Raises: SubmissionError where there is no notebook, or none that can be read, or that of another lab; OSError.
    """
    files, refused = _files(path, entry["notebook"], extra_files)
    notebooks = [name for name in files if is_notebook(name)]
    if not notebooks:
        raise StrayError(
            f"no notebook in {path.name}: hand in {entry['notebook']}, or the zip made of it"
        )
    cells = _cells(files[notebooks[0]])
    _refuse_other_lab(cells, entry)
    with warnings.catch_warnings():
        # what Python says of '\d' in a student's code is no matter of the grader's
        warnings.simplefilter("ignore")
        found = _sort_cells(cells, entry["exercises"])
    for row in entry["exercises"]:
        if row["kind"] == "artifact" and (
            why := [refused[name] for name in row["files"] if name in refused]
        ):
            found["problems"][row["id"]] = why[0]
    extra = {name: content for name, content in files.items() if name not in notebooks}
    graded = extra | {entry["notebook"]: files[notebooks[0]]}  # whatever a student calls it
    digest = hashlib.sha256(
        b"".join(os.fsencode(name) + b"\0" + graded[name] for name in sorted(graded))
    ).hexdigest()
    return Submission(student, digest, files=extra, **found)


def is_notebook(name: str) -> bool:
    return name.lower().endswith(".ipynb")


def is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _files(
    path: Path, notebook: str, extra: Sequence[str]
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The expected files of a submission and its one notebook, by their bare names; and why others were refused."""
    if path.is_symlink():
        raise SubmissionError(f"{path.name} is a link: hand in the file itself")
    if path.is_dir():
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.is_symlink()]
        zips = [p for p in inside if is_zip(p.name)]
        if zips and not any(is_notebook(p.name) for p in inside):
            if len(zips) > 1:
                raise SubmissionError(f"{len(zips)} zips in {path.name}: hand in one")
            return _files(zips[0], notebook, extra)
        places = [p.relative_to(path).as_posix() for p in inside]
        return _read_all(places, notebook, extra, lambda place: (path / place).open("rb"))
    if is_zip(path.name) and path.is_file():
        return _unzip(path, notebook, extra)
    if is_notebook(path.name) and path.is_file():
        return {path.name: _read(path.open("rb"), path.name)}, {}
    raise StrayError(f"{path.name} is neither a notebook (.ipynb) nor a zip")


def _read_all(
    places: Sequence[str], notebook: str, extra: Sequence[str], open_: Callable[[str], IO[bytes]]
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Read what is expected out of all the files that are there: what is wrong with an extra file costs it alone.

    A run copies its metrics beside its adapter: an extra file may be there twice if both are the same.
    """
    contents, refused = {}, {}
    for name, (first, *others) in _choose(places, notebook, extra).items():
        try:
            content = _read(open_(first), name)
            if others and (
                name not in extra or any(_read(open_(other), name) != content for other in others)
            ):
                raise SubmissionError(f"{name} is there twice: hand in one")
            contents[name] = content
        except SubmissionError as error:
            if name not in extra:
                raise
            refused[name] = str(error)
    return contents, refused


def _choose(places: Sequence[str], notebook: str, extra: Sequence[str]) -> dict[str, list[str]]:
    """Where the expected files lie, by bare name, and one notebook: the lab's own, else the only one there is."""
    expected = {name.casefold(): name for name in (notebook, *extra)}
    found: dict[str, list[str]] = {}
    for place in places:
        parts = [part for part in _parts(place) if part not in ("", ".")]
        if not parts or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        name = unicodedata.normalize("NFC", parts[-1])
        name = expected.get(name.casefold(), name)
        if name in expected.values() or is_notebook(name):
            found.setdefault(name, []).append(place)
    notebooks = [name for name in found if is_notebook(name)]
    if notebook in notebooks:
        return {
            name: where
            for name, where in found.items()
            if name == notebook or name not in notebooks
        }
    if len(notebooks) > 1:
        raise SubmissionError(
            f"{len(notebooks)} notebooks, {', '.join(notebooks[:2])} among them: hand in one"
        )
    return found


def _parts(place: str) -> list[str]:
    return re.split(r"[/\\]", place)


def _read(file: IO[bytes], name: str) -> bytes:
    largest = LARGEST_NOTEBOOK if is_notebook(name) else LARGEST_FILE
    with file:
        content = file.read(largest + 1)  # what a header claims about the size is not believed
    if len(content) > largest:
        advice = ": clear its outputs and hand it in again" if is_notebook(name) else ""
        raise SubmissionError(f"{name} is larger than {largest // MIB} MiB{advice}")
    return content


def _unzip(
    path: Path, notebook: str, extra: Sequence[str]
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Read the expected members of a zip into memory; nothing is ever extracted."""
    if path.stat().st_size > LARGEST_ZIP:
        raise SubmissionError(
            f"{path.name} is larger than {LARGEST_ZIP // MIB} MiB: hand in the zip that submit makes"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_MEMBERS:
                raise SubmissionError(
                    f"{path.name} holds {len(members)} files: hand in the zip that submit makes"
                )
            for member in members:
                _refuse_unsafe(member)
            return _read_all([member.filename for member in members], notebook, extra, archive.open)
    except (
        zipfile.BadZipFile,
        zlib.error,
        UnicodeDecodeError,
        RuntimeError,
        EOFError,
        OSError,
    ) as error:
        raise SubmissionError(
            f"{path.name} can't be read as a zip ({error}): make it again with submit"
        ) from error


def _refuse_unsafe(member: zipfile.ZipInfo) -> None:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise SubmissionError(
            f"the zip holds a link, {member.filename!r}: hand in the zip that submit makes"
        )
    parts = _parts(member.filename)
    if ".." in parts or not parts[0] or ":" in parts[0]:
        raise SubmissionError(f"the zip holds a path that leads outside, {member.filename!r}")
    # others can't be read in part
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SubmissionError(
            f"the zip packs {member.filename!r} in a rare way: hand in the zip that submit makes"
        )


@dataclass(frozen=True)
class _RawCell:
    """A cell as it stands in the notebook's JSON; nothing else of it is looked at."""

    type: str  # code, markdown or raw
    source: str
    exercise: str | None  # as the metadata say, else as the question that it begins with


def _cells(content: bytes) -> list[_RawCell]:
    """A notebook's cells, with line ends made equal."""
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    # ValueError: no UTF-8, no JSON, a number of 5000 digits
    except (ValueError, RecursionError) as error:
        raise SubmissionError(
            "the notebook is damaged (it is no JSON): save it again and hand it in again"
        ) from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise SubmissionError("the notebook has no cells: is it a notebook of version 4?")
    if len(cells) > MOST_CELLS:
        raise SubmissionError(
            f"the notebook holds {len(cells)} cells, more than {MOST_CELLS}: take the lab's notebook"
        )
    read = []
    for cell in cells:
        if isinstance(cell, dict) and cell.get("cell_type") in ("code", "markdown", "raw"):
            source = cell.get("source", "")
            source = (
                "".join(line for line in source if isinstance(line, str))
                if isinstance(source, list)
                else source
            )
            metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
            if isinstance(source, str):
                # half a character could not be written again
                source = source.encode("utf-8", "replace").decode()
                source = source.replace("\r\n", "\n").replace("\r", "\n")
                exercise, question = metadata.get("exercise"), QUESTION.match(source)
                exercise = exercise if isinstance(exercise, str) else question and question[1]
                read.append(_RawCell(cell["cell_type"], source, exercise))
    lengths = [
        len(cell.source)
        for cell in read
        if cell.type == "code" and len(cell.source) <= LARGEST_CELL
    ]
    if sum(lengths) > LARGEST_CODE:
        many = f"the notebook holds {sum(lengths)} characters of code, more than {LARGEST_CODE}"
        raise SubmissionError(f"{many}: leave out what the lab does not ask for")
    return read


def _refuse_other_lab(cells: Sequence[_RawCell], entry: Mapping) -> None:
    labs = {cell.exercise.partition(".")[0] for cell in cells if cell.exercise}
    wanted = {row["id"].partition(".")[0] for row in entry["exercises"]}
    if (
        others := sorted(lab for lab in labs if re.fullmatch(r"lab\d\d", lab))
    ) and not wanted & set(others):
        raise SubmissionError(f"this is {others[0]}'s notebook: hand in {entry['notebook']}")


def _sort_cells(cells: Sequence[_RawCell], rows: Sequence[Mapping]) -> dict:
    """Find each exercise's cell, by its metadata, else by the name of its function; and each question's answer."""
    functions = {row["id"]: row["function"] for row in rows if row["kind"] == "code"}
    questions = {row["id"]: row["question"] for row in rows if row["kind"] == "written"}
    claimed, texts, unclaimed = _claimed(cells, functions, questions)

    problems = {}
    exercises = {}
    for exercise, function in functions.items():
        own = claimed[exercise] or [cell for cell in unclaimed if function in cell.defines]
        if len(own) > 1:
            problems[exercise] = f"{len(own)} cells say they are {exercise}: keep one of them"
        elif not own:
            problems[exercise] = (
                f"no cell for {exercise}: take the lab's notebook and write in its cells"
            )
        else:
            exercises[exercise] = own[0]

    # Of all other cells, what defines something for the exercises to use.
    others = [cell for cell in unclaimed if cell not in exercises.values()]
    helpers = (JUPYTER, *statements(others, imported([*others, *exercises.values()])))
    # a later cell that defines the function anew counts, as in the notebook
    for exercise, cell in exercises.items():
        exercises[exercise] = replace(cell, reads=cell.reads | {functions[exercise]})

    answers = {}
    for exercise, parts in texts.items():
        text = "\n\n".join(part.strip() for part in parts if part.strip())[:LARGEST_CELL]
        if text:
            answers[exercise] = text
    return {"exercises": exercises, "helpers": helpers, "answers": answers, "problems": problems}


def _claimed(
    cells: Sequence[_RawCell], functions: Mapping[str, str], questions: Mapping[str, str]
) -> tuple[dict[str, list[Cell]], dict[str, list[str]], list[Cell]]:
    """What the cells say of themselves.

    In a lab nothing follows the questions, so all text below one is the student's answer.

    Returns: the cells of each exercise on code, the texts of each question, and the other cells of code.
    """
    claimed: dict[str, list[Cell]] = {exercise: [] for exercise in functions}
    texts: dict[str, list[str]] = {exercise: [] for exercise in questions}
    unclaimed: list[Cell] = []
    question: str | None = None  # the one above
    for place, cell in enumerate(cells, start=1):
        exercise = cell.exercise or ""
        label = exercise if exercise in functions else f"cell {place}"
        parsed = code_cell(place, label, cell.source) if cell.type == "code" else None
        if exercise in questions:
            question = exercise
            texts[question].append(
                _without_question(cell.source[:LARGEST_CELL], questions[question])
            )
        elif parsed and exercise in functions:
            question = None
            claimed[exercise].append(parsed)
        elif question and (parsed is None or is_text(parsed.source)):
            texts[question].append(cell.source[:LARGEST_CELL])
        elif parsed:
            unclaimed.append(parsed)
    return claimed, texts, unclaimed


def _without_question(text: str, question: str) -> str:
    """What a student wrote beside a question, which an editor may have wrapped anew, or under its number alone."""
    words = r"\s+".join(re.escape(word) for word in question.split())
    rest = re.sub(words, "", text, count=1).replace(WRITE_HERE, "")
    number = QUESTION.match(rest)
    return rest[number.end() :] if number else rest


# A process of its own. The package's __init__ would load torch there, so the package is made up around this folder.
APART = """
import sys, types
sys.modules["grader"] = package = types.ModuleType("grader")
package.__path__ = [sys.argv[1]]
from grader.submission import serve
serve()
"""


def read_apart(
    path: Path, student: str, entry: Mapping, extra_files: Sequence[str] = ()
) -> Submission:
    """Read a submission as `read_submission` does, within limits of time and memory, in a process of its own.

    Args:
        path: a notebook, a zip or a folder.
        student: who handed it in.
        entry: the lab in labs/manifest.json.
        extra_files: other names the lab asks for.

    Raises: SubmissionError; RuntimeError where the process fails by a fault of ours, OSError where it does not start.
    """
    here = Path(__file__).resolve().parent
    limits = {"RLIMIT_CPU": MOST_SECONDS, "RLIMIT_AS": MOST_MEMORY}
    request = json.dumps([os.fspath(path.absolute()), student, entry, list(extra_files), limits])
    command = [sys.executable, "-c", APART, str(here)]
    # A session of its own: Ctrl-C is for the grader.
    done = subprocess.run(
        command,
        input=request.encode(),
        capture_output=True,
        cwd=here.parent,
        start_new_session=True,
    )
    if done.returncode < 0:  # ended by a limit
        raise SubmissionError(TOO_HARD.format(path.name))
    if done.returncode:
        raise RuntimeError(
            f"reading {path.name} failed: {done.stderr.decode(errors='replace').strip()[-300:]}"
        )
    reply = json.loads(done.stdout)
    if "problem" in reply:
        raise (StrayError if reply["stray"] else SubmissionError)(reply["problem"])
    cells = {name: _cell(fields) for name, fields in reply["exercises"].items()}
    helpers = tuple(map(_cell, reply["helpers"]))
    files = {name: base64.b64decode(content) for name, content in reply["files"].items()}
    return Submission(**reply | {"exercises": cells, "helpers": helpers, "files": files})


def serve() -> None:
    """Answer one request of `read_apart`."""
    import resource  # which Windows does not have

    place, student, entry, extra_files, limits = json.load(sys.stdin)
    if sys.platform == "darwin":  # which takes no limit of addresses
        del limits["RLIMIT_AS"]
    for name, most in limits.items():
        kind = getattr(resource, name)
        given = resource.getrlimit(kind)[1]
        most = most if given == resource.RLIM_INFINITY else min(most, given)
        resource.setrlimit(kind, (most, most))
    try:
        reply = dataclasses.asdict(read_submission(Path(place), student, entry, extra_files))
        text = json.dumps(
            reply,
            default=lambda v: base64.b64encode(v).decode() if isinstance(v, bytes) else sorted(v),
        )
    except SubmissionError as error:
        text = json.dumps({"problem": str(error), "stray": isinstance(error, StrayError)})
    except OSError as error:
        text = json.dumps(
            {"problem": f"{Path(place).name} can't be read ({error.strerror})", "stray": False}
        )
    except MemoryError:
        text = json.dumps({"problem": TOO_HARD.format(Path(place).name), "stray": False})
    print(text)


def _cell(fields: Mapping) -> Cell:
    sets = {key: frozenset(fields[key]) for key in ("defines", "reads")}
    typed: dict[str, Any] = {**fields, **sets, "place": tuple(fields["place"])}
    return Cell(**typed)
