"""What all figures share: colours, names, markers, and how axes are labelled.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and never the only sign.
"""

from __future__ import annotations

from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minigrpo.report import render

PALETTE = MappingProxyType(
    {
        "grpo": "#4D4D4D",
        "lambda_grpo": "#009E73",
        "prm": "#CC79A7",
        "dr_grpo": "#56B4E9",
        "rloo": "#0072B2",
        "maxrl": "#E69F00",
        "tempo": "#D55E00",
        "good": "#0072B2",  # a positive advantage; a case that holds
        "bad": "#D55E00",  # a negative advantage; a broken case
        "branch": "#BBBBBB",
        "grid": "#DDDDDD",
    }
)
NAMES = MappingProxyType(
    {
        "grpo": "GRPO",
        "lambda_grpo": "λ-GRPO",
        "prm": "PRM",
        "dr_grpo": "Dr. GRPO",
        "rloo": "RLOO",
        "maxrl": "MaxRL",
        "tempo": "TEMPO",
    }
)
LINES = MappingProxyType(
    {"grpo": "--", "lambda_grpo": "-", "prm": ":"}
    | {"dr_grpo": "--", "rloo": "-.", "maxrl": "-.", "tempo": (0, (1, 1))}
)
MARKERS = MappingProxyType(
    {"grpo": "s", "lambda_grpo": "o", "prm": "^"}
    | {"dr_grpo": "D", "rloo": "v", "maxrl": "P", "tempo": "X"}
)
SMOOTHED = 10  # updates in the trailing mean of a learning curve
FLOOR = 1e-17  # where a gap of exactly 0 is drawn on a log axis


class ShownFigure(Figure):
    """A figure that a notebook shows, though no pyplot told it how to."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


def label_axes(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Label axes and leave only the lines that help to read them.

    Args:
        axes: to label.
        x: below.
        y: to the left.
        title: above.
    """
    axes.set_xlabel(x, fontsize=10.5)
    axes.set_ylabel(y, fontsize=10.5)
    axes.set_title(title, fontsize=11, loc="left")
    axes.tick_params(labelsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALETTE["grid"], linewidth=0.7)
    axes.set_axisbelow(True)


def true_minus(text: str) -> str:
    """Numbers with a true minus sign."""
    return text.replace("-", "−")
