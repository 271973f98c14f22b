"""Whether and how TRL's log-probs are computed on a forest: each shared token once (`forest`).

TRL asks one method for the log-probs and entropies of rows; its loss, clipping, KL and metrics work on these and stay
TRL's. Here is another answer to that question, and when it is given: where the model's kind allows it, where
it agrees with TRL's own answer on two small groups of random tokens, and, for "auto", where it is cheaper.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from transformers import PretrainedConfig
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from minigrpo.integrations.forest import (
    Forest,
    forest_cost,
    forest_logps,
    forest_sizes,
    make_forest,
    rows_cost,
)
from minigrpo.llm.agreement import MAX_GAP, UNREADABLE, probe, unfit_kind
from minigrpo.llm.calibrate import calibrate
from minigrpo.llm.forward import ForwardCosts, check_positions, forward_costs
from minigrpo.llm.models import reason_of
from minigrpo.llm.sampling import rows_of, window_of
from minigrpo.llm.update import set_attention

PACK = (True, False, "auto")
# "auto" packs where the forest costs at most this share of the rows: the costs are off by a tenth and more at times
SURE = 0.85
ROW = "row"  # the key of TRL's batch under which a row's place in its generation travels
# whether log-probs and entropies come with a third: by the version of TRL
HAS_AUX_LOSS = (
    "compute_aux_loss"
    in inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
)
# whether its models have a head that gives log-probs and entropies itself
HAS_FUSED_HEAD = "add_fused_lm_head" in vars(grpo_trainer)
Answer = tuple[Tensor, Tensor | None]  # log-probs and entropies, (B, T)


class Packing:
    """The decision for one model.

    `unfit` says in words why rows are not packed: "" where they are, None before it was asked.
    """

    def __init__(self, model: nn.Module, wanted: bool | str, accelerator: Accelerator) -> None:
        """Find out what the model's passes cost.

        Args:
            model: as the trainer has it before it is wrapped, with adapters or without.
            wanted: of PACK.
            accelerator: the trainer's.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.model, self.wanted = base, wanted
        self.unfit: str | None = None if wanted else "pack is False"
        if wanted:
            set_attention(base, "default")  # the mask block by block, where that is of use
            self.window, self.told = window_of(base), False  # said once that rows are not packed
        if wanted == "auto":
            self.costs = measured_costs(base, accelerator)

    def answer(
        self,
        model: nn.Module,
        config: PretrainedConfig,
        input_ids: Tensor,
        attention_mask: Tensor,
        T: int,
        plain: Callable[..., Any],
        *,
        others: dict[str, Any],
        batch_size: int | None,
        temperature: float,
        entropies: bool,
    ) -> Answer | None:
        """Compute what TRL asks for on the forests of its rows.

        Args:
            model: as TRL has it, wrapped; the one that is trained, or the reference.
            config: its own.
            input_ids: int (B, S), prompts and completions.
            attention_mask: (B, S).
            T: tokens of a completion.
            plain: TRL's own way, (ids, mask, T) → (log-probs, …), for the probe.
            others: what else TRL would give the model, such as images.
            batch_size: rows at a time; None: all.
            temperature: of the policy.
            entropies: whether they are asked for.

        Returns:
            Log-probs and entropies (B, T); None where TRL's own way is to be taken.
        """
        if self.unfit is None:
            # the probe draws from no stream of the run's: a resumed one asks it again
            cards = [input_ids.device] if input_ids.is_cuda else []
            with torch.random.fork_rng(devices=cards):
                self.unfit = self._probed(model, config, plain, temperature)
            if self.unfit:
                warnings.warn(f"updates are not packed: {self.unfit}", stacklevel=4)
        if self.unfit:
            return None
        if any(value is not None and value is not False for value in others.values()):
            return self._tell("the model is given more than tokens")
        if attention_mask.shape[1] > self.window:
            return self._tell(f"the model's sliding window of {self.window} tokens is too short")
        forests = self._forests(input_ids, attention_mask, T, batch_size or len(input_ids))
        if not forests:
            return None
        found = [
            forest_logps(
                model,
                config,
                forest,
                temperature=temperature,
                entropies=entropies,
                fused=HAS_FUSED_HEAD,
            )
            for forest in forests
        ]
        logps, entropy = zip(*found, strict=True)
        return torch.cat(logps), torch.cat(entropy) if entropies else None

    def _tell(self, reason: str) -> None:
        """Say, the first time, why some rows are not packed."""
        if not self.told:
            warnings.warn(f"some updates are not packed: {reason}", stacklevel=5)
        self.told = True

    def _forests(
        self, input_ids: Tensor, attention_mask: Tensor, T: int, size: int
    ) -> list[Forest]:
        """The forests of the rows, none where "auto" finds TRL's own way cheaper.

        Args:
            input_ids: as `answer`.
            attention_mask: as `answer`.
            T: as `answer`.
            size: rows at a time.
        """
        parts = list(zip(input_ids.split(size), attention_mask.split(size), strict=True))
        if self.wanted == "auto":
            S = attention_mask.shape[1]
            sizes = [forest_sizes(*part, T) for part in parts]
            ours = sum(forest_cost(*size, S, self.costs) for size in sizes)
            if ours > SURE * rows_cost(attention_mask, T, self.costs):
                return []
        return [make_forest(*part, T) for part in parts]

    @torch.no_grad()
    def _probed(
        self,
        model: nn.Module,
        config: PretrainedConfig,
        plain: Callable[..., Any],
        temperature: float,
    ) -> str:
        """Why the model is not packed, by its kind or as it does not agree with itself; "" where it does."""
        if reason := unfit_kind(self.model):
            return reason
        samples = probe(self.model)
        T = samples.completion_ids.shape[-1]
        ids, mask = rows_of(samples)
        try:
            check_positions(self.model)
            forest = make_forest(ids, mask.long(), T)
            ours, _ = forest_logps(
                model, config, forest, temperature=temperature, fused=HAS_FUSED_HEAD
            )
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            return f"the model takes no mask of ancestors ({reason_of(error)})"
        theirs = plain(ids, mask.long(), T)[0]
        gap = (ours - theirs)[samples.completion_mask.flatten(0, 1)].abs().max().item()
        low = torch.is_autocast_enabled(ids.device.type) or self.model.dtype.itemsize < 4
        if not gap <= MAX_GAP["bfloat16" if low else "float32"]:  # not even where it is NaN
            return (
                f"its log-probs differ by {gap:.1g} nats from TRL's own, as dropout would make them"
            )
        return ""


def whole_groups(buffered: list[dict[str, Any]], group_size: int) -> list[dict[str, Any]]:
    """Give each micro-batch of a generation whole groups again, which TRL's shuffling took apart.

    Args:
        buffered: TRL's micro-batches; ROW of each has the places that its rows had before they were shuffled.
        group_size: G; whole groups fit into a micro-batch.

    Returns: micro-batches of the same size; groups come in the order of their first member after the shuffling.
    """
    size = len(buffered[0][ROW])
    places = torch.cat([batch[ROW] for batch in buffered])
    members = places.argsort().view(-1, group_size)  # (groups, G), where each group's rows are now
    members = members[members.amin(dim=1).argsort()].flatten().split(size)
    whole: dict[str, list[Any]] = {}
    for name, value in buffered[0].items():
        whole[name] = [batch[name] for batch in buffered]
        if isinstance(value, Tensor) and value.ndim:  # others are one number for all rows
            joined = torch.cat(whole[name])
            whole[name] = [joined[part] for part in members]
    return [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]


def measured_costs(model: nn.Module, accelerator: Accelerator) -> ForwardCosts:
    """The costs of a model's passes: timed on a card that one process has to itself, else read off the model's sizes.

    Args:
        model: on its device.
        accelerator: whose autocast is used.
    """
    alone = accelerator.distributed_type == DistributedType.NO
    if not (alone and model.device.type == "cuda"):
        return forward_costs(model)
    with accelerator.autocast():
        return calibrate(model, ("padded", "packed"))[0]


def check_packing(pack: bool | str, args: Any, dataset: Any) -> None:
    """Refuse, before a model is loaded, what can't be packed where it was asked for. Raises ValueError.

    Args:
        pack: of PACK.
        args: TRL's, None for its defaults.
        dataset: to train on.
    """
    if pack not in PACK:
        raise ValueError(f"pack must be True, False or 'auto', got {pack!r}")
    if pack is not True:
        return
    columns = dataset and dataset.column_names  # a stream may not know
    for name in ("image", "images"):
        if columns and name in columns:
            raise ValueError(
                f"train_dataset must have no column {name!r} with pack=True, which takes nothing but tokens: leave it "
                'out, or take pack="auto"'
            )
    if args is not None and args.per_device_train_batch_size % args.num_generations:
        raise ValueError(
            f"per_device_train_batch_size must be a multiple of num_generations ({args.num_generations}) with "
            f"pack=True, so that a micro-batch holds whole groups, got {args.per_device_train_batch_size}: change it, "
            'or take pack="auto"'
        )


class PackedGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` that computes tokens which rows share once.

    With `pack` "auto" where that is clearly cheaper, with True always. Rows of a group stay in one micro-batch then,
    where it holds whole groups, which changes what shares an update if a generation has several. False leaves TRL as
    it is.

    Raises: ValueError, before a model is loaded, as `check_packing`.
    """

    def __init__(self, *arguments: Any, pack: bool | str = "auto", **keywords: Any) -> None:
        given = inspect.signature(GRPOTrainer).bind(*arguments, **keywords).arguments
        check_packing(pack, given.get("args"), given.get("train_dataset"))
        super().__init__(*arguments, **keywords)
        self._packing = Packing(self.model, pack, self.accelerator)
        if pack and self.ref_model is not None:
            set_attention(self.accelerator.unwrap_model(self.ref_model), "default")

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, and where rows are to be packed each row's place in it."""
        batch = super()._generate_and_score_completions(inputs)
        whole = self.args.per_device_train_batch_size % self.num_generations == 0
        if self._packing.wanted and whole:
            ids = batch["completion_ids"]
            batch[ROW] = torch.arange(len(ids), device=ids.device)
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's micro-batch; where rows are packed and it holds whole groups, one of whole groups."""
        before = self._buffered_inputs
        batch = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before and ROW in batch:
            self._buffered_inputs = whole_groups(self._buffered_inputs, self.num_generations)
            batch = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return batch

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> Any:
        """TRL's answer, or where rows are packed the forest's."""
        rows = input_ids, attention_mask, logits_to_keep
        plain = partial(super()._get_per_token_logps_and_entropies, model)
        with self.accelerator.autocast():
            packed = self._packing.answer(
                model,
                self.accelerator.unwrap_model(model).config,
                *rows,
                plain,
                others=others,
                batch_size=batch_size,
                temperature=self.temperature,
                entropies=compute_entropy,
            )
        if packed is None:
            return plain(*rows, batch_size, compute_entropy, **others)
        return packed + (None,) * HAS_AUX_LOSS
