"""The tiny model's problems: sums and differences of three small numbers, worked one operation at a time.

A prompt such as "7+18-4=" has the completion "25-4=21": the first operation is done and the rest copied, then the
second is done. Completions of a group agree up to their first difference, so that process steps can be read.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from functools import cache
from typing import NamedTuple

from minigrpo.checks import check_choice

LARGEST = 19  # numbers run from 0 to this: 20³ · 2² = 32 000 problems
OPERATIONS = {"+": int.__add__, "-": int.__sub__}
SPLITS = ("train", "held-out")


class Problem(NamedTuple):
    """One problem: `prompt` "7+18-4=", `answer` "21", `worked` "25-4=21" (one operation at a time)."""

    prompt: str
    answer: str
    worked: str


def make_problem(a: int, first: str, b: int, second: str, c: int) -> Problem:
    """Write the problem a ± b ± c with its answer. Raises KeyError for another operation than "+" and "-".

    Args:
        a: the first number.
        first: "+" or "-".
        b: the second number.
        second: "+" or "-".
        c: the third number.
    """
    between = OPERATIONS[first](a, b)
    answer = OPERATIONS[second](between, c)
    return Problem(f"{a}{first}{b}{second}{c}=", str(answer), f"{between}{second}{c}={answer}")


def split_of(prompt: str) -> str:
    """Say which split a prompt belongs to: one in five is "held-out", by the hash of its text, the rest "train"."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return "held-out" if int.from_bytes(digest[:8], "big") % 5 == 0 else "train"


@cache
def all_problems(split: str) -> tuple[Problem, ...]:
    """List every problem of a split ("train" or "held-out"), always in the same order. Raises ValueError."""
    check_choice("split", split, SPLITS)
    numbers = range(LARGEST + 1)
    everything = itertools.product(numbers, OPERATIONS, numbers, OPERATIONS, numbers)
    return tuple(
        problem
        for parts in everything
        if split_of((problem := make_problem(*parts)).prompt) == split
    )


def problems(split: str, seed: int, n: int) -> list[Problem]:
    """Draw n different problems of a split, the same ones for the same seed.

    Raises ValueError for an unknown split and where n is below 1 or more than the split holds.

    Args:
        split: "train" or "heldout".
        seed: of the drawing.
        n: how many.
    """
    everything = all_problems(split)
    if not 1 <= n <= len(everything):
        raise ValueError(
            f"n must be from 1 to {len(everything)}, as the {split} split holds no more, got {n}"
        )
    return random.Random(f"{split} {seed}").sample(everything, n)
