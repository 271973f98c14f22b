"""The loss of all three objectives: a clipped surrogate and a KL term per token, weighted, then reduced once.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154. Departures: the
paper maximises, here is the negative to minimise; its theorem has no clipping (μ = 1), `epsilon` adds PPO's. Without
ratio and clip the gradient is REINFORCE's with a baseline (Williams 1992).
Shapes: G completions, T tokens, V vocabulary; "…" is any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minigrpo.checks import (
    check_alike,
    check_ids,
    check_loss_options,
    check_not_empty,
    check_tensor,
)


def token_logps(logits: Tensor, completion_ids: Tensor) -> Tensor:
    """Read the log-probability of each sampled token off the logits at its place.

        ln π_θ(y_{i,t}) = z_{y_{i,t}} − ln Σᵥ exp zᵥ

    Args:
        logits: float (…, T, V), where place t predicts token t.
        completion_ids: int (…, T) in [0, V).

    Returns:
        (…, T) in nats, in the dtype of `logits`.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, or an id outside [0, V).
    """
    check_tensor("logits", logits, "float")
    check_tensor("completion_ids", completion_ids, "int", logits.shape[:-1])
    check_ids(completion_ids, logits.shape[-1])
    return logits.log_softmax(dim=-1).gather(-1, completion_ids.long().unsqueeze(-1)).squeeze(-1)


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate KL(π_θ ‖ π_ref) at each sampled token: 0 where the two agree, else above 0.

        k3 = π_ref/π_θ − ln(π_ref/π_θ) − 1        (the paper's D_{i,t} is β·k3)

    Args:
        logps: float (…, T), in nats.
        ref_logps: float (…, T), in nats; no gradient flows into it.

    Returns:
        (…, T) in nats.

    Raises:
        TypeError, ValueError: for wrong dtypes or shapes.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    check_alike(logps=logps, ref_logps=ref_logps)
    log_ratio = ref_logps.detach() - logps
    return log_ratio.expm1() - log_ratio


def clipped_surrogate(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, epsilon: float | None = None
) -> Tensor:
    """Weigh the probability ratio by the advantage, with PPO's clip where `epsilon` is given.

        P_{i,t} = π_θ(y_{i,t}) / π_old(y_{i,t});   min( P·A, clip(P, 1 − ε, 1 + ε)·A ),   or P·A without ε

    Args:
        logps: float (…, T), ln π_θ in nats.
        old_logps: float (…, T), ln π_old in nats; no gradient flows into it.
        advantages: float (…, T).
        epsilon: of the clip, above 0; None for no clip.

    Returns:
        (…, T) in the unit of the advantages, to maximise.

    Raises:
        TypeError, ValueError: for wrong dtypes or shapes.

    Source: PPO, Schulman et al. 2017, arXiv 1707.06347.
    """
    check_alike(logps=logps, old_logps=old_logps, advantages=advantages)
    ratio = (logps - old_logps.detach()).exp()
    if epsilon is None:
        return ratio * advantages
    return torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    step_weights: Tensor,
    completion_mask: Tensor,
    *,
    epsilon: float | None = None,
    beta: float = 0.0,
    ref_logps: Tensor | None = None,
    aggregation: str = "token-mean",
    num_tokens: int | Tensor | None = None,
) -> Tensor:
    """Reduce the objective to the scalar to minimise; it never asks which objective it is.

        x_{i,t} = step_weights·( surrogate − β·k3 )
        loss = −Σᵢ Σₜ x_{i,t} / Σ mask                              "token-mean", the theorem's
        loss = −1/G · Σᵢ 1/len(y⁽ⁱ⁾) · Σₜ x_{i,t}                   "seq-mean", under which it fails

    Args:
        logps: float (…, T), ln π_θ in nats.
        old_logps: float (…, T), ln π_old in nats; no gradient flows into it.
        advantages: float (…, T), of the objective.
        step_weights: float (…, T), of the objective.
        completion_mask: bool (…, T), True = trained; what is masked has no part in the loss.
        epsilon: PPO's clip range, None for no clip.
        beta: at least 0, weighs the KL term.
        ref_logps: float (…, T), ln π_ref in nats, needed where β > 0; no gradient flows into it.
        aggregation: "token-mean" or "seq-mean".
        num_tokens: in the place of Σ mask: the whole batch's count when gradients accumulate over micro-batches, a
            constant for Dr. GRPO.

    Returns:
        Scalar, in the unit of the advantages.

    Raises:
        TypeError, ValueError: for wrong dtypes or shapes, no token to divide by, options out of range, an unknown
            aggregation, or β > 0 without `ref_logps`.

    Source: "token-mean": DAPO, arXiv 2503.14476; "seq-mean": GRPO, arXiv 2402.03300; a constant: Dr. GRPO, arXiv
    2503.20783.
    """
    reference = {} if ref_logps is None else {"ref_logps": ref_logps}
    check_alike(
        logps=logps,
        old_logps=old_logps,
        advantages=advantages,
        step_weights=step_weights,
        **reference,
    )
    check_tensor("completion_mask", completion_mask, "bool", logps.shape)
    check_loss_options(epsilon, beta, aggregation, num_tokens, has_reference=ref_logps is not None)
    if num_tokens is None:
        check_not_empty(completion_mask)
    # The mask is applied once, here: what is under it has no part in anything, not even as NaN.
    selected = (value[completion_mask] for value in (logps, old_logps, advantages, step_weights))
    logps, old_logps, advantages, step_weights = selected  # (Σ mask,)
    per_token = clipped_surrogate(logps, old_logps, advantages, epsilon)
    if beta > 0 and ref_logps is not None:
        per_token = per_token - beta * kl_k3(logps, ref_logps[completion_mask])
    weighted = step_weights * per_token
    if aggregation == "seq-mean":
        lengths = completion_mask.sum(dim=-1, keepdim=True).expand_as(completion_mask)
        lengths = lengths[completion_mask]  # (Σ mask,)
        return -(weighted / lengths).sum() / completion_mask[..., 0].numel()
    return -weighted.sum() / (completion_mask.sum() if num_tokens is None else num_tokens)
