"""GRPO with outcome rewards, its process-reward twin, λ-GRPO and their neighbours, as (advantages, step_weights).

All are one loss, `minigrpo.policy_loss`, with different tensors in it:

    L = 1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ step_weights_{i,t} · ( P_{i,t}·advantages_{i,t} − D_{i,t} )

with P_{i,t} = π_θ(y_{i,t}) / π_old(y_{i,t}), the ratio, and D_{i,t} = β·k3, the KL term (`minigrpo.losses`).
Shapes: G completions of a group, T tokens; "…" is any number of leading dimensions, one group for each index.
Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154; GRPO itself: Shao et
al. 2024, arXiv 2402.03300. A different paper (arXiv 2510.06870, a learnable length preference) also calls its method
λ-GRPO.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.checks import check_choice, check_rewards, check_scored_group
from minigrpo.steps import step_mean, step_sizes

# ddof; "std" is the paper's, its code's and TRL's
SCALES = {"std": 1, "population": 0, "none": None}


def group_advantages(rewards: Tensor, *, scale: str = "std", eps: float = 1e-4) -> Tensor:
    """Compare each completion's outcome reward with its group.

        aᵢ = (rᵢ − mean r) / (std r + eps)

    Args:
        rewards: float (…, G), in the task's units.
        scale: "std" (unbiased), "population", or "none" for no division, as Dr. GRPO: aᵢ = rᵢ − mean r.
        eps: at least 0, in the units of the rewards.

    Returns:
        (…, G) in the dtype of `rewards`, in standard deviations, or the units of the rewards with scale "none"; exactly
        0 for a group of equal rewards (eps > 0).

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, G < 2, NaN or infinity, another scale, eps < 0.

    Source: GRPO, arXiv 2402.03300; Dr. GRPO, Liu et al. 2025, arXiv 2503.20783.
    """
    check_rewards(rewards)
    check_choice("scale", scale, SCALES)
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    # so that equal rewards give 0, and not their rounding divided by eps
    shifted = rewards - rewards[..., :1]
    centred = shifted - shifted.mean(dim=-1, keepdim=True)
    if scale == "none":
        return centred
    return centred / (shifted.std(dim=-1, correction=SCALES[scale], keepdim=True) + eps)


def grpo(
    rewards: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scale: str = "std",
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """GRPO with outcome rewards (ORM-GRPO): every token of y⁽ⁱ⁾ carries aᵢ.

        L_GRPO = 1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ ( P_{i,t}·aᵢ − D_{i,t} )

    Args:
        rewards: float (…, G), in the task's units.
        completion_ids: int (…, G, T).
        completion_mask: bool (…, G, T), True = trained.
        scale: as `group_advantages`.
        eps: as `group_advantages`.

    Returns:
        advantages and step_weights, both (…, G, T) in the dtype of `rewards`, 0 where masked.

    Raises:
        TypeError, ValueError: as `group_advantages` and `check_group`.
    """
    check_scored_group(rewards, completion_ids, completion_mask)
    a = group_advantages(rewards, scale=scale, eps=eps).unsqueeze(-1)  # (…, G, 1)
    mask = completion_mask.to(rewards.dtype)
    return a * mask, mask


def prm(
    rewards: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scale: str = "std",
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """The explicit Monte-Carlo process reward objective: every token carries the advantage of its step.

        A_{i,t} = (R_{i,t} − mean r) / (std r + eps) = mean of a over λ^(i,t)
        L_PRM   = 1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ ( P_{i,t}·A_{i,t} − D_{i,t} )

    Args: as `grpo`: rewards (…, G), completion_ids and completion_mask (…, G, T), scale, eps.

    Returns:
        advantages A and step_weights 1, both (…, G, T) in the dtype of `rewards`, 0 where masked.

    Raises: as `grpo`.
    """
    check_scored_group(rewards, completion_ids, completion_mask)
    a = group_advantages(rewards, scale=scale, eps=eps)  # (…, G)
    mask = completion_mask.to(rewards.dtype)
    return step_mean(a, completion_ids, completion_mask), mask


def lambda_grpo(
    rewards: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scale: str = "std",
    eps: float = 1e-4,
    power: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """λ-GRPO: each process step counts once, however often it was sampled; the normaliser stays.

        L_λ = 1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ ( P_{i,t}·aᵢ − D_{i,t} ) / |λ^(i,t)|^power

    With power 1, and under the conditions of docs/expectation.md, it weighs a step in expectation by the probability
    that the other completions visit it, where GRPO weighs it by their expected visits. It is no longer an unbiased
    policy gradient of the mean reward: of two branches with the same A > 0 it pushes towards the rarer.

    Args: as `grpo`: rewards (…, G), completion_ids and completion_mask (…, G, T), scale, eps; and power, finite: 1 is
        the paper's, 0 is GRPO.

    Returns:
        advantages a and step_weights 1/|λ^(i,t)|^power, both (…, G, T) in the dtype of `rewards`, 0 where masked.

    Raises: as `grpo`; ValueError for a power that is not finite.
    """
    check_scored_group(rewards, completion_ids, completion_mask)
    if not abs(power) < float("inf"):
        raise ValueError(f"power must be finite, got {power}")
    a = group_advantages(rewards, scale=scale, eps=eps).unsqueeze(-1)  # (…, G, 1)
    mask = completion_mask.to(rewards.dtype)
    sizes = step_sizes(completion_ids, completion_mask).clamp(min=1).to(mask.dtype)
    return a * mask, mask / sizes**power


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours: other answers to what a token's advantage is
# ---------------------------------------------------------------------------------------------------------------------


def dr_grpo(
    rewards: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scale: str = "none",
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Dr. GRPO: GRPO without the standard deviation; a constant for `policy_loss`'s num_tokens is its other half.

        aᵢ = rᵢ − mean r

    Args: as `grpo`; scale and eps are without effect.

    Returns, raises: as `grpo`.

    Source: Liu et al. 2025, arXiv 2503.20783.
    """
    return grpo(rewards, completion_ids, completion_mask, scale="none")


def rloo(
    rewards: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scale: str = "none",
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """RLOO: each reward against the mean of the others, an unbiased policy gradient.

        aᵢ = rᵢ − mean of rⱼ over j ≠ i = G/(G − 1) · (rᵢ − mean r)

    Args: as `grpo`; scale and eps are without effect.

    Returns, raises: as `grpo`.

    Source: Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740.
    """
    a, weights = grpo(rewards, completion_ids, completion_mask, scale="none")
    G = rewards.shape[-1]
    return a * (G / (G - 1)), weights


def maxrl(
    rewards: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scale: str = "none",
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """MaxRL: divided by the mean, so that a prompt's gradient is that of ln pass@1 as G grows.

        aᵢ = (rᵢ − mean r) / mean r,   0 where no completion has a reward

    Args: as `grpo`, but rewards of at least 0; its paper knows 0 and 1 alone. scale and eps are without effect.

    Returns, raises: as `grpo`; ValueError for a reward below 0.

    Source: Tajwar, Zeng et al. 2026, arXiv 2602.02710.
    """
    a, weights = grpo(rewards, completion_ids, completion_mask, scale="none")
    if (rewards < 0).any():
        raise ValueError(f"rewards must be at least 0 for maxrl, got {rewards.min().item():g}")
    mean = rewards.mean(dim=-1)[..., None, None]  # (…, 1, 1)
    return a / torch.where(mean > 0, mean, 1), weights


def tempo(
    rewards: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scale: str = "std",
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """TEMPO: GRPO's advantage, and at each branching what choosing this branch changed, a temporal difference.

        aᵢ + ( A_{i,t} − A_{i,t−1} ),   A_{i,−1} = 0
        = ( rᵢ − mean r + V(y_≤t) − V(y_<t) ) / (std r + eps),   V the mean of r below a prefix

    Its published code does the same with eps 1e-6.

    Args: as `grpo`.

    Returns, raises: as `grpo`.

    Source: Tran, Yao & Yu 2025, arXiv 2509.18314.
    """
    a, weights = grpo(rewards, completion_ids, completion_mask, scale=scale, eps=eps)
    A, _ = prm(rewards, completion_ids, completion_mask, scale=scale, eps=eps)
    return a + (A - F.pad(A, (1, -1))) * weights, weights


# An entry: (rewards, completion_ids, completion_mask, *, scale, eps) → (advantages, step_weights), as `grpo` says.
OBJECTIVES = {
    "grpo": grpo,
    "prm": prm,
    "lambda_grpo": lambda_grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "maxrl": maxrl,
    "tempo": tempo,
}
PAPER_OBJECTIVES = ("grpo", "prm", "lambda_grpo")  # of Sullivan & Koller
