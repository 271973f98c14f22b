"""What the benchmarks share: arguments, alternating measurement, spread, results as JSON and as a Markdown table.

`python benchmarks/_common.py` puts the tables of the committed JSON into README.md, between their markers.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from minigrpo.files import check_writable, write_json, write_text

HERE = Path(__file__).resolve().parent
# CPU time of this process leaves out the time that others hold the core: with one thread it is what a quiet machine's
# wall clock would say. Where it ticks too slowly (Windows), and where threads are compared, the wall clock stands in.
FINE = time.get_clock_info("process_time").resolution < 1e-6
CPU_TIME = time.process_time if FINE else time.perf_counter
WALL_TIME = time.perf_counter
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(name: str, doc: str, measure: Callable[[bool], dict], table: Callable[[dict], str]) -> None:
    """Read the arguments, measure, write `results/NAME.json` (or --json FILE) and print the table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"default: benchmarks/results/{name}.json")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds; written only with --json")
    arguments = parser.parse_args()
    target = arguments.json or (None if arguments.quick else HERE / "results" / f"{name}.json")
    torch.set_num_threads(1)  # what the command line does; a script that compares threads sets its own
    try:
        if target:
            check_writable(target)
        before = machine()  # the load that others make
        result = {"benchmark": name, "quick": arguments.quick, "machine": before} | measure(arguments.quick)
        result["machine"]["threads"] = torch.get_num_threads()  # a script may have set them
        if target:
            write_json(target, result)
    except OSError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted, nothing written")
    print(table(result))


def machine() -> dict:
    """Where a result was measured: versions and sizes, no names. Load: processes that ran beside, at the start."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_time_is": "process_time" if FINE else "perf_counter",
        "load_1min_at_start": load_1min(),
    }


def load_1min() -> float | None:
    """How many processes ran or waited in the last minute; None on Windows, which does not say."""
    return None if sys.platform == "win32" else round(os.getloadavg()[0], 2)


def alternate(
    variants: dict[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = CPU_TIME,
    budget: float = 0,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Time the variants in turn, `rounds` times and then on for `budget` seconds in all: seconds a call.

    Turns are what makes ratios fair on a shared machine: whatever slows one variant down slows the next one too. A
    turn is a call, or as many as make about a millisecond; at most 100 rounds.
    """
    calls = dict.fromkeys(variants, 1)
    if warm_up:
        for name, call in variants.items():
            call()
            calls[name] = max(1, round(1e-3 / max(_seconds(call, 1, clock), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    turn = 0
    while turn < rounds or (turn < 100 and time.perf_counter() - begin < budget):
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            times[name].append(_seconds(variants[name], calls[name], clock))
        turn += 1
    gc.enable()
    return times


def _seconds(call: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    begin = clock()
    for _ in range(calls):
        call()
    return (clock() - begin) / calls


def spread(sample: Sequence[float]) -> dict[str, float]:
    """Smallest, median and quartiles of repeats (of two or one: the ends stand for the quartiles)."""
    low, _, high = statistics.quantiles(sample, n=4) if len(sample) > 2 else (min(sample), None, max(sample))
    return {"min": min(sample), "median": statistics.median(sample), "q1": low, "q3": high, "repeats": len(sample)}


def span(value: dict[str, float], form: str = ".1f", scale: float = 1) -> str:
    """A spread as text: median (first to third quartile)."""
    median, low, high = (format(value[key] * scale, form) for key in ("median", "q1", "q3"))
    return f"{median} ({low} to {high})"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns to the right but the first."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def fill(readme: str) -> str:
    """README text with each marked table made anew from its committed JSON."""

    def made(match: re.Match) -> str:
        result = json.loads((HERE / "results" / f"{match[2]}.json").read_text(encoding="utf-8"))
        return f"{match[1]}{importlib.import_module(match[2]).table(result)}\n{match[3]}"

    return MARKED.sub(made, readme)


if __name__ == "__main__":
    write_text(HERE / "README.md", fill((HERE / "README.md").read_text(encoding="utf-8")))
