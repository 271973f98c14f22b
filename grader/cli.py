"""The command line: `python -m grader check | submit | doctor` for students, the rest for instructors."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from grader.feedback import (
    check_one_lab,
    final_grades,
    left_out,
    rubrics,
    submissions_folder,
    write_manual,
    write_run,
)
from grader.grade import grade_folder, grade_submission, load_manifest, nothing_graded
from grader.results import Grade, Grading, Result
from grader.submission import SubmissionError, is_notebook, is_zip, read_apart
from minigrpo.commands import run
from minigrpo.files import check_writable, write_bytes, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
LABS, SOLUTIONS = Path("labs"), Path("solutions")  # of the course's folder, where instructors work


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for a verification that failed, 2 for a user's mistake, 130 for Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    torch.set_num_threads(1)  # tensors of a case are too small for more
    left = (
        "interrupted; what is written stays, run it again to go on"
        if arguments.command == "grade"
        else "interrupted"
    )
    return run(arguments, arguments.run, "grader", left)


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(
        prog="python -m grader", description="Check, hand in and grade the labs."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, call: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        style = argparse.ArgumentDefaultsHelpFormatter
        sub = commands.add_parser(name, help=text, description=text, formatter_class=style)
        sub.set_defaults(run=call)
        return sub

    sub = command("check", run_check, "run the public cases of a lab on your notebook")
    sub.add_argument("lab", help="as in lab02, or your notebook")
    sub.add_argument(
        "notebook",
        type=Path,
        nargs="?",
        help="your notebook (the one in labs/ or here unless given)",
    )

    sub = command("submit", run_submit, "pack your notebook to hand it in, finished or not")
    sub.add_argument("lab", help="as in lab02, or your notebook")
    sub.add_argument(
        "notebook",
        type=Path,
        nargs="?",
        help="your notebook (the one in labs/ or here unless given)",
    )
    files = sub.add_mutually_exclusive_group()
    files.add_argument(
        "--files",
        type=Path,
        metavar="DIR",
        help="the folder with a run's files, where the lab asks for some",
    )
    files.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="the folder with the folders of several runs, where the lab asks for these (lab10)",
    )
    sub.add_argument(
        "--out", type=Path, metavar="ZIP", help="the zip to write (labNN.zip unless given)"
    )

    command("doctor", run_doctor, "say what works on this machine")

    sub = command("build", run_build, "make labs/ from solutions/")
    sub.add_argument(
        "--verify", action="store_true", help="change nothing; fail where something is stale"
    )

    sub = command(
        "release", run_release, "make the archive for students, without solutions/ and tests"
    )
    sub.add_argument(
        "--out",
        type=Path,
        default=Path("minigrpo-labs.zip"),
        metavar="ZIP",
        help="the archive to write",
    )
    text = "leave out AGENTS.md and CLAUDE.md, which ask assistants to be tutors"
    sub.add_argument("--no-tutor", action="store_true", help=text)

    sub = command("grade", run_grade, "grade a folder of submissions; run it again to go on")
    sub.add_argument(
        "submissions", type=Path, help="a folder with a notebook, zip or folder for each student"
    )
    _grading_options(sub)
    sub.add_argument("--jobs", type=int, default=2, help="submissions graded at the same time")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command(
        "gradescope", run_gradescope, "grade one submission inside Gradescope's container"
    )
    sub.add_argument("submission", type=Path, help="/autograder/submission")
    _grading_options(sub)

    _add_marking(command)

    sub = command(
        "export", run_export, "write grades, a person's marks included, for another system"
    )
    sub.add_argument("grades", type=Path, help="the folder that grade wrote")
    sub.add_argument(
        "--format", required=True, choices=("gradescope", "canvas", "moodle", "csv", "html")
    )
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (GRADES/export/FORMAT unless given)"
    )
    sub.add_argument(
        "--assignment", default="", help="canvas: the column's name there, as in 'Lab 02 (12345)'"
    )
    sub.add_argument(
        "--roster",
        type=Path,
        metavar="CSV",
        help="canvas: the exported gradebook; csv, html: that, Moodle's worksheet, or a CSV with the columns "
        "name and id. Who is not found in it is asked for in GRADES/names.csv (submission,id): fill that in, "
        "and export again",
    )
    sub.add_argument(
        "--worksheet", type=Path, metavar="CSV", help="moodle: the downloaded grading worksheet"
    )
    return parser


def _add_marking(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands for a person who marks, and talks with a class."""
    sub = command(
        "mark", run_mark, "mark one written question for the whole class, in the terminal or a file"
    )
    sub.add_argument("grades", type=Path, help="the folder that grade wrote")
    sub.add_argument("exercise", help="as in lab02.4")
    files = sub.add_mutually_exclusive_group()
    files.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write all answers into one YAML file, with places for points and comments",
    )
    files.add_argument(
        "--read",
        type=Path,
        metavar="FILE",
        help="put the marks of that file, filled in, into the students' forms: all of them, or none",
    )

    sub = command("report", run_report, "write a page about the class, for its instructor")
    sub.add_argument("grades", type=Path, help="the folder that grade wrote")
    sub.add_argument(
        "--out",
        type=Path,
        metavar="HTML",
        help="the page to write (GRADES/class.html unless given)",
    )
    sub.add_argument(
        "--roster", type=Path, metavar="CSV", help="names who has handed in nothing; as for export"
    )

    sub = command("oral", run_oral, "draw two questions a student from their own submission")
    sub.add_argument("grades", type=Path, help="the folder that grade wrote")
    sub.add_argument("--student", metavar="NAME", help="this one alone")
    sub.add_argument(
        "--submissions", type=Path, metavar="DIR", help="their folder, where grade did not note it"
    )
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="write a page (.html) or text, instead of printing"
    )


def _grading_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lab", required=True, help="as in lab02")
    sub.add_argument(
        "--seed",
        type=int,
        help="the secret that hidden cases are drawn from; drawn and said unless given",
    )
    sub.add_argument("--out", type=Path, required=True, help="where results go")
    sub.add_argument(
        "--accept-reduced", action="store_true", help="grade also where bubblewrap can't isolate"
    )


def run_check(arguments: argparse.Namespace) -> int:
    """Print the public report of a notebook."""
    from grader.local import check_notebook

    lines = check_notebook(*_notebook(arguments))
    print("\n".join(lines))
    return 0


def run_submit(arguments: argparse.Namespace) -> int:
    """Write the zip to hand in."""
    from grader.local import pack

    path, lab, entry = _notebook(arguments)
    out = arguments.out or Path(f"{lab}.zip")
    check_writable(out)
    if arguments.runs is None:
        lines = pack(path, lab, entry, arguments.files, out)
        if arguments.files is None and _asks_for_runs(lab):
            lines.insert(
                0, f"{lab} asks for runs: name the folder that holds theirs, with --runs DIR"
            )
        print("\n".join(lines))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        lines = _pack_runs(arguments.runs, lab, Path(folder))
        print("\n".join([*lines, *pack(path, lab, entry, Path(folder), out)]))
    return 0


def _asks_for_runs(lab: str) -> bool:
    """Whether a lab asks for several runs."""
    from grader.labs import asked_files

    return "runs.json" in asked_files(lab)


def _pack_runs(runs: Path, lab: str, folder: Path) -> list[str]:
    """Pack several runs into the files that a lab asks for; gives what is to be said."""
    if not _asks_for_runs(lab):
        raise ValueError(f"--runs is for lab10, which asks for several runs, got {lab}")
    from grader.bundles import pack_runs

    contents, said = pack_runs(runs)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return said


def _notebook(arguments: argparse.Namespace) -> tuple[Path, str, dict]:
    """A student's notebook, its lab and the lab's entry: named, or else in labs/ or where the command is typed."""
    lab, entry = _entry(arguments.lab)
    name = entry["notebook"]
    path = arguments.notebook or Path(arguments.lab)
    if arguments.notebook is None and not (is_notebook(path.name) or is_zip(path.name)):
        path = LABS / name if (LABS / name).is_file() else Path(name)
    if not path.is_file():
        raise ValueError(
            f"no notebook {path}: name yours, as in `python -m grader {arguments.command} {lab} NOTEBOOK`"
        )
    return path, lab, entry


def _entry(text: str) -> tuple[str, dict]:
    """The lab that a user means, by its number or its notebook, and its entry in the manifest."""
    manifest = load_manifest(_of_course(LABS / "manifest.json").parent)
    number = re.fullmatch(r"(?:lab[ _-]?)?(\d\d?)|lab(\d\d)(?!\.\d)\D.*", Path(text).name.lower())
    lab = f"lab{int(number[1] or number[2]):02}" if number else text
    if lab not in manifest:
        raise ValueError(f"lab must be one of {', '.join(manifest)}, got {text!r}")
    return lab, manifest[lab]


def _of_course(path: Path) -> Path:
    """A file or folder of the course that this grader was made for, wherever the command is typed; else of this one."""
    return ROOT / path if (ROOT / path).exists() else path


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print what works here."""
    from grader.doctor import report

    print(report())
    return 0


def run_build(arguments: argparse.Namespace) -> int:
    """Write labs/ from solutions/, or find what is stale."""
    from grader.source import build, stale

    made = build(SOLUTIONS, LABS)
    if arguments.verify:
        old = stale(made, LABS)
        print(
            "\n".join(f"{path} is stale: python -m grader build" for path in old)
            or f"{len(made)} files are as built"
        )
        return 1 if old else 0
    for path, text in made.items():
        write_text(path, text)
    print(f"wrote {len(made)} files into {LABS}")
    return 0


def run_release(arguments: argparse.Namespace) -> int:
    """Write the students' archive."""
    from grader.release import CONTENTS, release

    count = release(Path("."), arguments.out, tutor=not arguments.no_tutor)
    print(f"{arguments.out} holds {count} files: {CONTENTS}.")
    return 0


def run_grade(arguments: argparse.Namespace) -> int:
    """Grade a folder and print a line for each student."""
    grading = _prepare(arguments)
    out = arguments.out
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {arguments.jobs}")
    check_one_lab(out, grading.lab)
    progress = sys.stderr.isatty() and not arguments.quiet
    work = grade_folder(arguments.submissions, grading, out, jobs=arguments.jobs, progress=progress)
    write_text(out / "seed", f"{grading.seed}\n")
    results = list(work)  # all of them, before a form that can't be read ends the command
    write_run(out, results, arguments.submissions)
    texts = rubrics(_of_course(SOLUTIONS), grading.lab)
    for result in results:
        write_manual(result, grading.entry, out, texts)
    for grade in final_grades(out):
        rest = f"not graded: {grade.problem}" if grade.problem else _to_do(grade)
        print(f"{grade.student:24} {grade.earned:5g} of {grade.points}  {rest}")
        _print_faults(grade)
    print("".join(f"{line}\n" for line in _left_out(out)), end="")
    print(
        f"seed {grading.seed}, isolation: {grading.isolation}; results in {out}/auto, your marks in {out}/manual"
    )
    return 0


def _to_do(grade: Grade) -> str:
    """What of a grade waits for a person."""
    unmarked = [row.id for row in grade.exercises if row.open]
    texts = ["marks for an earlier submission, look again"] if grade.stale else []
    texts += [f"to mark: {', '.join(unmarked)}"] if unmarked else []
    return "; ".join(texts)


def _print_faults(result: Result) -> None:
    """Say what the grader itself failed at, and with what: to instructors alone."""
    if result.failed:
        print(f"  the grader failed on all of it: {result.failed}")
    for row in result.exercises:
        if row.failed:
            print(f"  the grader failed on {row.id}: {row.failed}")


def run_mark(arguments: argparse.Namespace) -> int:
    """Ask for the marks of one question, or write a file for them, or read it."""
    from grader import marking

    out = arguments.grades
    grades = final_grades(out)
    lab, entry = _entry(grades[0].lab)
    texts = rubrics(_of_course(SOLUTIONS), lab)
    question = marking.find_question(lab, entry, arguments.exercise, texts)
    if arguments.write:
        print("\n".join(marking.write_file(grades, question, out, arguments.write)))
    elif arguments.read:
        print("\n".join(marking.read_file(grades, question, out, arguments.read)))
    else:
        marking.ask(grades, question, out)
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """Write a page about the class."""
    from grader.class_report import write_class_report
    from grader.exports import find_people
    from grader.report import headings

    out = arguments.out or arguments.grades / "class.html"
    grades = final_grades(arguments.grades)
    people = find_people(grades, arguments.roster, arguments.grades / "names.csv")
    notes = _left_out(arguments.grades)
    if people.missing:
        notes.append(f"of the roster, {len(people.missing)} have not: {'; '.join(people.missing)}")
    _, entry = _entry(grades[0].lab)
    titles = headings(_of_course(LABS / entry["notebook"]))
    write_class_report(grades, entry, titles, notes, out)
    print(f"{out} is about {len(grades)} submissions; it names students, and is for instructors")
    return 0


def run_oral(arguments: argparse.Namespace) -> int:
    """Print or write two questions a student."""
    from grader import oral
    from grader.report import given_lines
    from minigrpo.report import report

    grades = final_grades(arguments.grades)
    if arguments.student is not None:
        grades = [grade for grade in grades if grade.student == arguments.student]
    if not grades:
        raise ValueError(f"{arguments.grades} holds no grade of {arguments.student!r}")
    folder = arguments.submissions or submissions_folder(arguments.grades)
    if folder is None:
        raise ValueError("where are the submissions? Name their folder with --submissions DIR")
    _, entry = _entry(grades[0].lab)
    given = given_lines(_of_course(LABS / entry["notebook"]))
    asked = list(oral.ask_class(grades, folder, entry, given))
    if arguments.out is None:
        print(oral.as_text(asked), end="")
        return 0
    if arguments.out.suffix == ".html":
        report(arguments.out, oral.as_sections(asked), f"{entry['title']}: questions")
    else:
        write_text(arguments.out, oral.as_text(asked))
    print(f"{arguments.out} holds questions for {sum(bool(a.questions) for a in asked)} students")
    return 0


def _left_out(out: Path) -> list[str]:
    """A line about results that count no more."""
    gone = ", ".join(left_out(out))
    return [f"left out, not among the submissions of the last grading: {gone}"] if gone else []


def _prepare(arguments: argparse.Namespace) -> Grading:
    """The lab, its entry, the seed and the isolation to grade with."""
    from grader.sandbox import best_isolation, bubblewrap_problem

    lab, entry = _entry(arguments.lab)
    isolation = best_isolation()
    if isolation == "none":
        raise ValueError(bubblewrap_problem())
    if isolation != "bubblewrap" and not arguments.accept_reduced:
        raise ValueError(
            "bubblewrap can't isolate submissions here: install it (Debian, Ubuntu: apt install bubblewrap), or accept "
            "reduced isolation with --accept-reduced (docs/instructor.md says what it does not stop)"
        )
    seed = _seed(arguments.seed, arguments.out / "seed")
    if seed < 1:
        raise ValueError(f"--seed must be at least 1, got {seed} (0 draws the public cases)")
    return Grading(lab, entry, seed, isolation)


def _seed(asked: int | None, file: Path) -> int:
    """The seed that was asked for, else that of the last grading, else a new one."""
    if asked is not None:
        return asked
    return int(file.read_text()) if file.exists() else 1 + secrets.randbelow(2**32)


def run_gradescope(arguments: argparse.Namespace) -> int:
    """Grade one submission into results.json: zero points first, then what was earned."""
    from grader.exports import gradescope, nothing_yet
    from grader.feedback import merge
    from grader.labs import asked_files

    write_json(arguments.out, nothing_yet())
    grading = _prepare(arguments)
    try:
        submission = read_apart(
            arguments.submission, "submission", grading.entry, asked_files(grading.lab)
        )
        result = grade_submission(submission, grading)
    except SubmissionError as error:
        result = replace(nothing_graded(grading, "submission", str(error)), exercises=())
    write_json(arguments.out, gradescope(merge(result, {})))
    _print_faults(result)  # students don't see what is printed: stdout_visibility
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Write the final grades in another system's format."""
    grades = final_grades(arguments.grades)
    out = arguments.out or arguments.grades / "export" / arguments.format
    written, strays = _export(arguments, grades, out)
    grades = [grade for grade in grades if grade.student not in strays]
    unmarked = [row for grade in grades for row in grade.exercises if row.open]
    what = "written answers" if all(row.kind == "written" for row in unmarked) else "exercises"
    note = f"; {len(unmarked)} {what} have no mark yet" if unmarked else ""
    print(f"wrote {len(written)} file{'s' * (len(written) != 1)} into {out}{note}")
    groups = {
        "no grade, as the grader failed: mark by hand": [g.student for g in grades if g.ungraded],
        "can't be read; only a person's marks count": [
            g.student for g in grades if g.problem and not g.ungraded
        ],
        "marks for an earlier submission, look again": [g.student for g in grades if g.stale],
        "left out, no student's": strays,
    }
    lines = [f"{words}: {', '.join(students)}" for words, students in groups.items() if students]
    print("".join(f"{line}\n" for line in [*lines, *_left_out(arguments.grades)]), end="")
    return 0


def _export(
    arguments: argparse.Namespace, grades: list[Grade], out: Path
) -> tuple[list[Path], Sequence[str]]:
    """Write the files of a format; return them, and which submissions are no student's."""
    from grader import exports
    from grader.report import headings

    _, entry = _entry(grades[0].lab)
    names = arguments.grades / "names.csv"
    people = partial(exports.find_people, grades, arguments.roster, names)
    formats = {
        "gradescope": lambda: (exports.export_gradescope(grades, out), []),
        "canvas": lambda: exports.export_canvas(
            grades, arguments.assignment, arguments.roster, names, out
        ),
        "moodle": lambda: exports.export_moodle(grades, arguments.worksheet, names, out),
        "csv": lambda: exports.export_csv(people(), out),
        "html": lambda: exports.export_html(
            people(), entry, headings(_of_course(LABS / entry["notebook"])), out
        ),
    }
    return formats[arguments.format]()
