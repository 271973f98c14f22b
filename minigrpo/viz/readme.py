"""The README's picture: the flaw on a tree beside the learning curves of the trap."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from minigrpo.experiments import DEFAULT_TRAP
from minigrpo.tree import ProcessTree
from minigrpo.viz.curves import check_hits, draw_curves
from minigrpo.viz.style import NAMES, ShownFigure, label_axes
from minigrpo.viz.tree import COMPACT, claim_of, draw_legend, draw_tree, place_steps


def plot_readme(
    tree: ProcessTree, hits: dict[str, Tensor], cells: Sequence[tuple[int, float]]
) -> Figure:
    """Draw the flaw on a tree beside the learning curves of the trap, averaged over its cells.

    Args:
        tree: as `plot_tree`.
        hits: as `plot_trap_curves`.
        cells: as `plot_trap_curves`.

    Raises:
        ValueError: as `plot_trap_curves`.
    """
    seeds, updates = check_hits(hits, cells)
    places, tree_width, tree_height = place_steps(tree, COMPACT)
    width = tree_width + 4.1
    height = tree_height + 1.55
    figure = ShownFigure(figsize=(width, height))

    # To the left the tree, to the right the curves; sizes are inches, places are shares of the figure.
    left = figure.add_axes((0, 0.58 / height, tree_width / width, tree_height / height))
    draw_tree(left, tree, places, COMPACT)
    draw_legend(figure, x=tree_width / 2 / width, y=0.03 / height)
    corner = ((tree_width + 0.75) / width, 0.6 / height)
    right = figure.add_axes((*corner, 3.2 / width, (tree_height - 0.2) / height))
    draw_curves(right, {objective: hit.double().mean(dim=0) for objective, hit in hits.items()})
    label_axes(right, "update", "target frequency (share of samples)")
    right.legend(loc="lower right", fontsize=11, frameon=False)

    window = DEFAULT_TRAP.window
    scores = ", ".join(
        f"{NAMES[objective]} {hit[..., -window:].mean():.0%}" for objective, hit in hits.items()
    )
    group = (
        f"{len(tree.completions)} completions as a tree of process steps; r: outcome reward, ★ best"
    )
    result = f"Samples on the trap’s best path:\n{scores}"
    basis = f"in the last {window} of {updates} updates; mean of {len(cells)} cells,\n{seeds} seeds, and its 95% band"
    _headline(figure, 0.1, textwrap.fill(claim_of(tree), 56), group)
    _headline(figure, tree_width + 0.2, result, basis)
    return figure


def _headline(figure: Figure, x: float, claim: str, note: str) -> None:
    """Write a claim, and below it in small what it stands on, x inches from the left."""
    width, height = figure.get_size_inches()
    place = {"x": x / width, "va": "top", "parse_math": False}
    figure.text(y=1 - 0.1 / height, s=claim, size=12, weight="bold", linespacing=1.25, **place)
    figure.text(y=1 - 0.6 / height, s=note, size=9.5, **place)
