"""What does training all runs of Table 1 in one batch save, and would a second thread help?

Vectorised: `run_trap`, 30 seeds × 6 cells × 2 objectives at 250 updates, as `table1 --seeds 30` does. One after the
other: `train_trap` with one seed and one cell at a time, 12 runs (each cell and objective once), scaled up to 360.
Both in turns, wall time. The target frequencies of the 12 runs must be the same, update for update, as those of the
batch.

Threads: 1 and 2 in turns, on shorter runs of both kinds, on the machine as it is and then with other work on all cores
but one (busy loops, started and ended here). The command line's default, `--threads 1`, rests on this.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import torch
from _common import WALL_TIME, alternate, load_1min, main, markdown, span, spread
from torch import Tensor

from minigrpo.experiments import COMPARED, TrapConfig, run_trap, train_trap
from minigrpo.paper import TABLE1

CELLS = tuple(TABLE1)


def one_by_one(config: TrapConfig, seeds: int, cells: int = len(CELLS)) -> dict[tuple[str, int, int], Tensor]:
    """Each cell and objective alone, with a seed of its own: float (updates,) by objective, cell, seed."""
    chosen = [(name, c, c * seeds // len(CELLS)) for name in COMPARED for c in range(cells)]
    return {(name, c, seed): train_trap(config, name, [seed], [CELLS[c]])[0, 0] for name, c, seed in chosen}


def vectorised_row(config: TrapConfig, seeds: int, rounds: int) -> dict:
    """The whole table both ways, and whether they agree."""
    batch = run_trap(config, COMPARED, seeds, progress=False)
    alone = one_by_one(config, seeds)
    largest = max(float((batch[name][c, seed] - hits).abs().max()) for (name, c, seed), hits in alone.items())
    if largest > 0:
        raise RuntimeError(f"a run alone and in the batch differ by up to {largest} in their target frequencies")
    times = alternate(
        {
            "vectorised": lambda: run_trap(config, COMPARED, seeds, progress=False),
            "one_by_one": lambda: one_by_one(config, seeds),
        },
        rounds,
        clock=WALL_TIME,
        warm_up=False,  # both just ran
    )
    runs = seeds * len(CELLS) * len(COMPARED)
    scaled = [seconds * runs / len(alone) for seconds in times["one_by_one"]]
    return {
        "seeds": seeds,
        "cells": len(CELLS),
        "objectives": len(COMPARED),
        "updates": config.updates,
        "runs": runs,
        "measured_alone": len(alone),
        "largest_difference": largest,
        "seconds": {"vectorised": spread(times["vectorised"]), "one_by_one_scaled": spread(scaled)},
        "times_faster": spread([b / a for a, b in zip(times["vectorised"], scaled, strict=True)]),
    }


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep `count` cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def thread_rows(config: TrapConfig, seeds: int, cells: int, rounds: int) -> list[dict]:
    """1 against 2 threads, for the batch and for runs alone, with and without other work on the machine."""
    kinds = {
        "vectorised": (seeds * len(CELLS), lambda: run_trap(config, COMPARED, seeds, progress=False)),
        "one by one": (cells, lambda: one_by_one(config, seeds, cells)),
    }
    rows = []
    for busy in (0, max(1, (os.cpu_count() or 2) - 1)):
        for kind, (runs, call) in kinds.items():

            def with_threads(threads: int, call=call) -> None:
                torch.set_num_threads(threads)
                call()

            variants = {str(n): lambda n=n, run=with_threads: run(n) for n in (1, 2)}
            load = load_1min()
            with neighbours(busy):
                times = alternate(variants, rounds, clock=WALL_TIME, warm_up=not busy)
            torch.set_num_threads(1)
            rows.append(
                {
                    "kind": kind,
                    "runs": runs * len(COMPARED),
                    "updates": config.updates,
                    "busy_loops_beside": busy,
                    "load_1min_before": load,
                    "seconds": {threads: spread(sample) for threads, sample in times.items()},
                    "times_slower": spread([b / a for a, b in zip(times["1"], times["2"], strict=True)]),
                }
            )
    return rows


def measure(quick: bool) -> dict:
    seeds, updates, cells, rounds = (2, 3, 1, 1) if quick else (30, 250, 3, 3)
    config, short = (TrapConfig(updates=n, window=n) for n in (updates, min(updates, 25)))
    return {
        "policy": config.policy,
        "optimizer": config.optimizer,
        "rows": [vectorised_row(config, seeds, rounds)],
        "threads": thread_rows(short, seeds, cells, 2 * rounds - 1),
    }


def table(result: dict) -> str:
    header = ["Table 1", "vectorised s", "one after the other s, scaled up", "vectorised faster by", "same frequencies"]
    lines = [
        [
            f"{row['runs']} runs × {row['updates']} updates",
            span(row["seconds"]["vectorised"]),
            f"{span(row['seconds']['one_by_one_scaled'])}, from {row['measured_alone']} runs",
            span(row["times_faster"]),
            "yes" if row["largest_difference"] == 0 else "no",
        ]
        for row in result["rows"]
    ]
    threads = [
        [
            f"{row['kind']}, {row['runs']} runs × {row['updates']} updates",
            f"{row['busy_loops_beside']}",
            f"{row['load_1min_before']}",
            *(span(row["seconds"][n], ".2f") for n in ("1", "2")),
            span(row["times_slower"], ".2f"),
        ]
        for row in result["threads"]
    ]
    second = markdown(
        ["threads", "busy loops beside", "load before", "1 thread s", "2 threads s", "2 threads slower by"], threads
    )
    return f"{markdown(header, lines)}\n\n{second}"


if __name__ == "__main__":
    main("table1_speed", __doc__, measure, table)
