"""GRPO with outcome rewards, its process-reward twin, and λ-GRPO, each as (advantages, step_weights).

All three are one loss, `minigrpo.policy_loss`, with different tensors in it:

    L = 1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ step_weights_{i,t} · ( P_{i,t}·advantages_{i,t} − D_{i,t} )

with P_{i,t} = π_θ(y_{i,t}) / π_old(y_{i,t}), the ratio, and D_{i,t} = β·k3, the KL term (`minigrpo.losses`).
Shapes: G completions of a group, T tokens; "…" is any number of leading dimensions, one group for each index.
Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154; GRPO itself: Shao et
al. 2024, arXiv 2402.03300. A different paper (arXiv 2510.06870, a learnable length preference) also calls its method
λ-GRPO.
"""

from __future__ import annotations

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
) -> tuple[Tensor, Tensor]:
    """λ-GRPO: each process step counts once, however often it was sampled; the normaliser stays.

        L_λ = 1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ ( P_{i,t}·aᵢ − D_{i,t} ) / |λ^(i,t)|

    It is no longer an unbiased policy gradient: of two branches with the same A > 0 it pushes towards the rarer.

    Args: as `grpo`: rewards (…, G), completion_ids and completion_mask (…, G, T), scale, eps.

    Returns:
        advantages a and step_weights 1/|λ^(i,t)|, both (…, G, T) in the dtype of `rewards`, 0 where masked.

    Raises: as `grpo`.
    """
    check_scored_group(rewards, completion_ids, completion_mask)
    a = group_advantages(rewards, scale=scale, eps=eps).unsqueeze(-1)  # (…, G, 1)
    mask = completion_mask.to(rewards.dtype)
    return a * mask, mask / step_sizes(completion_ids, completion_mask).clamp(min=1)


# An entry: (rewards, completion_ids, completion_mask, *, scale, eps) → (advantages, step_weights), as `grpo` says.
OBJECTIVES = {"grpo": grpo, "prm": prm, "lambda_grpo": lambda_grpo}
