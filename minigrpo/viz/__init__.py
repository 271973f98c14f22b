"""The figures: one function a figure, drawn from the rows and tensors that `experiments` returns.

Figures are `matplotlib.figure.Figure` objects made without pyplot: no backend, no global state; a notebook shows one
that a cell ends in.
"""

from minigrpo.viz.curves import plot_overlap, plot_table1, plot_theorem, plot_trap_curves
from minigrpo.viz.expectation import plot_expectation
from minigrpo.viz.packing import plot_packing
from minigrpo.viz.race import plot_race
from minigrpo.viz.readme import plot_readme
from minigrpo.viz.style import FLOOR, LINES, MARKERS, NAMES, PALETTE, SMOOTHED
from minigrpo.viz.tree import plot_tree

__all__ = [
    "FLOOR",
    "LINES",
    "MARKERS",
    "NAMES",
    "PALETTE",
    "SMOOTHED",
    "plot_expectation",
    "plot_overlap",
    "plot_packing",
    "plot_race",
    "plot_readme",
    "plot_table1",
    "plot_theorem",
    "plot_trap_curves",
    "plot_tree",
]
