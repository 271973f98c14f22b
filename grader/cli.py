"""The command line: `python -m grader check | submit | doctor` for students, the rest for instructors."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from grader.feedback import final_grades, write_manual
from grader.grade import grade_folder, grade_submission, load_manifest
from grader.submission import SubmissionError, read_submission
from minigrpo.files import check_writable, write_json, write_text

LABS = Path("labs")
INTERRUPTED = 130  # by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for a verification that failed, 2 for a user's mistake, 130 for Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    torch.set_num_threads(1)  # tensors of a case are too small for more
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"grader {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"grader {arguments.command}: interrupted; what is written stays, run it again to go on", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(prog="python -m grader", description="Check, hand in and grade the labs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        style = argparse.ArgumentDefaultsHelpFormatter
        sub = commands.add_parser(name, help=text, description=text, formatter_class=style)
        sub.set_defaults(run=run)
        return sub

    sub = command("check", run_check, "run the public cases of a lab on your notebook")
    sub.add_argument("lab", help="as in lab02")
    sub.add_argument("notebook", type=Path, nargs="?", help="your notebook (the one in labs/ unless given)")

    sub = command("submit", run_submit, "pack your notebook to hand it in, finished or not")
    sub.add_argument("lab", help="as in lab02")
    sub.add_argument("notebook", type=Path, nargs="?", help="your notebook (the one in labs/ unless given)")
    sub.add_argument(
        "--files", type=Path, metavar="DIR", help="the folder with a run's files, where the lab asks for some"
    )
    sub.add_argument("--out", type=Path, metavar="ZIP", help="the zip to write (labNN.zip unless given)")

    command("doctor", run_doctor, "say what works on this machine")

    sub = command("build", run_build, "make labs/ from solutions/")
    sub.add_argument("--verify", action="store_true", help="change nothing; fail where something is stale")

    sub = command("release", run_release, "make the archive for students, without solutions")
    sub.add_argument("--out", type=Path, default=Path("minigrpo-labs.zip"), metavar="ZIP", help="the archive to write")

    sub = command("grade", run_grade, "grade a folder of submissions; run it again to go on")
    sub.add_argument("submissions", type=Path, help="a folder with a notebook, zip or folder for each student")
    _grading_options(sub)
    sub.add_argument("--jobs", type=int, default=2, help="submissions graded at the same time")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command("gradescope", run_gradescope, "grade one submission inside Gradescope's container")
    sub.add_argument("submission", type=Path, help="/autograder/submission")
    _grading_options(sub)

    sub = command("export", run_export, "write grades, a person's marks included, for another system")
    sub.add_argument("grades", type=Path, help="the folder that grade wrote")
    sub.add_argument("--format", required=True, choices=("gradescope", "canvas", "moodle", "csv", "html"))
    sub.add_argument("--out", type=Path, metavar="DIR", help="where to write (GRADES/export/FORMAT unless given)")
    sub.add_argument("--assignment", default="", help="canvas: the column's name there, as in 'Lab 02 (12345)'")
    sub.add_argument("--roster", type=Path, metavar="CSV", help="canvas: the exported gradebook")
    sub.add_argument("--worksheet", type=Path, metavar="CSV", help="moodle: the downloaded grading worksheet")
    return parser


def _grading_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lab", required=True, help="as in lab02")
    sub.add_argument(
        "--seed", type=int, help="the secret that hidden cases are drawn from; drawn and said unless given"
    )
    sub.add_argument("--out", type=Path, required=True, help="where results go")
    sub.add_argument("--accept-reduced", action="store_true", help="grade also where bubblewrap can't isolate")


def run_check(arguments: argparse.Namespace) -> int:
    """Print the public report of a notebook."""
    from grader.local import check_notebook

    lines = check_notebook(*_notebook(arguments))
    print("\n".join(lines))
    return 0


def run_submit(arguments: argparse.Namespace) -> int:
    """Write the zip to hand in."""
    from grader.local import pack

    out = arguments.out or Path(f"{arguments.lab}.zip")
    check_writable(out)
    print("\n".join(pack(*_notebook(arguments), arguments.files, out)))
    return 0


def _notebook(arguments: argparse.Namespace) -> tuple[Path, str, dict]:
    entry = _entry(arguments.lab)
    path = arguments.notebook or LABS / entry["notebook"]
    if not path.is_file():
        raise ValueError(f"no notebook {path}: name yours, or run this in the course's folder")
    return path, arguments.lab, entry


def _entry(lab: str) -> dict:
    manifest = load_manifest(LABS)
    if lab not in manifest:
        raise ValueError(f"lab must be one of {', '.join(manifest)}, got {lab!r}")
    return manifest[lab]


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print what works here."""
    from grader.doctor import report

    print(report())
    return 0


def run_build(arguments: argparse.Namespace) -> int:
    """Write labs/ from solutions/, or find what is stale."""
    from grader.source import build, stale

    made = build(Path("solutions"), LABS)
    if arguments.verify:
        old = stale(made, LABS)
        print(
            "\n".join(f"{path} is stale: python -m grader build" for path in old) or f"{len(made)} files are as built"
        )
        return 1 if old else 0
    for path, text in made.items():
        write_text(path, text)
    print(f"wrote {len(made)} files into {LABS}")
    return 0


def run_release(arguments: argparse.Namespace) -> int:
    """Write the students' archive."""
    from grader.release import release

    print(f"{arguments.out} holds {release(Path('.'), arguments.out)} files, and no solutions")
    return 0


def run_grade(arguments: argparse.Namespace) -> int:
    """Grade a folder and print a line for each student."""
    entry, seed, isolation = _prepare(arguments)
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {arguments.jobs}")
    progress = sys.stderr.isatty() and not arguments.quiet
    write_text(arguments.out / "seed", f"{seed}\n")
    results = grade_folder(
        arguments.submissions,
        arguments.lab,
        load_manifest(LABS),
        seed,
        arguments.out,
        isolation,
        jobs=arguments.jobs,
        progress=progress,
    )
    for result in results:
        write_manual(result, entry, arguments.out)
    for grade in final_grades(arguments.out):
        rest = f"not graded: {grade['problem']}" if grade["problem"] else _open(grade)
        print(f"{grade['student']:24} {grade['earned']:5g} of {grade['points']}  {rest}")
    print(f"seed {seed}, isolation: {isolation}; results in {arguments.out}/auto, your marks in {arguments.out}/manual")
    return 0


def _open(grade: dict) -> str:
    unmarked = [row["id"] for row in grade["exercises"] if row["open"]]
    stale = "marks for an earlier submission" if grade["stale"] else ""
    return "; ".join(text for text in (stale, f"to mark: {', '.join(unmarked)}" if unmarked else "") if text)


def _prepare(arguments: argparse.Namespace) -> tuple[dict, int, str]:
    """The lab's entry, the seed and the isolation to grade with."""
    from grader.sandbox import best_isolation, bubblewrap_problem

    entry = _entry(arguments.lab)
    isolation = best_isolation()
    if isolation == "none":
        raise ValueError(bubblewrap_problem())
    if isolation != "bubblewrap" and not arguments.accept_reduced:
        raise ValueError(
            "bubblewrap can't isolate submissions here: install it (Debian, Ubuntu: apt install bubblewrap), or accept "
            "reduced isolation with --accept-reduced (docs/instructor.md says what it does not stop)"
        )
    seed_file = arguments.out / "seed"
    if arguments.seed is None and seed_file.exists():
        seed = int(seed_file.read_text())
    else:
        seed = 1 + secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    if seed < 1:
        raise ValueError(f"--seed must be at least 1, got {seed} (0 draws the public cases)")
    return entry, seed, isolation


def run_gradescope(arguments: argparse.Namespace) -> int:
    """Grade one submission into results.json: zero points first, then what was earned."""
    from grader.exports import gradescope, nothing_yet
    from grader.feedback import merge
    from grader.grade import result

    write_json(arguments.out, nothing_yet())
    entry, seed, isolation = _prepare(arguments)
    try:
        submission = read_submission(arguments.submission, "submission", entry, _extra(arguments.lab))
        graded = grade_submission(submission, arguments.lab, entry, seed, isolation)
    except SubmissionError as error:
        graded = result("submission", arguments.lab, "", seed, isolation, [], problem=str(error))
    write_json(arguments.out, gradescope(merge(graded, {})))
    return 0


def _extra(lab: str) -> list[str]:
    from grader.labs import artifacts

    return [name for artifact in artifacts(lab) for name in artifact.files]


def run_export(arguments: argparse.Namespace) -> int:
    """Write the final grades in another system's format."""
    from grader import exports

    grades = final_grades(arguments.grades)
    out = arguments.out or arguments.grades / "export" / arguments.format
    title = _entry(grades[0]["lab"])["title"]
    written = {
        "gradescope": lambda: exports.export_gradescope(grades, out),
        "canvas": lambda: exports.export_canvas(grades, arguments.assignment, arguments.roster, out),
        "moodle": lambda: exports.export_moodle(grades, arguments.worksheet, out),
        "csv": lambda: exports.export_csv(grades, out),
        "html": lambda: exports.export_html(grades, title, out),
    }[arguments.format]()
    unmarked = sum(row["open"] for grade in grades for row in grade["exercises"])
    note = f"; {unmarked} written answers have no mark yet" if unmarked else ""
    print(f"wrote {len(written)} file{'s' * (len(written) != 1)} into {out}{note}")
    return 0
