"""The race of the trap: whether the branch becomes good before its root is abandoned."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minigrpo.checks import check_choice
from minigrpo.experiments import RACE_CELL, race_threshold
from minigrpo.viz.style import MARKERS, NAMES, PALETTE, ShownFigure, label_axes

EVERY = 10  # updates between two marks
FOUND = 0.5  # of the target's probability at the end


def plot_race(races: Mapping[str, Tensor], cell: tuple[int, float] = RACE_CELL) -> Figure:
    """Plot the probability of the target's first actions against that of the rest, a panel an objective.

    Args:
        races: for each objective float (seeds, updates, 2), as `run_race` returns them.
        cell: that they ran in.

    Raises:
        ValueError: for an unknown objective.
    """
    figure = ShownFigure(figsize=(4.4 * len(races), 4.3), layout="constrained")
    panels = figure.subplots(1, len(races), sharey=True, squeeze=False)[0]
    for axes, (objective, race) in zip(panels, races.items(), strict=True):
        check_choice("objective", objective, NAMES)
        _draw_race(axes, objective, race, cell)
    panels[0].set_ylabel("P(the rest | first)", fontsize=10.5)
    return figure


def _draw_race(axes: Axes, objective: str, race: Tensor, cell: tuple[int, float]) -> None:
    """Every seed as a thin line, their mean as a thick one with a mark each EVERY updates."""
    n, r_neg = cell
    hue = PALETTE[objective]
    seeds = len(race)
    for seed in race:
        axes.plot(seed[:, 0], seed[:, 1], color=hue, linewidth=0.7, alpha=0.3)
    mean = race.mean(dim=0)
    axes.plot(
        mean[:, 0],
        mean[:, 1],
        color=hue,
        linewidth=2.6,
        marker=MARKERS[objective],
        markevery=EVERY,
        markersize=6,
    )
    axes.plot(*mean[0], marker="o", color="black", markersize=8, zorder=5)
    axes.annotate("start", mean[0].tolist(), xytext=(6, -12), textcoords="offset points", size=9.5)

    threshold = race_threshold(cell)
    axes.axhspan(threshold, 1.03, color=PALETTE["good"], alpha=0.1, linewidth=0)
    axes.text(0.5, 0.46, f"shaded, above {threshold:.2g}:", size=9, va="top")
    axes.text(0.5, 0.4, "the first is pushed up,", size=9, va="top")
    axes.text(0.5, 0.34, "below it down, by both", size=9, va="top")
    for update in (EVERY, 2 * EVERY):
        if update < len(mean):
            place = mean[update].tolist()
            axes.annotate(
                f"update {update}",
                place,
                xytext=(12, -4),
                textcoords="offset points",
                size=9,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
            )
    found = int((race[:, -1].prod(dim=-1) > FOUND).sum())
    axes.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.03))
    first = "the first action" if n == 1 else f"the first {n} actions"
    title = f"{NAMES[objective]}: {found} of {seeds} seeds find the target"
    label_axes(axes, f"P({first} of the target)", title=title)
