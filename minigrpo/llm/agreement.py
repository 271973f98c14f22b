"""Which forwards a model may use: those that its kind allows, and whose log-probs agree with the padded ones.

The question is asked of two small groups of random tokens, the same for every run, so that its answer is too.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minigrpo.llm.forward import FLEX, FORWARDS, TREE, check_positions, padded_logps
from minigrpo.llm.models import reason_of
from minigrpo.llm.sampling import Samples, completion_logps, window_of
from minigrpo.llm.settings import Settings

# nats, on random tokens, where a wrong mask is off by more than 1
MAX_GAP = {"float32": 1e-3, "bfloat16": 0.5}
LAYERS = {"full_attention", "sliding_attention", "global"}  # kinds of layers that take any mask
# what a model says of a mask that it can't read
UNREADABLE = (ValueError, TypeError, IndexError, RuntimeError)
# implementations that take a mask of ancestors
ATTENTIONS = {"sdpa", TREE, FLEX, "eager", "flex_attention"}


def usable_forwards(model: PreTrainedModel, settings: Settings) -> tuple[tuple[str, ...], str]:
    """Name the forwards by which a run may compute its updates.

    Args:
        model: in evaluation mode, without adapters around it.
        settings: of the run: its forward, dtype, dropout and gradient checkpointing are used.

    Returns:
        Names of FORWARDS; and why not the one that was asked for, "" where there is nothing to say.

    Raises:
        ValueError: for a model whose log-probs can't be computed here at all, or are NaN.
    """
    check_positions(model)
    samples = probe(model)
    _check_head(model, settings, samples)
    names, reason = ("padded",), ""
    if settings.forward != "padded":
        names, reason = _fitting(model, settings, samples)
    if settings.forward in ("auto", "padded"):
        return names, reason
    return ((settings.forward,), "") if settings.forward in names else (("padded",), reason)


@torch.no_grad()
def _check_head(model: PreTrainedModel, settings: Settings, samples: Samples) -> None:
    """Require that a padded forward gives the log-probs of the model's own logits."""
    expected = completion_logps(model, samples, slice(None)).view_as(samples.old_logps)
    gap = _gap(padded_logps(model, samples), expected, samples)
    if math.isnan(gap):
        raise ValueError(
            f"{type(model).__name__} gives log-probs that are no numbers: its weights may be broken"
        )
    if gap > MAX_GAP[settings.dtype]:
        raise ValueError(
            f"{type(model).__name__} does more to its logits than its head, in a way unknown here: log-probs differ by "
            f"{gap:.1g} nats"
        )


def _fitting(
    model: PreTrainedModel, settings: Settings, samples: Samples
) -> tuple[tuple[str, ...], str]:
    """The forwards that a model's kind allows, and in which it agrees with itself."""
    if reason := _unfit(model, settings, samples):
        return ("padded",), reason
    names = tuple(
        name
        for name, forward in FORWARDS.items()
        if not (forward.needs_cache and settings.gradient_checkpointing)
    )
    try:
        gap = disagreement(model, samples, names)
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        return ("padded",), f"the model takes no mask of ancestors ({reason_of(error)})"
    limit = MAX_GAP[settings.dtype]
    if not gap <= limit:  # not even where it is NaN
        reason = f"the ways' log-probs of one group differ by {gap:.1g} nats, above {limit:g}"
        return ("padded",), reason
    if len(names) < len(FORWARDS):
        return names, "gradient checkpointing drops the cache that is to be shared"
    return names, ""


def _unfit(model: PreTrainedModel, settings: Settings, samples: Samples) -> str:
    """Why a model can only be trained padded; "" where nothing speaks against the others."""
    if reason := unfit_kind(model):
        return reason
    if samples.prompt_ids.shape[1] + samples.completion_ids.shape[2] > window_of(model):
        return f"the model's sliding window of {window_of(model)} tokens is too short"
    # new adapters add nothing yet, with dropout or without
    if settings.lora_dropout or draws_dropout(model, samples):
        return "dropout is active, and draws for each row"
    return ""


def unfit_kind(model: PreTrainedModel) -> str:
    """Why a kind of model takes no mask of ancestors, by its configuration; "" where nothing speaks against it."""
    config = model.config.get_text_config()
    layers = {
        *(getattr(config, "layer_types", None) or []),
        *(getattr(config, "attention_layers", None) or []),
    }
    other = layers - LAYERS
    if other:
        return (
            f"the model has layers of another kind than full attention: {', '.join(sorted(other))}"
        )
    attention = model.config._attn_implementation
    if attention not in ATTENTIONS:
        return f"attention {attention!r} takes no mask of ancestors"
    return ""


def probe(model: PreTrainedModel) -> Samples:
    """Two small groups of random tokens, with prompts of unequal length and completions that part and end early."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocabulary, (2, 5), generator=generator)
    prompt_mask = torch.arange(5) >= torch.tensor([[0], [2]])
    ids = torch.randint(0, vocabulary, (2, 4, 7), generator=generator)
    # the second completion shares three tokens with the first, the third one
    ids[:, 1, :3] = ids[:, 0, :3]
    ids[:, 2, :1] = ids[:, 0, :1]
    lengths = torch.tensor([[7, 6, 7, 4], [5, 7, 7, 7]])
    mask = torch.arange(7) < lengths.unsqueeze(2)
    tensors = (prompts, prompt_mask, ids, mask, torch.zeros(2, 4, 7))
    return Samples(*(tensor.to(model.device) for tensor in tensors))


@torch.no_grad()
def draws_dropout(model: PreTrainedModel, samples: Samples) -> bool:
    """Whether the model in training gives other log-probs each time."""
    was_training = model.training
    model.train()
    first = padded_logps(model, samples)
    second = padded_logps(model, samples)
    model.train(was_training)
    return not torch.equal(first, second)


@torch.no_grad()
def disagreement(model: PreTrainedModel, samples: Samples, names: Collection[str]) -> float:
    """The largest difference in nats between padded log-probs and those of other forwards; NaN where one is NaN.

    Args:
        model: in evaluation mode.
        samples: on which they are compared.
        names: of FORWARDS.
    """
    expected = padded_logps(model, samples)
    gaps = []
    for name in names:
        forward = FORWARDS[name]
        layout = forward.layout(samples)
        logps = forward.rows(forward.logps(model, layout), layout)
        gaps.append(_gap(logps, expected, samples))
    return torch.tensor(gaps).max().item()  # Python's max would pass over NaN


def _gap(logps: Tensor, expected: Tensor, samples: Samples) -> float:
    """The largest difference of log-probs (P, G, T), NaN where there is one."""
    return (logps - expected)[samples.completion_mask].abs().max().item()
