"""What the objectives weigh a step by on average, and what λ-GRPO maximises for one decision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minigrpo.experiments.expectation import WEIGHTS, harmonic_utility
from minigrpo.viz.style import LINES, NAMES, PALETTE, ShownFigure, label_axes


def plot_expectation(group_sizes: Sequence[int] = (4, 8, 16)) -> Figure:
    """Plot a step's weight over the probability of passing through it, and the utility of one decision.

    Args: group_sizes: G, two at least. Raises: ValueError for a G below 2.
    """
    for G in group_sizes:
        if G < 2:
            raise ValueError(f"group_sizes must be at least 2, got {G}")
    figure = ShownFigure(figsize=(9, 4.2), layout="constrained")
    weights, utility = figure.subplots(1, 2)
    _draw_weights(weights, group_sizes)
    _draw_utility(utility, group_sizes)
    return figure


def _draw_weights(axes: Axes, group_sizes: Sequence[int]) -> None:
    """(G − 1)·p against 1 − (1 − p)^(G−1)."""
    p = torch.linspace(0, 1, 201, dtype=torch.float64)
    for objective in ("grpo", "lambda_grpo"):
        for k, G in enumerate(group_sizes):
            axes.plot(
                p,
                WEIGHTS[objective](p, G),
                color=PALETTE[objective],
                linestyle=LINES[objective],
                linewidth=1.2 + 0.6 * k,
                label=f"{NAMES[objective]}, G = {G}",
            )
    axes.set(xlim=(0, 1), ylim=(0, 4))
    axes.legend(fontsize=8.5, framealpha=0.9, edgecolor="none", ncols=2, loc="lower right")
    label_axes(
        axes,
        "p, probability that a completion passes through the step",
        "weight of the step",
        "Visits against a visit",
    )


def _draw_utility(axes: Axes, group_sizes: Sequence[int]) -> None:
    """F between pass@1 and ln p, all brought to 0 at p = 0.02 and to 1 at p = 1."""
    p = torch.linspace(0.02, 1, 300, dtype=torch.float64)

    def scaled(values: torch.Tensor) -> torch.Tensor:
        return (values - values[0]) / (values[-1] - values[0])

    axes.plot(p, scaled(p), color=PALETTE["grpo"], linestyle="--", label="pass@1: GRPO")
    for k, G in enumerate(group_sizes):
        axes.plot(
            p,
            scaled(harmonic_utility(p, G)),
            color=PALETTE["lambda_grpo"],
            linewidth=1.2 + 0.6 * k,
            label=f"F: λ-GRPO, G = {G}",
        )
    axes.plot(p, scaled(p.log()), color="black", linestyle=":", label="ln p: G → ∞")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    label_axes(
        axes,
        "p, probability of the right answer",
        "utility, scaled",
        "One decision: what is maximised",
    )
