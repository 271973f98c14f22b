"""The process steps of a group, drawn from left to right with the push that each objective gives them."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve

from minigrpo.tree import Node, ProcessTree
from minigrpo.viz.style import NAMES, PALETTE, ShownFigure, true_minus


@dataclass(frozen=True)
class Geometry:
    """Sizes of a drawn tree in inches: a step has a cell of column × row, and its box is the top left of that."""

    column: float
    row: float
    box: float
    height: float  # of the box
    letters: int  # of tokens that fit in the box
    details: bool  # R, A and |λ| below the tokens, and the objective beside each push
    prompt: float = 0.85  # to the left of the first column
    least: float = 6.3  # width that title and legend need


WIDE = Geometry(column=3.0, row=1.06, box=1.64, height=0.46, letters=16, details=True)
COMPACT = Geometry(column=1.8, row=0.7, box=0.92, height=0.26, letters=9, details=False)
Places = dict[Node, tuple[float, float]]  # x of a step's left side and y of the middle of its box


def plot_tree(tree: ProcessTree, title: str | None = None) -> Figure:
    """Draw the process steps of a group from left to right, each with its push under GRPO and under λ-GRPO.

        push on each token of a step:   GRPO |λ|·A (one bar segment a completion in λ),   λ-GRPO A

    Args: tree; title (default: where GRPO's pushes take a shared prefix of the best completion down, if they do).
    """
    places, width, height = place_steps(tree, WIDE)
    total = height + 1.1
    figure = ShownFigure(figsize=(width, total))
    text = textwrap.fill(claim_of(tree) if title is None else title, int(9 * width))
    figure.text(
        0.5, 1 - 0.1 / total, text, size=12, weight="bold", ha="center", va="top", parse_math=False
    )
    draw_tree(figure.add_axes((0, 0.55 / total, 1, height / total)), tree, places, WIDE)
    draw_legend(figure, x=0.5, y=0.02 / total)
    return figure


def place_steps(tree: ProcessTree, size: Geometry) -> tuple[Places, float, float]:
    """Give every step its place, halfway down those that follow it; with them the width and height of the drawing."""
    places, leaves = {}, itertools.count()

    def place(node: Node, x: float) -> float:
        below = [place(child, x + size.column) for child in node.children]
        y = (
            (below[0] + below[-1]) / 2
            if below
            else next(leaves) * size.row + size.height / 2 + 0.06
        )
        places[node] = x, y
        return y

    for root in tree.roots:
        place(root, size.prompt)
    width = max(x for x, _ in places.values()) + size.column
    return places, max(size.least, width), next(leaves) * size.row


def draw_tree(axes: Axes, tree: ProcessTree, places: Places, size: Geometry) -> None:
    """Draw a tree into axes whose units are inches, y downwards.

    Args:
        axes: that fill the place of the drawing.
        tree: to draw.
        places: of its steps, by `place_steps`.
        size: WIDE or COMPACT.
    """
    width, height = axes.figure.get_size_inches() * axes.get_position().size
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    # How long a bar is: the largest push either way fills the width of a box.
    pushes = [count * node.advantage for node in tree.nodes for count in (1, len(node.members))]
    low = min(0.0, *pushes)
    high = max(0.0, *pushes)
    unit = size.box / (high - low) if high > low else 0.0  # inches of bar for a push of 1

    # The prompt, halfway down the first steps.
    completions = len(tree.completions)
    middle = (places[tree.roots[0]][1] + places[tree.roots[-1]][1]) / 2
    text = f"prompt\nG = {completions}"
    axes.text(
        size.prompt - 0.24, middle, text, fontsize=9, va="center", ha="right", linespacing=1.3
    )
    _draw_branches(axes, places, (size.prompt - 0.2, middle), tree.roots, completions)

    for node in tree.nodes:
        x, y = places[node]
        _draw_branches(axes, places, (x + size.box, y), node.children, completions)
        _draw_box(axes, tree, node, size, x, y)
        _draw_outcome(axes, tree, node, size, x, y)
        _draw_pushes(axes, node, size, (x, y + size.height / 2 + 0.06), -low * unit, unit)


def _draw_branches(
    axes: Axes,
    places: Places,
    start: tuple[float, float],
    children: Sequence[Node],
    completions: int,
) -> None:
    """Join a step to those that follow it; the line is as wide as the share of the group that goes there."""
    for child in children:
        x, y = places[child]
        points = [start, (x - 0.2, start[1]), (x - 0.05, start[1]), (x - 0.15, y), (x, y)]
        curve = Curve(
            points, [Curve.MOVETO, Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
        )
        thick = 1 + 9 * len(child.members) / completions
        axes.add_patch(
            PathPatch(
                curve, fill=False, edgecolor=PALETTE["branch"], linewidth=thick, capstyle="butt"
            )
        )


def _draw_box(
    axes: Axes, tree: ProcessTree, node: Node, size: Geometry, x: float, y: float
) -> None:
    """Draw the box of a step with its tokens: the stronger its advantage, the deeper its colour."""
    hue = PALETTE["good" if node.advantage > 0 else "bad"]
    depth = 0.0
    if node.advantage:
        depth = 0.08 + 0.47 * abs(node.advantage) / max(
            abs(other.advantage) for other in tree.nodes
        )
    edge = hue if node.advantage else PALETTE["branch"]
    flawed = node is _flaw(tree)
    box = FancyBboxPatch(
        (x + 0.05, y - size.height / 2 + 0.05),
        size.box - 0.1,
        size.height - 0.1,
        boxstyle="round,pad=0.05,rounding_size=0.08",
        facecolor=tuple(1 - depth * (1 - channel) for channel in to_rgb(hue)),
        edgecolor="black" if flawed else edge,
        linewidth=2.2 if flawed else 1,
    )
    axes.add_patch(box)
    middle = {"x": x + size.box / 2, "ha": "center", "va": "center_baseline", "parse_math": False}
    mono = {"family": ["DejaVu Sans Mono", "DejaVu Sans"], "weight": "bold", "size": 10.5}
    axes.text(y=y - 0.09 * size.details, s=_tokens(node, size.letters), **mono, **middle)
    if size.details:
        numbers = f"R {node.reward:.2f}   A {node.advantage:+.2f}   |λ| {len(node.members)}"
        axes.text(y=y + 0.12, s=true_minus(numbers), size=8.5, **middle)


def _draw_outcome(
    axes: Axes, tree: ProcessTree, node: Node, size: Geometry, x: float, y: float
) -> None:
    """Write beside a step the outcome rewards of the completions that end with it."""
    going_on = {i for child in node.children for i in child.members}
    rewards = sorted({tree.rewards[i] for i in node.members if i not in going_on})
    if not rewards:
        return
    best = max(tree.rewards) in rewards
    text = "r = " + ", ".join(f"{reward:g}" for reward in rewards) + (" ★" if best else "")
    if node.children:  # a branch goes on from the middle
        y -= size.height / 2 + 0.02
    weight = "bold" if best else "normal"
    axes.text(x + size.box + 0.08, y, true_minus(text), size=9.5, va="center", weight=weight)


def _draw_pushes(
    axes: Axes, node: Node, size: Geometry, corner: tuple[float, float], zero: float, unit: float
) -> None:
    """Draw below a box what each objective pushes on a token of the step: a bar from a zero line, and the number."""
    x, y = corner
    thick = 0.15
    length = node.advantage * unit
    counts = {"grpo": len(node.members), "lambda_grpo": 1}
    for k, (objective, count) in enumerate(counts.items()):
        top = y + k * (thick + 0.01)
        edge = {"edgecolor": "white", "linewidth": min(1.0, 12 * abs(length))}
        for segment in range(count):
            start = x + zero + segment * length
            axes.add_patch(
                Rectangle((start, top), length, thick, facecolor=PALETTE[objective], **edge)
            )
        times = f"{count} × " if count > 1 else ""
        number = true_minus(f"{times}{node.advantage:+.2f}")
        text = f"{NAMES[objective]} {number}" if size.details else number
        axes.text(x + size.box + 0.08, top + thick / 2, text, size=8.5, va="center_baseline")
    axes.plot([x + zero] * 2, [y - 0.02, y + 2 * thick + 0.03], color="black", linewidth=0.8)


def draw_legend(figure: Figure, x: float, y: float) -> None:
    """Say what the bars below each box mean.

    Args:
        figure: that has the tree.
        x: of its middle, a share of the figure.
        y: of its foot, a share of the figure.
    """
    labels = {
        "grpo": "upper bar: GRPO |λ|·A, a segment per completion",
        "lambda_grpo": "lower bar: λ-GRPO A",
    }
    handles = [
        Rectangle((0, 0), 1, 1, color=PALETTE[objective], label=label)
        for objective, label in labels.items()
    ]
    title = "push on each token of the step: left of the line less likely, right of it more likely"
    place = {"loc": "lower center", "bbox_to_anchor": (x, y), "ncols": 2}
    figure.legend(
        handles=handles, title=title, fontsize=9, title_fontsize=9, frameon=False, **place
    )


def _flaw(tree: ProcessTree) -> Node | None:
    """The shared step that GRPO pushes down most in all, though a best completion of the group goes through it."""
    best = {i for i, reward in enumerate(tree.rewards) if reward == max(tree.rewards)}
    flawed = [
        n for n in tree.nodes if n.advantage < 0 and len(n.members) > 1 and best & set(n.members)
    ]
    return min(flawed, key=lambda node: len(node.members) * node.advantage, default=None)


def claim_of(tree: ProcessTree) -> str:
    """What a tree shows, in one line."""
    node = _flaw(tree)
    if node is None:
        return f"The process steps of {len(tree.completions)} completions"
    each = f"{node.advantage:.2f}".replace("-", "−")
    pushed = f"GRPO's pushes on “{_tokens(node, 24)}” add up to {len(node.members)} × {each}"
    return (
        f"{pushed}, though the best completion {'goes through' if node.start else 'begins with'} it"
    )


def _tokens(node: Node, letters: int) -> str:
    """The tokens of a step on one line, shortened in the middle."""
    text = " ".join(map(str, node.tokens)).replace("\n", "⏎")
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[:half].rstrip()}…{text[-half:].lstrip()}"
