"""Validation of arguments: each failure is one sentence that names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

AGGREGATIONS = ("token-mean", "seq-mean")


def check_tensor(name: str, value: object, kind: str, shape: Sequence[int] | None = None) -> None:
    """Require a tensor of a dtype ("float", "int" or "bool") and, where given, of an exact shape.

    Raises TypeError for another type or dtype, ValueError for another shape.

    Args:
        name: of the argument, for the message.
        value: what was given.
        kind: "float", "int" or "bool".
        shape: that it must have; None: any.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype == torch.bool:
        got = "bool"
    elif value.is_floating_point():
        got = "float"
    else:
        got = "complex" if value.is_complex() else "int"
    if got != kind:
        hint = f"; use {name}.{kind}()" if got == "int" else ""
        raise TypeError(
            f"{name} must have {'an' if kind == 'int' else 'a'} {kind} dtype, got {value.dtype}{hint}"
        )
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


def check_alike(**tensors: Tensor) -> None:
    """Require float tensors of the first one's shape. Raises TypeError or ValueError that names the tensor."""
    shape = None
    for name, value in tensors.items():
        check_tensor(name, value, "float", shape)
        shape = value.shape


def check_ids(completion_ids: Tensor, vocabulary: int) -> None:
    """Require ids in [0, V). Raises ValueError with the range that came."""
    low, high = (int(x) for x in completion_ids.aminmax()) if completion_ids.numel() else (0, 0)
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"completion_ids must lie from 0 to V − 1 ({vocabulary - 1}), padding too, got {low} to {high}"
        )


def check_number(name: str, value: object) -> None:
    """Require one real number. Raises TypeError."""
    single = isinstance(value, Tensor) and value.numel() == 1
    if not single and (isinstance(value, (bool, Tensor)) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_finite(name: str, value: Tensor) -> None:
    """Require every entry to be a number. Raises ValueError with the first index that is not."""
    bad = ~value.isfinite()
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{name} must be finite, got {value[index].item()} at index {index}")


def check_group(completion_ids: Tensor, completion_mask: Tensor) -> None:
    """Require int ids and a bool mask of one shape (…, G, T); the mask True up to each end, False after it.

    An empty row is legal. Raises TypeError (dtype) or ValueError (shape, empty group, hole, no unmasked token).
    """
    check_tensor("completion_ids", completion_ids, "int")
    if completion_ids.ndim < 2:
        raise ValueError(
            f"completion_ids must have shape (…, G, T), got {tuple(completion_ids.shape)}"
        )
    check_tensor("completion_mask", completion_mask, "bool", completion_ids.shape)
    if completion_ids.shape[-2] == 0:
        raise ValueError(
            f"completion_ids must hold at least one completion, got shape {tuple(completion_ids.shape)}"
        )
    check_not_empty(completion_mask)
    holes = completion_mask[..., 1:] & ~completion_mask[..., :-1]
    if holes.any():
        *row, token = holes.nonzero()[0].tolist()
        raise ValueError(
            "completion_mask must have no holes (True up to the completion's end, False after it: pad on the right), "
            f"got False at token {token} and True at token {token + 1} of row {tuple(row)}"
        )


def check_not_empty(completion_mask: Tensor) -> None:
    """Require a True somewhere in the mask. Raises ValueError."""
    if not completion_mask.any():
        shape = tuple(completion_mask.shape)
        raise ValueError(
            f"completion_mask must have at least one True token, got none in shape {shape}"
        )


def check_rewards(rewards: Tensor) -> None:
    """Require finite float rewards (…, G) of at least two completions.

    Raises TypeError (dtype) or ValueError (shape, G < 2, NaN or infinity).
    """
    check_tensor("rewards", rewards, "float")
    if rewards.ndim < 1 or rewards.shape[-1] < 2:
        raise ValueError(
            "rewards must have shape (…, G) with G ≥ 2, as an advantage compares the completions of a group, "
            f"got {tuple(rewards.shape)}"
        )
    check_finite("rewards", rewards)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Require one of the named choices. Raises ValueError that lists them.

    Args:
        name: of the argument, for the message.
        value: what was given.
        choices: what it may be.
    """
    if value not in (choices := sorted(choices)):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_scored_group(rewards: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> None:
    """Require a group and one reward for each of its completions: `check_group`, `check_rewards`, shapes (…, G).

    Args:
        rewards: float (…, G).
        completion_ids: int (…, G, T).
        completion_mask: bool (…, G, T).
    """
    check_group(completion_ids, completion_mask)
    check_rewards(rewards)
    check_tensor("rewards", rewards, "float", completion_ids.shape[:-1])


def check_loss_options(
    epsilon: float | None,
    beta: float,
    aggregation: str,
    num_tokens: int | Tensor | None,
    has_reference: bool,
) -> None:
    """Require options of `policy_loss` that fit together. Raises TypeError for no number, else ValueError.

    Args:
        epsilon: clip range, above 0, or None.
        beta: weight of the KL term, at least 0.
        aggregation: of AGGREGATIONS.
        num_tokens: a denominator above 0, or None.
        has_reference: whether `ref_logps` is there.
    """
    for name, value in (("epsilon", epsilon), ("beta", beta), ("num_tokens", num_tokens)):
        if value is not None:
            check_number(name, value)
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, or None for no clipping, got {epsilon}")
    if not beta >= 0:
        raise ValueError(f"beta must be 0 or above, got {beta}")
    if beta > 0 and not has_reference:
        raise ValueError(
            f"ref_logps must be given where beta is above 0, got None with beta {beta}"
        )
    check_choice("aggregation", aggregation, AGGREGATIONS)
    if num_tokens is not None and aggregation != "token-mean":
        raise ValueError(
            f"num_tokens is the denominator of 'token-mean', got it with aggregation {aggregation!r}"
        )
    if num_tokens is not None and not num_tokens > 0:
        raise ValueError(f"num_tokens must be above 0, got {num_tokens}")
