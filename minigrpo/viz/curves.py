"""Rows and learning curves of the experiments, as `minigrpo.experiments` returns them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minigrpo.checks import check_choice
from minigrpo.experiments.theorem import BROKEN, TOLERANCE, is_broken
from minigrpo.experiments.trap import COMPARED
from minigrpo.paper import TABLE1
from minigrpo.viz.style import (
    FLOOR,
    LINES,
    MARKERS,
    NAMES,
    PALETTE,
    SMOOTHED,
    ShownFigure,
    label_axes,
    true_minus,
)


def plot_theorem(rows: Iterable[dict]) -> Figure:
    """Plot for each case of `theorem` the largest and the median gap between the gradients of GRPO and PRM.

    Args: rows of `theorem`; a gap of exactly 0 is drawn at 1e-17. Raises: ValueError without rows.
    """
    rows = sorted(rows, key=is_broken)  # stable: those that hold come first
    if not rows:
        raise ValueError("rows must hold at least one case, got none")
    figure = ShownFigure(figsize=(9, 1.5 + 0.33 * len(rows)), layout="constrained")
    axes = figure.subplots()
    holding = [k for k, row in enumerate(rows) if not is_broken(row)]
    broken = [k for k, row in enumerate(rows) if is_broken(row)]
    _draw_gaps(axes, rows, holding, "theorem holds", color=PALETTE["good"], marker="o")
    _draw_gaps(axes, rows, broken, "broken on purpose", color=PALETTE["bad"], marker="X")
    for k in broken:
        axes.text(20, k, f"in {rows[k]['differ']:.0%} of groups", fontsize=8.5, va="center")
    axes.axvline(TOLERANCE, color="black", linestyle="--", linewidth=1)
    axes.text(1.5 * TOLERANCE, -0.9, "bound of the test: 1e-12", fontsize=9.5, va="center")

    # One line a case, from top to bottom, on a logarithmic axis.
    names = [textwrap.fill(row["case"].removeprefix(BROKEN), 42) for row in rows]
    axes.set_yticks(range(len(rows)), names, linespacing=1.1)
    axes.set_ylim(len(rows) - 0.4, -1.5)
    axes.set_xscale("log")
    axes.set(xlim=(FLOOR / 2, 1e5), xticks=10.0 ** np.arange(-16, 1, 4))
    label_axes(axes, "gap ‖∇L_GRPO − ∇L_PRM‖ / max(‖∇L_GRPO‖, 1e-3), log scale", "case")
    axes.tick_params(axis="y", labelsize=8.5)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9.5, frameon=False)
    return figure


def _draw_gaps(
    axes: Axes, rows: Sequence[dict], cases: Sequence[int], label: str, *, color: str, marker: str
) -> None:
    """Draw the gaps of some cases, each on its line."""
    largest = [max(rows[k]["grad_gap"], FLOOR) for k in cases]
    median = [max(rows[k]["median_gap"], FLOOR) for k in cases]
    style = {"color": color, "linestyle": "none", "markersize": 8}
    axes.hlines(cases, median, largest, color=color, linewidth=1)
    axes.plot(largest, cases, marker=marker, label=f"{label}: largest gap", **style)
    axes.plot(median, cases, marker="|", markeredgewidth=2, label=f"{label}: median gap", **style)


def plot_table1(rows: Sequence[dict], differences: Sequence[dict]) -> Figure:
    """Plot the target frequency of each objective in each cell beside the paper's, and the paired differences.

    Args: rows and differences as `trap_rows` returns them. Raises: ValueError for an unknown objective.
    """
    figure = ShownFigure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    cells = list(dict.fromkeys((row["n"], row["r_neg"]) for row in rows))
    paper = {cell: TABLE1[cell] for cell in cells if cell in TABLE1}
    places = np.array([cells.index(cell) for cell in paper])

    handles: list[Artist] = []
    for k, objective in enumerate(dict.fromkeys(row["objective"] for row in rows)):
        check_choice("objective", objective, NAMES)
        own = [row for row in rows if row["objective"] == objective]
        left = 0.3 * k - 0.2
        style = {"marker": MARKERS[objective], "color": PALETTE[objective], "linestyle": "none"}
        label = f"{NAMES[objective]}, mean of {own[0]['seeds']} seeds and its 95% interval"
        handles.append(_intervals(above, cells, left, own, label=label, **style))
        if objective in COMPARED:
            values = [both[COMPARED.index(objective)] for both in paper.values()]
            label = f"{NAMES[objective]} in the paper (GPT-2 small, 5 seeds)"
            handles += above.plot(
                places + left + 0.1, values, label=label, markerfacecolor="white", **style
            )

    paired = [row for row in differences if row["difference"] == "lambda_grpo − grpo"]
    style = {"marker": "D", "color": PALETTE["good"], "linestyle": "none"}
    _intervals(below, cells, -0.05, paired, **style)
    theirs = [second - first for first, second in paper.values()]
    below.plot(places + 0.05, theirs, markerfacecolor="white", **style)
    below.axhline(0, color="black", linewidth=1)

    above.set_ylim(-0.05, 1.05)
    below.set_xticks(
        range(len(cells)), [true_minus(f"n = {n}\nr_neg = {r_neg:+.1f}") for n, r_neg in cells]
    )
    label_axes(above, y="target frequency\n(share of samples, 0 to 1)")
    cell = "cell (n actions shared with the target; reward r_neg)"
    label_axes(below, cell, "λ-GRPO − GRPO\n(paired, 95% interval)")
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9.5, frameon=False)
    return figure


def _intervals(axes: Axes, cells: Sequence, shift: float, rows: Sequence[dict], **style) -> Artist:
    """Draw the means of rows with their intervals, each at its cell."""
    x = [cells.index((row["n"], row["r_neg"])) + shift for row in rows]
    mean = np.array([row["mean"] for row in rows])
    below = mean - [row["ci_low"] for row in rows]
    above = [row["ci_high"] for row in rows] - mean
    return axes.errorbar(
        x, mean, yerr=(below, above), markersize=8, elinewidth=1.8, capsize=4, **style
    )


def plot_trap_curves(hits: dict[str, Tensor], cells: Sequence[tuple[int, float]]) -> Figure:
    """Plot the learning curves of every cell of the trap: mean target frequency over seeds with a 95% band.

    Args:
        hits: of each objective (cells, seeds, updates), as `run_trap` returns them.
        cells: (n, r_neg), in order.

    Raises:
        ValueError: for no or an unknown objective, or another shape.
    """
    seeds, _ = check_hits(hits, cells)
    columns = min(3, len(cells))
    lines = -(-len(cells) // columns)
    figure = ShownFigure(figsize=(9, 0.9 + 2.4 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(cells) :]:
        axes.set_axis_off()
    for c, (axes, (n, r_neg)) in enumerate(zip(grid.flat, cells, strict=False)):
        draw_curves(axes, {objective: hit[c] for objective, hit in hits.items()})
        label_axes(axes, "update", "target frequency", true_minus(f"n = {n}, r_neg = {r_neg:+.1f}"))
        axes.label_outer()
    note = f"mean of {seeds} seeds and its 95% band, smoothed over {SMOOTHED} updates"
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, title=note, frameon=False)
    return figure


def check_hits(hits: dict[str, Tensor], cells: Sequence[tuple[int, float]]) -> tuple[int, int]:
    """Refuse what is not (cells, seeds, updates) of known objectives with a ValueError; return seeds and updates."""
    for objective, hit in hits.items():
        check_choice("objective", objective, NAMES)
        if hit.ndim != 3 or len(hit) != len(cells):
            raise ValueError(
                f"hits[{objective!r}] must be ({len(cells)}, seeds, updates), got {tuple(hit.shape)}"
            )
    if not hits:
        raise ValueError("hits must hold at least one objective, got none")
    return hit.shape[1:]


def draw_curves(axes: Axes, hits: dict[str, Tensor]) -> None:
    """Draw of each objective (seeds, updates) → the mean over seeds and its band, smoothed over updates."""
    updates = 0
    for objective, hit in hits.items():
        curves = _trailing_mean(hit.double().numpy())  # (seeds, updates)
        mean = curves.mean(axis=0)
        error = 1.96 * curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
        updates = len(mean)
        x = np.arange(1, updates + 1)
        hue = PALETTE[objective]
        axes.plot(
            x, mean, color=hue, linestyle=LINES[objective], linewidth=2.2, label=NAMES[objective]
        )
        low = (mean - error).clip(0, 1)
        high = (mean + error).clip(0, 1)
        axes.fill_between(x, low, high, color=hue, alpha=0.18, linewidth=0)
    axes.set(xlim=(0, updates), ylim=(-0.03, 1.03))


def _trailing_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and up to SMOOTHED − 1 before it, along the last axis."""
    total = np.cumsum(values, axis=-1)
    total[..., SMOOTHED:] -= total[..., :-SMOOTHED].copy()
    return total / np.minimum(np.arange(1, values.shape[-1] + 1), SMOOTHED)


def plot_overlap(rows: Sequence[dict]) -> Figure:
    """Plot how much the completions of a group share while a policy trains, a line for each group size.

    Args: rows of `overlap`. Raises: ValueError without rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one update, got none")
    figure = ShownFigure(figsize=(9, 3.9), layout="constrained")
    panels = {
        "path_depth": "path depth\n(branchings before the last step)",
        "intermediate_proportion": "intermediate proportion\n(share of tokens before the last step)",
        "entropy": "entropy\n(nats per token)",
    }
    looks = [("good", "-"), ("bad", "--"), ("lambda_grpo", "-."), ("prm", ":")]
    sizes = list(dict.fromkeys(row["group_size"] for row in rows))
    grid = figure.subplots(1, 3)
    for axes, (column, label) in zip(grid, panels.items(), strict=True):
        for k, G in enumerate(sizes):
            hue, line = looks[k % len(looks)]
            own = [row for row in rows if row["group_size"] == G]
            x = [row["update"] for row in own]
            y = [row[column] for row in own]
            axes.plot(x, y, color=PALETTE[hue], linewidth=0.8, alpha=0.35)
            smooth = _trailing_mean(np.array(y, dtype=float))
            axes.plot(
                x, smooth, color=PALETTE[hue], linestyle=line, linewidth=2.2, label=f"G = {G}"
            )
        axes.set_ylim(bottom=0)
        label_axes(axes, "update", label)
    note = f"thin: each update; thick: mean of the last {SMOOTHED} updates"
    handles, labels = grid[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, title=note, frameon=False)
    return figure
