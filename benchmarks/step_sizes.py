"""Is `step_sizes` linear in G·T, and what does that save against `same_prefix` and the recursive tree?

Three ways to |λ^(i,t)| of ragged groups, checked equal in every cell of the grid, timed in turns:

    step_sizes    minigrpo.step_sizes(ids, mask): rows sorted once, no G² tensor
    same_prefix   minigrpo.same_prefix(ids, mask).sum(dim=-2): the definition
    tree          minigrpo.ProcessTree of lists made beforehand, then the sizes read off its nodes

Times are CPU time of one thread in the fastest round, as other processes only ever add; "slower by" is the median and
the quartiles of the rounds' own ratios. After the grid of single groups come the batches of short groups that the toy
tasks have.

Peak memory is what one call allocates beyond its arguments: torch's own record of CPU allocations (the profiler's
[memory] events) for the tensors, tracemalloc for the tree.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import torch
from _common import alternate, main, markdown, span, spread
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from minigrpo import ProcessTree, same_prefix, step_sizes

SIZES, LENGTHS, VOCABULARY = (6, 16, 36, 64), (128, 512, 2048, 8192), 8
TOY_BATCHES = ((1, 16, 4), (4, 16, 6), (180, 16, 4))  # PathTree, ArithmeticChain, the trap of Table 1 in one batch
VARIANTS = ("step_sizes", "same_prefix", "tree")
LARGE = 2**15  # tokens of a group from which on the fixed cost of a call counts little


def branching_group(G: int, T: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask (G, T) that overlap as samples of one prompt do.

    Each completion copies an earlier one up to a random place and goes on with random tokens; lengths lie between T/2
    and T, the first has T.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (G, T), generator=generator)
    for i in range(1, G):
        parent, place = (int(torch.randint(high, (), generator=generator)) for high in (i, T))
        ids[i, :place] = ids[parent, :place]
    lengths = torch.randint(T // 2, T + 1, (G,), generator=generator)
    lengths[0] = T
    return ids, torch.arange(T) < lengths.unsqueeze(1)


def tree_sizes(completions: list[list[int]], rewards: list[float], T: int) -> list[list[int]]:
    """|λ^(i,t)| as nested lists (G, T), read off the recursive tree; 0 where a completion has ended."""
    sizes = [[0] * T for _ in completions]
    for node in ProcessTree(completions, rewards, scale="none").nodes:
        size, end = len(node.members), node.start + len(node.tokens)
        for i in node.members:
            sizes[i][node.start : end] = [size] * (end - node.start)
    return sizes


def tensor_peak(call: Callable[[], object]) -> int:
    """Bytes of CPU tensors that live at once inside a call, at most."""
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler is chatty
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            call()
        record.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    live = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def list_peak(call: Callable[[], object]) -> int:
    """Bytes of Python objects that live at once inside a call, at most."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def cell(P: int, G: int, T: int, rounds: int) -> dict:
    """One row: time, memory and ratios of the three at one size; (G, T) for P = 1, else (P, G, T)."""
    groups = [branching_group(G, T, seed) for seed in range(P)]
    ids, mask = (torch.stack(part).squeeze(0) for part in zip(*groups, strict=True))
    lists = [[row[own].tolist() for row, own in zip(*group, strict=True)] for group in groups]
    rewards = [float(i % 2) for i in range(G)]
    calls = {
        "step_sizes": lambda: step_sizes(ids, mask),
        "same_prefix": lambda: same_prefix(ids, mask).sum(dim=-2),
        "tree": lambda: [tree_sizes(completions, rewards, T) for completions in lists],
    }
    sizes = calls["step_sizes"]()
    if not (torch.equal(sizes, calls["same_prefix"]()) and sizes.view(P, G, T).tolist() == calls["tree"]()):
        raise RuntimeError(f"the three counts differ at P {P}, G {G}, T {T}")
    times = alternate(calls, rounds, budget=2 if rounds > 2 else 0)
    row = {"P": P, "G": G, "T": T, "mean_size": float(sizes[mask].double().mean())}
    row["seconds"] = {name: spread(sample) for name, sample in times.items()}
    row["peak_bytes"] = {name: (list_peak if name == "tree" else tensor_peak)(call) for name, call in calls.items()}
    row["times_slower"] = {
        name: spread([a / b for a, b in zip(times[name], times["step_sizes"], strict=True)]) for name in VARIANTS[1:]
    }
    return row


def slopes(rows: list[dict], value: Callable[[dict], float]) -> dict[str, float]:
    """Exponents of the power law c · G^g · T^t fitted by least squares to the logarithms."""
    x = torch.tensor([[1.0, math.log(row["G"]), math.log(row["T"])] for row in rows], dtype=torch.float64)
    y = torch.tensor([[math.log(value(row))] for row in rows], dtype=torch.float64)
    _, g, t = torch.linalg.lstsq(x, y).solution.flatten().tolist()
    return {"G": g, "T": t}


def line(rows: list[dict]) -> dict[str, float]:
    """`step_sizes` as a fixed cost and a price a token: seconds = fixed + price · G·T, least relative squares."""
    y = torch.tensor([row["seconds"]["step_sizes"]["min"] for row in rows], dtype=torch.float64)
    x = torch.tensor([[1.0, row["G"] * row["T"]] for row in rows], dtype=torch.float64)
    fixed, price = torch.linalg.lstsq(x / y.unsqueeze(1), torch.ones(len(rows), 1, dtype=y.dtype)).solution.flatten()
    off = float(((fixed + price * x[:, 1]) / y - 1).abs().max())
    return {"fixed_us": float(fixed) * 1e6, "ns_per_token": float(price) * 1e9, "largest_relative_error": off}


def measure(quick: bool) -> dict:
    lengths, sizes, toy, rounds = ((32, 128), (4, 8), ((2, 4, 4),), 2) if quick else (LENGTHS, SIZES, TOY_BATCHES, 7)
    rows = [cell(1, G, T, rounds) for G in sizes for T in lengths]
    batches = [cell(*shape, rounds) for shape in toy]
    parts = {"all": rows} | ({} if quick else {f"G·T ≥ {LARGE}": [row for row in rows if row["G"] * row["T"] >= LARGE]})
    growth = [
        {
            "variant": name,
            "cells": label,
            "time": slopes(chosen, lambda row, name=name: row["seconds"][name]["min"]),
            "memory": slopes(chosen, lambda row, name=name: row["peak_bytes"][name]),
        }
        for label, chosen in parts.items()
        for name in VARIANTS
    ]
    faster = [
        {axis: row[axis] for axis in "PGT"}
        for row in rows + batches
        if row["times_slower"]["same_prefix"]["median"] < 1
    ]
    return {"rows": rows, "batches": batches, "growth": growth, "line": line(rows), "same_prefix_faster": faster}


def table(result: dict) -> str:
    header = ["P×G×T", "`step_sizes` ms", "`same_prefix` ms", "tree ms", "`same_prefix` slower by", "tree slower by"]
    header += ["peak MB: `step_sizes`", "`same_prefix`", "tree"]
    lines = [
        [
            f"{row['P']}×{row['G']}×{row['T']}",
            *(f"{row['seconds'][name]['min'] * 1e3:.2f}" for name in VARIANTS),
            *(span(row["times_slower"][name]) for name in VARIANTS[1:]),
            *(f"{row['peak_bytes'][name] / 1e6:.3f}" for name in VARIANTS),
        ]
        for row in result["rows"] + result["batches"]
    ]
    exponents = ["log-log slope", "cells", "time in G", "time in T", "memory in G", "memory in T"]
    growth = [
        [fit["variant"], fit["cells"], *(f"{fit[what][axis]:.2f}" for what in ("time", "memory") for axis in "GT")]
        for fit in result["growth"]
    ]
    fit = result["line"]
    straight = (
        f"`step_sizes` of one group as a straight line in G·T: {fit['fixed_us']:.0f} µs + {fit['ns_per_token']:.1f} ns "
        f"a token; the cell farthest from it is off by {fit['largest_relative_error']:.0%}."
    )
    return f"{markdown(header, lines)}\n\n{markdown(exponents, growth)}\n\n{straight}"


if __name__ == "__main__":
    main("step_sizes", __doc__, measure, table)
