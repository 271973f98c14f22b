"""One optimiser update on a batch of groups: micro-batches, the objective's loss, gradient, AdamW.

    L = −Σ weight · (surrogate − β · kl) / Σ mask, the sums over the whole batch

A micro-batch adds its share of this sum to the gradient, with the whole batch's denominator, so that its size changes
memory and time and nothing else.

Shapes: P prompts, G completions of a group, T tokens; rows are the P·G completions.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from minigrpo.llm.agreement import draws_dropout, probe, usable_forwards
from minigrpo.llm.calibrate import calibrate
from minigrpo.llm.forward import (
    FLEX,
    FORWARDS,
    TREE,
    Forward,
    ForwardCosts,
    cheapest_forward,
    forward_costs,
)
from minigrpo.llm.models import checkpointing_name
from minigrpo.llm.sampling import Samples, window_of
from minigrpo.llm.settings import Settings
from minigrpo.losses import kl_k3

# ---------------------------------------------------------------------------------------------------------------------
# What learns
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Learner:
    """What stays the same from update to update; only `micro_batch` may shrink."""

    model: nn.Module  # with its adapters
    reference: nn.Module | None  # where the KL term needs one and there are no adapters
    optimizer: torch.optim.Optimizer
    settings: Settings
    forwards: tuple[str, ...]  # those of FORWARDS among which the cheapest is taken
    costs: ForwardCosts
    micro_batch: int  # completions in one forward and backward pass; halved where memory runs out
    dropout: bool = False  # whether the model draws any in training

    @property
    def causal(self) -> PreTrainedModel:
        """The model without the wrapper of its adapters, which stay in its layers."""
        return self.model.get_base_model() if self.settings.lora_rank else self.model


def new_learner(
    model: PreTrainedModel, settings: Settings, costs: ForwardCosts | None = None
) -> tuple[Learner, str]:
    """Make a model ready to learn.

    Args:
        model: as loaded; it is changed.
        settings: of the run.
        costs: of the model, where a run that goes on has kept them; else they are measured on CUDA, and read off its
            sizes elsewhere.

    Returns:
        The learner, and why it may not use the forward that was asked for, or all of them ("" where it may).

    Raises:
        ValueError: for an attention that the model lacks, or a model whose log-probs can't be computed.
    """
    set_attention(model, settings.attention)
    adapted = prepare(model, settings)
    reference = reference_of(adapted, settings)
    weights = trained_weights(adapted).values()
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0, fused=True)
    with autocast(settings):
        forwards, reason = usable_forwards(model, settings)
        dropout = settings.lora_dropout > 0 or draws_dropout(model, probe(model))
        if costs is None and model.device.type == "cuda" and len(forwards) > 1:
            costs, _ = calibrate(model, forwards)
    costs = costs or forward_costs(model)
    learner = Learner(
        adapted, reference, optimizer, settings, forwards, costs, settings.micro_batch, dropout
    )
    return learner, reason


def set_attention(model: PreTrainedModel, asked: str) -> None:
    """Switch the model's attention; "default" is its own, with blocks for packed trees where that is sdpa.

    FlexAttention is for long packed trees; all else is computed as by default then.

    Raises: ValueError for one that it lacks.
    """
    kind = model.config._attn_implementation if asked == "default" else asked
    try:
        model.set_attn_implementation(kind)
    except ValueError as error:
        raise ValueError(
            f"attention {kind!r} is not there for {type(model).__name__}: leave it at default"
        ) from error
    ours = {"sdpa": TREE, "flex_attention": FLEX}
    if kind in ours and asked != "sdpa":
        model.set_attn_implementation(ours[kind])


def prepare(model: nn.Module, settings: Settings) -> nn.Module:
    """Put LoRA adapters on all linear layers where asked, and turn on gradient checkpointing."""
    with warnings.catch_warnings():
        # of names in peft that work in all of transformers 5
        warnings.simplefilter("ignore", FutureWarning)
        if settings.gradient_checkpointing:
            name = checkpointing_name(model)
            getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
            model.enable_input_require_grads()
        if settings.lora_rank:
            from peft import LoraConfig, get_peft_model  # heavy, and only some runs need it

            config = LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            return get_peft_model(model, config)
    return model.requires_grad_(True)


def reference_of(model: nn.Module, settings: Settings) -> nn.Module | None:
    """Copy the initial model, frozen, for the KL term.

    None if β is 0, or under LoRA, where the model with its adapters disabled is the reference.
    """
    if settings.beta == 0 or settings.lora_rank:
        return None
    return copy.deepcopy(model).requires_grad_(False).eval()


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def autocast(settings: Settings) -> torch.autocast:
    """bfloat16 in matrix products where the settings ask for it."""
    return torch.autocast(
        torch.device(settings.device).type, torch.bfloat16, enabled=settings.dtype == "bfloat16"
    )


# ---------------------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------------------


def descend(
    learner: Learner, samples: Samples, advantages: Tensor, step_weights: Tensor
) -> dict[str, Any]:
    """Make one optimiser update on a batch.

    Where memory runs out, `learner.micro_batch` is halved and the gradient begins anew: it comes out the same.

    Args:
        learner: whose weights move.
        samples: the batch.
        advantages: float (P, G, T), of the objective.
        step_weights: float (P, G, T), of the objective.

    Returns:
        Columns of metrics.jsonl: loss, grad_norm, ratio, kl where β > 0, passes (how often each forward was used); and
        gap, the mean of |ln π_θ − ln π_old| over tokens in nats.

    Raises:
        ValueError: for a loss or gradient that is no number; no weight has moved then.
        torch.OutOfMemoryError: where one completion is too much.
    """
    settings = learner.settings
    while True:
        try:
            learned = accumulate(learner, samples, advantages, step_weights)
            break
        except torch.OutOfMemoryError:
            if learner.micro_batch == 1:
                raise
            learner.micro_batch = -(-learner.micro_batch // 2)
            tqdm.write(
                f"out of memory: going on with micro_batch {learner.micro_batch}, which leaves the gradient as it is"
            )
    weights = [weight for group in learner.optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, settings.max_grad_norm).item()
    if not (math.isfinite(learned["loss"]) and math.isfinite(norm)):
        raise ValueError(
            f"learning_rate {settings.learning_rate:g} broke the run: loss {learned['loss']}, gradient norm {norm}; "
            "the last checkpoint is whole; see docs/troubleshooting.md#the-loss-is-no-number"
        )
    learner.optimizer.step()
    return learned | {"grad_norm": norm}


def accumulate(
    learner: Learner, samples: Samples, advantages: Tensor, step_weights: Tensor
) -> dict[str, Any]:
    """Leave the gradient of the whole batch's loss in the weights.

    Args: as `descend`.

    Returns:
        As `descend`, but for grad_norm.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    settings = learner.settings
    num_tokens = samples.completion_mask.sum()  # the whole batch's denominator
    if settings.aggregation == "seq-mean":
        step_weights = seq_mean_weights(step_weights, samples.completion_mask)
    groups = groups_with_gradient(advantages, settings.beta)
    counted = samples.completion_mask[groups].sum()  # tokens behind the means of ratio, gap and kl

    learned: dict[str, Any] = dict.fromkeys(("loss", "ratio", "gap"), 0.0)
    if settings.beta > 0:
        learned["kl"] = 0.0
    passes = dict.fromkeys(FORWARDS, 0)
    for chosen, completions in micro_batches(samples, groups, learner.micro_batch):
        part = select(samples, chosen, completions)
        T = part.completion_ids.shape[2]
        name, layout = cheapest_forward(
            part, learner.costs, learner.forwards, window=window_of(learner.causal)
        )
        forward = FORWARDS[name]
        with autocast(settings):
            logps = forward.logps(learner.causal, layout, temperature=settings.temperature)
            ref_logps = reference_logps(learner, forward, layout)
        loss = forward.loss(
            logps,
            part.old_logps,
            advantages[chosen][:, completions, :T],
            step_weights[chosen][:, completions, :T],
            layout,
            epsilon=settings.epsilon,
            beta=settings.beta,
            ref_logps=ref_logps,
            num_tokens=num_tokens,
        )
        loss.backward()
        passes[name] += 1

        # What the pass was like, token by token.
        mask = part.completion_mask
        rows = forward.rows(logps.detach(), layout)  # (P, G, T)
        change = (rows - part.old_logps)[mask]
        learned["loss"] += loss.item()
        learned["ratio"] += (change.exp().sum() / counted).item()
        learned["gap"] += (change.abs().sum() / counted).item()
        if ref_logps is not None:
            kl = kl_k3(rows, forward.rows(ref_logps, layout))[mask]
            learned["kl"] += (kl.sum() / counted).item()
    return learned | {"passes": passes}


def seq_mean_weights(step_weights: Tensor, mask: Tensor) -> Tensor:
    """Weigh tokens so that their token mean is "seq-mean": the mean over rows of each row's own mean.

        1/(P·G) · Σ_rows 1/len · Σ_t x_t  =  1/Σlen · Σ_rows Σ_t (Σlen / (len · P·G)) · x_t

    Shapes: float and bool (P, G, T) → float (P, G, T).
    """
    rows = mask[..., 0].numel()  # P·G
    lengths = mask.sum(dim=-1, keepdim=True)  # (P, G, 1)
    return step_weights * mask.sum() / (lengths * rows)


def groups_with_gradient(advantages: Tensor, beta: float) -> Tensor:
    """The groups that need a pass: int (P′,), at least one.

    A group whose advantages (G, T) are all 0 has no gradient where β is 0.
    """
    needed = (advantages != 0).flatten(1).any(dim=1) | (beta > 0)  # (P,)
    needed[0] |= ~needed.any()  # so that loss and ratio are there to report
    return needed.nonzero()[:, 0]


@torch.no_grad()
def reference_logps(learner: Learner, forward: Forward, layout: Any) -> Tensor | None:
    """ln π_ref by a forward, in the shape of its log-probs; None where β is 0.

    Args:
        learner: whose reference is asked.
        forward: that computes.
        layout: of the samples.
    """
    temperature = learner.settings.temperature
    if learner.settings.beta == 0:
        return None
    if learner.reference is not None:
        return forward.logps(learner.reference, layout, temperature=temperature)
    learner.model.eval()  # the reference draws no dropout
    with learner.model.disable_adapter():
        ref_logps = forward.logps(learner.causal, layout, temperature=temperature)
    learner.model.train()
    return ref_logps


# ---------------------------------------------------------------------------------------------------------------------
# Micro-batches
# ---------------------------------------------------------------------------------------------------------------------


def micro_batches(samples: Samples, groups: Tensor, rows: int) -> Iterator[tuple[Tensor, slice]]:
    """Cut a batch into parts of whole groups, or of a share of one group's completions.

    Args:
        samples: the batch.
        groups: int (P′,), those to take.
        rows: completions of a part at most.

    Yields:
        The groups of a part, and which of their completions.
    """
    G = samples.completion_ids.shape[1]
    for part in groups.split(max(1, rows // G)):
        for start in range(0, G, min(rows, G)):
            yield part, slice(start, min(start + rows, G))


def select(samples: Samples, groups: Tensor, completions: slice) -> Samples:
    """Keep some groups and of these some completions, without the padding that none of them needs.

    Args:
        samples: P groups.
        groups: int (P′,), those to keep.
        completions: those to keep of each.
    """
    prompt_mask = samples.prompt_mask[groups]
    mask = samples.completion_mask[groups][:, completions]
    L = prompt_mask.sum(dim=1).max()  # of the longest prompt that is left
    T = mask.sum(dim=2).max()
    return Samples(
        prompt_ids=samples.prompt_ids[groups][:, -L:],
        prompt_mask=prompt_mask[:, -L:],
        completion_ids=samples.completion_ids[groups][:, completions, :T],
        completion_mask=mask[..., :T],
        old_logps=samples.old_logps[groups][:, completions, :T],
    )
