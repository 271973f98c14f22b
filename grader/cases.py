"""Groups drawn for cases: ragged completions full of shared prefixes, so that every edge of the definitions occurs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from grader.drivers import DRIVERS
from minigrpo.paper import WORKED_EXAMPLE, WORKED_REWARDS

WORKED_IDS = [
    [ord(letter) - ord("A") for letter in completion.split()] for completion in WORKED_EXAMPLE
]


def draw_completions(
    rng: np.random.Generator, size: int = 6, vocabulary: int = 3, longest: int = 7
) -> list[list[int]]:
    """Draw completions (lists of token ids), each going on from a prefix of an earlier one, or from nothing.

    Early ends, identical completions and completions that are prefixes of others all occur now and then.

    Args:
        rng: of the case.
        size: how many completions.
        vocabulary: tokens are 0 … vocabulary − 1.
        longest: tokens at most.
    """
    completions: list[list[int]] = []
    for _ in range(size):
        origin: list[int] = []
        if completions and rng.random() < 0.8:
            origin = completions[rng.integers(len(completions))]
        prefix = origin[: rng.integers(len(origin) + 1)]
        tail = rng.integers(vocabulary, size=rng.integers(1, 4)).tolist()
        completions.append((prefix + tail)[:longest])
    rng.shuffle(completions)
    return completions


def pad(completions: Sequence[Sequence[int]], filler: int = 0) -> tuple[Tensor, Tensor]:
    """Make completion_ids int64 (G, T), with `filler` under the mask, and completion_mask bool (G, T)."""
    T = max(len(y) for y in completions)
    ids = torch.tensor([[*y, *[filler] * (T - len(y))] for y in completions])
    return ids, torch.tensor([[t < len(y) for t in range(T)] for y in completions])


def worked_group() -> tuple[Tensor, Tensor, Tensor]:
    """The paper's worked example as completion_ids, completion_mask (6, 7) and rewards float64 (6,)."""
    ids, mask = pad(WORKED_IDS)
    return ids, mask, torch.tensor(WORKED_REWARDS, dtype=torch.float64)


def draw_rewards(rng: np.random.Generator, *shape: int) -> Tensor:
    """Draw rewards float64 of a shape, from a few values, so that equal rewards occur, but never all equal in a row."""
    while True:
        rewards = torch.from_numpy(rng.choice([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0], size=shape))
        if (rewards != rewards[..., :1]).any(dim=-1).all():
            return rewards


def draw_logps(rng: np.random.Generator, *shape: int) -> Tensor:
    """Draw log-probabilities float64 of a shape, in nats."""
    return torch.from_numpy(-rng.exponential(1.0, size=shape))


def clear_loss(loss: Callable[..., Tensor], case: dict) -> bool:
    """Whether a loss of logps is more than a rest of terms that cancel, which float32 would round too much."""
    found = DRIVERS["loss_and_grads"]({"loss": loss}, "loss", case)
    return bool(found["loss"].abs() > 0.1 * found["grads"]["logps"].abs().sum())
