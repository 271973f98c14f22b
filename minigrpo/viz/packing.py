"""A group's padded rows beside its packed tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minigrpo.packing import PackedGroups, ancestor_mask, pack
from minigrpo.viz.style import PALETTE, ShownFigure


def plot_packing(prompt: str, completions: Sequence[str]) -> Figure:
    """Draw a group's padded rows beside its packed tree and the mask of ancestors, a letter a token.

    Args:
        prompt: at least one letter.
        completions: one string each.

    Raises:
        ValueError: for an empty prompt or no letter at all.
    """
    packed = _pack_letters(prompt, completions)
    figure = ShownFigure(figsize=(10, 4.6), layout="constrained")
    rows, mask = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_rows(rows, prompt, completions)
    _draw_mask(mask, packed)
    return figure


def _draw_rows(axes: Axes, prompt: str, completions: Sequence[str]) -> None:
    """Draw the padded rows; a token is new where no row above has the same ones before it."""
    G = len(completions)
    length = len(prompt) + max(map(len, completions))
    seen: set[str] = set()
    for i, completion in enumerate(completions):
        text = prompt + completion
        for t in range(length):
            padding = t >= len(text)
            new = not padding and text[: t + 1] not in seen
            seen.add(text[: t + 1])
            face = PALETTE["good"] if new else PALETTE["grid"]
            box = Rectangle(
                (t, i), 0.92, 0.86, facecolor="none" if padding else face, edgecolor=PALETTE["grid"]
            )
            axes.add_patch(box)
            if not padding:
                colour = "white" if new else "black"
                axes.text(
                    t + 0.46, i + 0.45, text[t], ha="center", va="center", color=colour, fontsize=9
                )
    axes.set(xlim=(-0.2, length), ylim=(G, -0.3), aspect="equal")
    axes.set_axis_off()
    title = f"Padded: {G} rows of {length} = {G * length} tokens."
    key = "Blue: computed for the first time; grey: again; empty: padding"
    axes.set_title(f"{title}\n{key}", fontsize=10, loc="left")


def _draw_mask(axes: Axes, packed: PackedGroups) -> None:
    """Draw which tokens of the packed tree see which."""
    letters = [chr(token) for token in packed.ids[0].tolist()]
    N = len(letters)
    axes.imshow(
        ancestor_mask(packed.end)[0].numpy(),
        cmap=_shades(),
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_xticks(range(N), letters, fontsize=7)
    axes.set_yticks(range(N), letters, fontsize=7)

    # White lines between the cells.
    between = [k - 0.5 for k in range(N)]
    axes.set_xticks(between, minor=True)
    axes.set_yticks(between, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="token seen (key)", ylabel="token that looks (query)")
    title = f"Packed: each token once = {N} tokens.\nA row sees itself and its ancestors"
    axes.set_title(title, fontsize=10, loc="left")


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
