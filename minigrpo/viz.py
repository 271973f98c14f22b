"""The figures: one function a figure, drawn from the rows and tensors that `experiments` returns.

Figures are `matplotlib.figure.Figure` objects made without pyplot: no backend, no global state; a notebook shows one
that a cell ends in. Colours are Okabe and Ito's, which colour-blind readers tell apart, and never the only sign.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve
from torch import Tensor

from minigrpo.checks import check_choice
from minigrpo.experiments import TrapConfig
from minigrpo.packing import PackedGroups, ancestor_mask, pack
from minigrpo.paper import TABLE1
from minigrpo.report import render
from minigrpo.tree import Node, ProcessTree

PALETTE = MappingProxyType(
    {
        "grpo": "#4D4D4D",
        "lambda_grpo": "#009E73",
        "prm": "#CC79A7",
        "good": "#0072B2",  # a positive advantage; a case that holds
        "bad": "#D55E00",  # a negative advantage; a broken case
        "branch": "#BBBBBB",
        "grid": "#DDDDDD",
    }
)
NAMES = MappingProxyType({"grpo": "GRPO", "lambda_grpo": "λ-GRPO", "prm": "PRM"})
LINES = MappingProxyType({"grpo": "--", "lambda_grpo": "-", "prm": ":"})
MARKERS = MappingProxyType({"grpo": "s", "lambda_grpo": "o", "prm": "^"})
SMOOTHED = 10  # updates in the trailing mean of a learning curve
FLOOR = 1e-17  # where a gap of exactly 0 is drawn on a log axis


class _Figure(Figure):
    """A figure that a notebook shows, though no pyplot told it how to."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


# ---------------------------------------------------------------------------------------------------------------------
# The tree
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Geometry:
    """Sizes of a drawn tree in inches: a step has a cell of column × row, and its box is the top left of that."""

    column: float
    row: float
    box: float
    height: float  # of the box
    letters: int  # of tokens that fit in the box
    details: bool  # R, A and |λ| below the tokens, and the objective beside each push
    prompt: float = 0.85  # to the left of the first column
    least: float = 6.3  # width that title and legend need


WIDE = _Geometry(column=3.0, row=1.06, box=1.64, height=0.46, letters=16, details=True)
COMPACT = _Geometry(column=1.8, row=0.7, box=0.92, height=0.26, letters=9, details=False)
Places = dict[Node, tuple[float, float]]  # x of a step's left side and y of the middle of its box


def plot_tree(tree: ProcessTree, title: str | None = None) -> Figure:
    """Draw the process steps of a group from left to right, each with its push under GRPO and under λ-GRPO.

        push on each token of a step:   GRPO |λ|·A (one bar segment a completion in λ),   λ-GRPO A

    Args: tree; title (default: where GRPO pushes a shared prefix of the best completion down, if it does).
    """
    places, width, height = _place(tree, WIDE)
    total = height + 1.1
    figure = _Figure(figsize=(width, total))
    text = textwrap.fill(_claim(tree) if title is None else title, int(9 * width))
    figure.text(0.5, 1 - 0.1 / total, text, size=12, weight="bold", ha="center", va="top", parse_math=False)
    _draw_tree(figure.add_axes((0, 0.55 / total, 1, height / total)), tree, places, WIDE)
    _tree_legend(figure, x=0.5, y=0.02 / total)
    return figure


def _place(tree: ProcessTree, size: _Geometry) -> tuple[Places, float, float]:
    """Give every step its place, halfway down those that follow it; with them the width and height of the drawing."""
    places, leaves = {}, itertools.count()

    def place(node: Node, x: float) -> float:
        below = [place(child, x + size.column) for child in node.children]
        y = (below[0] + below[-1]) / 2 if below else next(leaves) * size.row + size.height / 2 + 0.06
        places[node] = x, y
        return y

    for root in tree.roots:
        place(root, size.prompt)
    width = max(x for x, _ in places.values()) + size.column
    return places, max(size.least, width), next(leaves) * size.row


def _draw_tree(axes: Axes, tree: ProcessTree, places: Places, size: _Geometry) -> None:
    """Draw a tree into axes whose units are inches, y downwards."""
    width, height = axes.figure.get_size_inches() * axes.get_position().size
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    pushes = [count * node.advantage for node in tree.nodes for count in (1, len(node.members))]
    low, high = min(0.0, *pushes), max(0.0, *pushes)
    unit = size.box / (high - low) if high > low else 0.0  # inches of bar for a push of 1
    middle = (places[tree.roots[0]][1] + places[tree.roots[-1]][1]) / 2
    text = f"prompt\nG = {len(tree.completions)}"
    axes.text(size.prompt - 0.24, middle, text, fontsize=9, va="center", ha="right", linespacing=1.3)
    _draw_branches(axes, places, (size.prompt - 0.2, middle), tree.roots, len(tree.completions))
    for node in tree.nodes:
        x, y = places[node]
        _draw_branches(axes, places, (x + size.box, y), node.children, len(tree.completions))
        _draw_step(axes, tree, node, size, x, y)
        _draw_pushes(axes, node, size, (x, y + size.height / 2 + 0.06), -low * unit, unit)


def _draw_branches(
    axes: Axes, places: Places, start: tuple[float, float], children: Sequence[Node], completions: int
) -> None:
    """Join a step to those that follow it; the line is as wide as the share of the group that goes there."""
    for child in children:
        x, y = places[child]
        points = [start, (x - 0.2, start[1]), (x - 0.05, start[1]), (x - 0.15, y), (x, y)]
        curve = Curve(points, [Curve.MOVETO, Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
        thick = 1 + 9 * len(child.members) / completions
        axes.add_patch(PathPatch(curve, fill=False, edgecolor=PALETTE["branch"], linewidth=thick, capstyle="butt"))


def _draw_step(axes: Axes, tree: ProcessTree, node: Node, size: _Geometry, x: float, y: float) -> None:
    """Draw the box of a step, and the outcome rewards of the completions that end with it."""
    hue, most = PALETTE["good" if node.advantage > 0 else "bad"], max(abs(other.advantage) for other in tree.nodes)
    depth = 0.08 + 0.47 * abs(node.advantage) / most if node.advantage else 0.0
    flawed = node is _flaw(tree)
    box = FancyBboxPatch(
        (x + 0.05, y - size.height / 2 + 0.05),
        size.box - 0.1,
        size.height - 0.1,
        boxstyle="round,pad=0.05,rounding_size=0.08",
        facecolor=tuple(1 - depth * (1 - channel) for channel in to_rgb(hue)),
        edgecolor="black" if flawed else hue if node.advantage else PALETTE["branch"],
        linewidth=2.2 if flawed else 1,
    )
    axes.add_patch(box)
    middle = {"x": x + size.box / 2, "ha": "center", "va": "center_baseline", "parse_math": False}
    mono = {"family": ["DejaVu Sans Mono", "DejaVu Sans"], "weight": "bold", "size": 10.5}
    axes.text(y=y - 0.09 * size.details, s=_tokens(node, size.letters), **mono, **middle)
    if size.details:
        numbers = f"R {node.reward:.2f}   A {node.advantage:+.2f}   |λ| {len(node.members)}"
        axes.text(y=y + 0.12, s=_minus(numbers), size=8.5, **middle)
    going = {i for child in node.children for i in child.members}
    rewards = sorted({tree.rewards[i] for i in node.members if i not in going})
    if rewards:
        best = max(tree.rewards) in rewards
        text = _minus("r = " + ", ".join(f"{reward:g}" for reward in rewards) + (" ★" if best else ""))
        y -= (size.height / 2 + 0.02) * bool(node.children)  # a branch goes on from the middle
        axes.text(x + size.box + 0.08, y, text, size=9.5, va="center", weight="bold" if best else "normal")


def _draw_pushes(
    axes: Axes, node: Node, size: _Geometry, corner: tuple[float, float], zero: float, unit: float
) -> None:
    """Draw below a box what each objective pushes on a token of the step: a bar from a zero line, and the number."""
    (x, y), thick, length = corner, 0.15, node.advantage * unit
    for k, (objective, count) in enumerate((("grpo", len(node.members)), ("lambda_grpo", 1))):
        top = y + k * (thick + 0.01)
        edge = {"edgecolor": "white", "linewidth": min(1.0, 12 * abs(length))}
        for start in (x + zero + part * length for part in range(count)):
            axes.add_patch(Rectangle((start, top), length, thick, facecolor=PALETTE[objective], **edge))
        number = _minus(f"{count} × " * (count > 1) + f"{node.advantage:+.2f}")
        text = f"{NAMES[objective]} {number}" if size.details else number
        axes.text(x + size.box + 0.08, top + thick / 2, text, size=8.5, va="center_baseline")
    axes.plot([x + zero] * 2, [y - 0.02, y + 2 * thick + 0.03], color="black", linewidth=0.8)


def _tree_legend(figure: Figure, x: float, y: float) -> None:
    """Say what the bars below each box mean."""
    labels = {"grpo": "upper bar: GRPO |λ|·A, a segment per completion", "lambda_grpo": "lower bar: λ-GRPO A"}
    handles = [Rectangle((0, 0), 1, 1, color=PALETTE[objective], label=label) for objective, label in labels.items()]
    title = "push on each token of the step: left of the line less likely, right of it more likely"
    place = {"loc": "lower center", "bbox_to_anchor": (x, y), "ncols": 2}
    figure.legend(handles=handles, title=title, fontsize=9, title_fontsize=9, frameon=False, **place)


def _flaw(tree: ProcessTree) -> Node | None:
    """The step that GRPO pushes down most, more than once, though a best completion of the group goes through it."""
    best = {i for i, reward in enumerate(tree.rewards) if reward == max(tree.rewards)}
    flawed = [n for n in tree.nodes if n.advantage < 0 and len(n.members) > 1 and best & set(n.members)]
    return min(flawed, key=lambda node: len(node.members) * node.advantage, default=None)


def _claim(tree: ProcessTree) -> str:
    """What a tree shows, in one line."""
    node = _flaw(tree)
    if node is None:
        return f"The process steps of {len(tree.completions)} completions"
    pushed = f"GRPO pushes “{_tokens(node, 24)}” down {len(node.members)} times"
    return f"{pushed}, though the best completion {'goes through' if node.start else 'begins with'} it"


def _tokens(node: Node, letters: int) -> str:
    """The tokens of a step on one line, shortened in the middle."""
    text = " ".join(map(str, node.tokens)).replace("\n", "⏎")
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[:half].rstrip()}…{text[-half:].lstrip()}"


def _minus(text: str) -> str:
    """Numbers with a true minus sign."""
    return text.replace("-", "−")


# ---------------------------------------------------------------------------------------------------------------------
# Rows and curves
# ---------------------------------------------------------------------------------------------------------------------


def _label(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Label axes and leave only the lines that help to read them."""
    axes.set_xlabel(x, fontsize=10.5)
    axes.set_ylabel(y, fontsize=10.5)
    axes.set_title(title, fontsize=11, loc="left")
    axes.tick_params(labelsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALETTE["grid"], linewidth=0.7)
    axes.set_axisbelow(True)


def plot_theorem(rows: Iterable[dict]) -> Figure:
    """Plot for each case of `theorem` the largest and the median gap between the gradients of GRPO and PRM.

    Args: rows of `theorem`; a gap of exactly 0 is drawn at 1e-17. Raises: ValueError without rows.
    """
    rows = sorted(rows, key=lambda row: row["case"].startswith("broken:"))  # stable: those that hold come first
    if not rows:
        raise ValueError("rows must hold at least one case, got none")
    figure = _Figure(figsize=(9, 1.5 + 0.33 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for broken, hue, marker, label in ((False, "good", "o", "theorem holds"), (True, "bad", "X", "broken on purpose")):
        kept = [k for k, row in enumerate(rows) if row["case"].startswith("broken:") == broken]
        largest, median = ([max(rows[k][key], FLOOR) for k in kept] for key in ("grad_gap", "median_gap"))
        style = {"color": PALETTE[hue], "linestyle": "none", "markersize": 8}
        axes.hlines(kept, median, largest, color=PALETTE[hue], linewidth=1)
        axes.plot(largest, kept, marker=marker, label=f"{label}: largest gap", **style)
        axes.plot(median, kept, marker="|", markeredgewidth=2, label=f"{label}: median gap", **style)
        for k in kept if broken else ():
            axes.text(20, k, f"in {rows[k]['differ']:.0%} of groups", fontsize=8.5, va="center")
    axes.axvline(1e-12, color="black", linestyle="--", linewidth=1)
    axes.text(1.5e-12, -0.9, "bound of the test: 1e-12", fontsize=9.5, va="center")
    names = [textwrap.fill(row["case"].removeprefix("broken: "), 42) for row in rows]
    axes.set_yticks(range(len(rows)), names, linespacing=1.1)
    axes.set_xscale("log")
    axes.set(xlim=(FLOOR / 2, 1e5), xticks=10.0 ** np.arange(-16, 1, 4), ylim=(len(rows) - 0.4, -1.5))
    _label(axes, "gap ‖∇L_GRPO − ∇L_PRM‖ / max(‖∇L_GRPO‖, 1e-3), log scale", "case")
    axes.tick_params(axis="y", labelsize=8.5)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9.5, frameon=False)
    return figure


def plot_table1(rows: Sequence[dict], differences: Sequence[dict]) -> Figure:
    """Plot the target frequency of each objective in each cell beside the paper's, and the paired differences.

    Args: rows and differences as `trap_rows` returns them. Raises: ValueError for an unknown objective.
    """
    figure = _Figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    cells = list(dict.fromkeys((row["n"], row["r_neg"]) for row in rows))
    paper = {cell: TABLE1[cell] for cell in cells if cell in TABLE1}
    places, handles = np.array([cells.index(cell) for cell in paper]), []
    for k, objective in enumerate(dict.fromkeys(row["objective"] for row in rows)):
        check_choice("objective", objective, NAMES)
        kept = [row for row in rows if row["objective"] == objective]
        left = 0.3 * k - 0.2
        style = {"marker": MARKERS[objective], "color": PALETTE[objective], "linestyle": "none"}
        label = f"{NAMES[objective]}, mean of {kept[0]['seeds']} seeds and its 95% interval"
        handles.append(_intervals(above, cells, left, kept, label=label, **style))
        if objective in ("grpo", "lambda_grpo"):
            values = [both[objective == "lambda_grpo"] for both in paper.values()]
            label = f"{NAMES[objective]} in the paper (GPT-2 small, 5 seeds)"
            handles += above.plot(places + left + 0.1, values, label=label, markerfacecolor="white", **style)
    kept = [row for row in differences if row["difference"] == "lambda_grpo − grpo"]
    style = {"marker": "D", "color": PALETTE["good"], "linestyle": "none"}
    _intervals(below, cells, -0.05, kept, **style)
    below.plot(places + 0.05, [second - first for first, second in paper.values()], markerfacecolor="white", **style)
    below.axhline(0, color="black", linewidth=1)
    above.set_ylim(-0.05, 1.05)
    below.set_xticks(range(len(cells)), [_minus(f"n = {n}\nr_neg = {r_neg:+.1f}") for n, r_neg in cells])
    _label(above, y="target frequency\n(share of samples, 0 to 1)")
    _label(below, "cell (n actions shared with the target; reward r_neg)", "λ-GRPO − GRPO\n(paired, 95% interval)")
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9.5, frameon=False)
    return figure


def _intervals(axes: Axes, cells: Sequence, shift: float, rows: Sequence[dict], **style) -> Artist:
    """Draw the means of rows with their intervals, each at its cell."""
    x = [cells.index((row["n"], row["r_neg"])) + shift for row in rows]
    mean, low, high = (np.array([row[key] for row in rows]) for key in ("mean", "ci_low", "ci_high"))
    return axes.errorbar(x, mean, yerr=(mean - low, high - mean), markersize=8, elinewidth=1.8, capsize=4, **style)


def plot_trap_curves(hits: dict[str, Tensor], cells: Sequence[tuple[int, float]]) -> Figure:
    """Plot the learning curves of every cell of the trap: mean target frequency over seeds with a 95% band.

    Args: hits: of each objective (cells, seeds, updates), as `run_trap` returns them; cells (n, r_neg).
    Raises: ValueError for no or an unknown objective, or another shape.
    """
    seeds, _ = _check_hits(hits, cells)
    columns = min(3, len(cells))
    figure = _Figure(figsize=(9, 0.9 + 2.4 * -(-len(cells) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(cells) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(cells) :]:
        axes.set_axis_off()
    for c, (axes, (n, r_neg)) in enumerate(zip(grid.flat, cells, strict=False)):
        _draw_curves(axes, {objective: hit[c] for objective, hit in hits.items()})
        _label(axes, "update", "target frequency", _minus(f"n = {n}, r_neg = {r_neg:+.1f}"))
        axes.label_outer()
    note = f"mean of {seeds} seeds and its 95% band, smoothed over {SMOOTHED} updates"
    keys = grid[0, 0].get_legend_handles_labels()
    figure.legend(*keys, loc="outside upper center", ncols=3, title=note, frameon=False)
    return figure


def _check_hits(hits: dict[str, Tensor], cells: Sequence[tuple[int, float]]) -> tuple[int, int]:
    """Refuse what is not (cells, seeds, updates) of known objectives with a ValueError; return seeds and updates."""
    for objective, hit in hits.items():
        check_choice("objective", objective, NAMES)
        if hit.ndim != 3 or len(hit) != len(cells):
            raise ValueError(f"hits[{objective!r}] must be ({len(cells)}, seeds, updates), got {tuple(hit.shape)}")
    if not hits:
        raise ValueError("hits must hold at least one objective, got none")
    return hit.shape[1:]


def _draw_curves(axes: Axes, hits: dict[str, Tensor]) -> None:
    """Draw of each objective (seeds, updates) → the mean over seeds and its band, smoothed over updates."""
    for objective, hit in hits.items():
        curves = _trailing_mean(hit.double().numpy())
        mean, error = curves.mean(axis=0), 1.96 * curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
        updates, hue = np.arange(1, len(mean) + 1), PALETTE[objective]
        band = (mean - error).clip(0, 1), (mean + error).clip(0, 1)
        axes.plot(updates, mean, color=hue, linestyle=LINES[objective], linewidth=2.2, label=NAMES[objective])
        axes.fill_between(updates, *band, color=hue, alpha=0.18, linewidth=0)
    axes.set(xlim=(0, len(mean)), ylim=(-0.03, 1.03))


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
    figure = _Figure(figsize=(9, 3.9), layout="constrained")
    panels = {
        "path_depth": "path depth\n(branchings before the last step)",
        "intermediate_proportion": "intermediate proportion\n(share of tokens before the last step)",
        "entropy": "entropy\n(nats per token)",
    }
    looks = [("good", "-"), ("bad", "--"), ("lambda_grpo", "-."), ("prm", ":")]
    for axes, (key, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for k, G in enumerate(dict.fromkeys(row["group_size"] for row in rows)):
            kept = [row for row in rows if row["group_size"] == G]
            hue, line = looks[k % len(looks)]
            x, y = ([row[name] for row in kept] for name in ("update", key))
            axes.plot(x, y, color=PALETTE[hue], linewidth=0.8, alpha=0.35)
            smooth = _trailing_mean(np.array(y, dtype=float))
            axes.plot(x, smooth, color=PALETTE[hue], linestyle=line, linewidth=2.2, label=f"G = {G}")
        axes.set_ylim(bottom=0)
        _label(axes, "update", label)
    note = f"thin: each update; thick: mean of the last {SMOOTHED} updates"
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, title=note, frameon=False)
    return figure


def plot_readme(tree: ProcessTree, hits: dict[str, Tensor], cells: Sequence[tuple[int, float]]) -> Figure:
    """Draw the README's picture: the flaw on a tree beside the learning curves of the trap, averaged over its cells.

    Args: as `plot_tree` and `plot_trap_curves`. Raises: as `plot_trap_curves`.
    """
    count, updates = _check_hits(hits, cells)
    places, width, height = _place(tree, COMPACT)
    wide, high = width + 4.1, height + 1.55
    figure = _Figure(figsize=(wide, high))
    _draw_tree(figure.add_axes((0, 0.58 / high, width / wide, height / high)), tree, places, COMPACT)
    _tree_legend(figure, x=width / 2 / wide, y=0.03 / high)
    axes = figure.add_axes(((width + 0.75) / wide, 0.6 / high, 3.2 / wide, (height - 0.2) / high))
    _draw_curves(axes, {objective: hit.double().mean(dim=0) for objective, hit in hits.items()})
    _label(axes, "update", "target frequency (share of samples)")
    axes.legend(loc="lower right", fontsize=11, frameon=False)
    window = TrapConfig().window
    scores = ", ".join(f"{NAMES[objective]} {hit[..., -window:].mean():.0%}" for objective, hit in hits.items())
    result = f"Samples on the trap’s best path:\n{scores}"
    group = f"{len(tree.completions)} completions as a tree of process steps; r: outcome reward, ★ best"
    seeds = f"in the last {window} of {updates} updates; mean of {len(cells)} cells,\n{count} seeds, and its 95% band"
    texts = ((0.1, textwrap.fill(_claim(tree), 56), group), (width + 0.2, result, seeds))
    for x, claim, note in texts:
        place = {"x": x / wide, "va": "top", "parse_math": False}
        figure.text(y=1 - 0.1 / high, s=claim, size=12, weight="bold", linespacing=1.25, **place)
        figure.text(y=1 - 0.6 / high, s=note, size=9.5, **place)
    return figure


def plot_packing(prompt: str, completions: Sequence[str]) -> Figure:
    """Draw a group's padded rows beside its packed tree and the mask of ancestors, a letter a token.

    Args: prompt, at least one letter; completions, one string each.
    Raises: ValueError for an empty prompt or no letter at all.
    """
    packed = _pack_letters(prompt, completions)
    letters = [chr(token) for token in packed.ids[0].tolist()]
    G, T, L, N = len(completions), max(map(len, completions)), len(prompt), len(letters)
    figure = _Figure(figsize=(10, 4.6), layout="constrained")
    rows, mask = figure.subplots(1, 2, width_ratios=(1.15, 1))

    seen: set[str] = set()
    for i, completion in enumerate(completions):
        text = prompt + completion
        for t in range(L + T):
            new = t < len(text) and text[: t + 1] not in seen
            seen |= {text[: t + 1]}
            face = PALETTE["good"] if new else PALETTE["grid"]
            blank = t >= len(text)
            rows.add_patch(
                Rectangle((t, i), 0.92, 0.86, facecolor="none" if blank else face, edgecolor=PALETTE["grid"])
            )
            if not blank:
                colour = "white" if new else "black"
                rows.text(t + 0.46, i + 0.45, text[t], ha="center", va="center", color=colour, fontsize=9)
    rows.set(xlim=(-0.2, L + T), ylim=(G, -0.3), aspect="equal")
    rows.set_axis_off()
    rows.set_title(
        f"Padded: {G} rows of {L + T} = {G * (L + T)} tokens.\n"
        "Blue: computed for the first time; grey: again; empty: padding",
        fontsize=10,
        loc="left",
    )

    mask.imshow(ancestor_mask(packed.end)[0].numpy(), cmap=_shades(), vmin=0, vmax=1, interpolation="nearest")
    mask.set_xticks(range(N), letters, fontsize=7)
    mask.set_yticks(range(N), letters, fontsize=7)
    mask.set_xticks([k - 0.5 for k in range(N)], minor=True)
    mask.set_yticks([k - 0.5 for k in range(N)], minor=True)
    mask.grid(which="minor", color="white", linewidth=0.8)
    mask.tick_params(which="both", length=0)
    mask.set(xlabel="token seen (key)", ylabel="token that looks (query)")
    mask.spines[:].set_visible(False)
    mask.set_title(
        f"Packed: each token once = {N} tokens.\nA row sees itself and its ancestors", fontsize=10, loc="left"
    )
    return figure


def _pack_letters(prompt: str, completions: Sequence[str]) -> PackedGroups:
    """The packed tree of one group whose tokens are letters."""
    T = max(map(len, completions))
    ids = torch.tensor([[[ord(letter) for letter in text.ljust(T)] for text in completions]])
    lengths = torch.tensor([[len(text) for text in completions]]).unsqueeze(2)
    opening = torch.tensor([[ord(letter) for letter in prompt]])
    return pack(opening, torch.ones_like(opening, dtype=torch.bool), ids, torch.arange(T) < lengths)


def _shades() -> ListedColormap:
    """White where nothing is seen, blue where it is."""
    return ListedColormap(["#F4F4F4", PALETTE["good"]])
