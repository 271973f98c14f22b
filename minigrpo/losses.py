"""The loss of all three objectives: a clipped surrogate and a KL term per token, weighted, then reduced once.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154. Departures: the
paper maximises, here is the negative to minimise; its theorem has no clipping (μ = 1), `epsilon` adds PPO's.
Shapes: G completions, T tokens, V vocabulary; "…" is any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minigrpo.checks import check_alike, check_ids, check_loss_options, check_not_empty, check_tensor


def token_logps(logits: Tensor, completion_ids: Tensor) -> Tensor:
    """Read the log-probability of each sampled token off the logits at its place.

        ln π_θ(y_{i,t}) = z_{y_{i,t}} − ln Σᵥ exp zᵥ

    Args: logits float (…, T, V), where place t predicts token t; completion_ids int (…, T) in [0, V).
    Returns: (…, T) in nats, in the dtype of `logits`. Raises: TypeError or ValueError for what is otherwise.
    """
    check_tensor("logits", logits, "float")
    check_tensor("completion_ids", completion_ids, "int", logits.shape[:-1])
    check_ids(completion_ids, logits.shape[-1])
    return logits.log_softmax(dim=-1).gather(-1, completion_ids.long().unsqueeze(-1)).squeeze(-1)


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate KL(π_θ ‖ π_ref) at each sampled token: 0 where the two agree, else above 0.

        k3 = π_ref/π_θ − ln(π_ref/π_θ) − 1        (the paper's D_{i,t} is β·k3)

    Args: logps, ref_logps float (…, T), in nats; no gradient flows into `ref_logps`, a constant.
    Returns: (…, T) in nats. Raises: TypeError or ValueError for wrong dtypes or shapes.
    """
    check_alike(logps=logps, ref_logps=ref_logps)
    log_ratio = ref_logps.detach() - logps
    return log_ratio.expm1() - log_ratio


def clipped_surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor, epsilon: float | None = None) -> Tensor:
    """Weigh the probability ratio by the advantage, with PPO's clip where `epsilon` is given.

        P_{i,t} = π_θ(y_{i,t}) / π_old(y_{i,t});   min( P·A, clip(P, 1 − ε, 1 + ε)·A ),   or P·A without ε

    Args: logps, old_logps float (…, T), in nats, no gradient flows into the latter; advantages (…, T); epsilon > 0.
    Returns: (…, T), to maximise. Raises: TypeError or ValueError for wrong dtypes or shapes.
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

        loss = −Σ step_weights·( surrogate − β·k3 ) / Σ mask

    Args: logps, old_logps, advantages, step_weights float (…, T), completion_mask bool (…, T), all of one shape;
        epsilon: PPO's clip range, None for no clip; beta ≥ 0 weighs the KL term and needs `ref_logps` (…, T).
        aggregation: "token-mean" divides by Σ mask (DAPO; the theorem's), or by `num_tokens` where given: the whole
        batch's count when gradients accumulate over micro-batches, a constant for Dr. GRPO. "seq-mean" is the mean
        over rows of each row's mean, 1/len(y⁽ⁱ⁾) (the theorem fails under it).
    Returns: scalar. No gradient flows into `old_logps` and `ref_logps`; what is masked has no part in it.
    Raises: TypeError or ValueError for wrong dtypes or shapes, no token to divide by, options out of range, an unknown
        aggregation, or β > 0 without `ref_logps`.
    """
    reference = {} if ref_logps is None else {"ref_logps": ref_logps}
    check_alike(logps=logps, old_logps=old_logps, advantages=advantages, step_weights=step_weights, **reference)
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
        lengths = completion_mask.sum(dim=-1, keepdim=True).expand_as(completion_mask)[completion_mask]
        return -(weighted / lengths).sum() / completion_mask[..., 0].numel()
    return -weighted.sum() / (completion_mask.sum() if num_tokens is None else num_tokens)
