"""Everything that a GPU is to be asked, in one command: `make gpu-day`, or `python benchmarks/gpu/day.py PART …`.

Parts come in the order of what the field most wants to know. Each takes eight minutes at most, writes its own
docs/results/gpu/PART.json after every row, and leaves out the rows that it holds already, so that a day that is broken
off goes on. No network is needed: weights are random but for `tiny` and SmolLM2-135M. `python docs/make.py` puts what
is there into docs/gpu.md. With --dry-run the whole day runs on a CPU, in miniature, and its results go elsewhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from parts import PARTS, ROOT, Machine

from minigrpo.files import check_writable, write_json

KEPT, REHEARSED = ROOT / "docs" / "results" / "gpu", ROOT / "build" / "gpu-day"


def main(argv: list[str]) -> int:
    """Run parts; 0, 1 where a part failed, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="in miniature on the CPU, into build/gpu-day")
    parser.add_argument("--minutes", type=float, default=8, help="that a part may take (default 8)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: docs/results/gpu)")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    arguments = parser.parse_args(argv)
    wrong = [name for name in arguments.parts if name not in PARTS]
    if wrong or not arguments.minutes > 0:
        what = f"there is no part {wrong[0]!r}: take {', '.join(PARTS)}" if wrong else "--minutes must be above 0"
        print(f"gpu-day: {what}", file=sys.stderr)
        return 2
    if not (arguments.dry_run or torch.cuda.is_available()):
        print("gpu-day: torch sees no GPU here; --dry-run goes through it on the CPU", file=sys.stderr)
        return 2
    out = arguments.out or (REHEARSED if arguments.dry_run else KEPT)
    try:
        ended = [run_part(name, arguments, out) for name in arguments.parts or PARTS]
    except OSError as error:
        print(f"gpu-day: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu-day: interrupted; the rows so far are kept, go on with the same command", file=sys.stderr)
        return 130
    return 0 if all(ended) else 1


def run_part(name: str, arguments: argparse.Namespace, out: Path) -> bool:
    """Measure the rows of a part that are not there yet; whether none failed.

    Args:
        name: of PARTS.
        arguments: of the command line.
        out: folder of the results.
    """
    file = out / f"{name}.json"
    check_writable(file)
    device = "cpu" if arguments.dry_run else "cuda"
    known = {} if arguments.again or not file.exists() else json.loads(file.read_text(encoding="utf-8"))["rows"]
    now = facts(device, arguments.dry_run)
    if known and (other := json.loads(file.read_text(encoding="utf-8")))["card"] != now["card"]:
        print(f"{name}: {file} holds rows of {other['card']}, this is {now['card']}: take --again", file=sys.stderr)
        return False
    rows = {key: row for key, row in known.items() if "failed" not in row and row.get("finished", True)}
    result = now | {"part": name, "rows": rows, "finished": False}
    runs = (out / "runs" if arguments.dry_run else ROOT / "runs" / "gpu-day") / name
    if arguments.again:
        shutil.rmtree(runs, ignore_errors=True)
    machine = Machine(device, arguments.dry_run, runs, time.monotonic() + 60 * arguments.minutes)
    for key, measure in PARTS[name](machine):
        if key in rows:
            continue
        if machine.left < 0:
            print(f"{name}: no time left, {len(rows)} rows are there; go on with the same command", file=sys.stderr)
            return True
        start = time.perf_counter()
        rows[key] = measured(measure)
        what = rows[key].get("failed", f"{time.perf_counter() - start:.1f} s")
        print(f"{name}: {key}: {what}", file=sys.stderr)
        write_json(file, result)
    ended = all("failed" not in row and row.get("finished", True) for row in rows.values())
    write_json(file, result | {"finished": ended})
    return not any("failed" in row for row in rows.values())


def measured(measure) -> dict:
    """A row, or why there is none: too little memory, or a program that stopped."""
    try:
        return measure()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"failed": f"out of memory: {str(error).splitlines()[0]}"}
    except (RuntimeError, ValueError, OSError, ImportError, subprocess.SubprocessError) as error:
        return {"failed": (str(error).splitlines() or [type(error).__name__])[0]}


def facts(device: str, dry_run: bool) -> dict:
    """Where and with what a part was measured."""
    versions = {}
    for package in ("torch", "transformers", "trl"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"card": card, "versions": versions, "date": f"{datetime.date.today()}", "dry_run": dry_run}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
