"""The paper's objectives inside Hugging Face TRL: `ProcessGRPOTrainer(…, objective="lambda_grpo")`.

TRL samples, scores, reduces and optimises as ever. After it has scored a batch we give each token its advantage and
its weight, which travel with their rows through TRL's shuffling, splitting and reuse; TRL's own loss takes them in:

    L = 1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ step_weights_{i,t} · ( surrogate_{i,t} − β·kl_{i,t} )

The weights go in as `tool_mask`, TRL's factor on the whole term of a token. The denominator, counted before, and the
attention do not see it. The logged means of entropy, KL and clipping would: they are taken again, unweighted, from the
same forward pass. TRL hands us advantages, not rewards; the mean of aᵢ over λ^(i,t) is A_{i,t}. RLOO, MaxRL and
Dr. GRPO, whose advantages are others, take the rewards.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
Shapes: B rows of a process, P prompts, G completions of a group, T tokens.
"""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.checks import check_choice
from minigrpo.integrations.boundary import GenerationBoundary, StopWhen
from minigrpo.integrations.contract import WEIGHTS, check_names, check_version
from minigrpo.objectives import OBJECTIVES
from minigrpo.steps import step_mean, step_sizes

check_version()  # before trl is imported

from datasets import Dataset, IterableDataset  # noqa: E402
from transformers import set_seed  # noqa: E402
from transformers.trainer_jit_checkpoint import JITCheckpointCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from minigrpo.integrations.packed import PackedGRPOTrainer  # noqa: E402

check_names(GRPOTrainer, GRPOConfig)

# Objectives of minigrpo whose advantages are not those that TRL makes by its `scale_rewards`: they take the rewards.
FROM_REWARDS = ("dr_grpo", "rloo", "maxrl")
# The others: (advantages (P, G), completion_ids, completion_mask (P, G, T)) → advantages, step_weights, (P, G, T)
FROM_ADVANTAGES = {
    "grpo": lambda a, ids, mask: (a.unsqueeze(-1) * mask, mask.to(a)),
    "prm": lambda a, ids, mask: (step_mean(a, ids, mask), mask.to(a)),
    "lambda_grpo": lambda a, ids, mask: (
        a.unsqueeze(-1) * mask,
        mask.to(a) / step_sizes(ids, mask).clamp(min=1),
    ),
    "tempo": lambda a, ids, mask: (_with_changes(a, step_mean(a, ids, mask)) * mask, mask.to(a)),
}


def _with_changes(a: Tensor, A: Tensor) -> Tensor:
    """aᵢ + A_{i,t} − A_{i,t−1}, from (P, G) and (P, G, T)."""
    return a.unsqueeze(-1) + A - F.pad(A, (1, -1))


REQUIRED = {  # what makes a token's term depend on other tokens, or the denominator on the weights
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "use_liger_kernel": False,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
}


def check_arguments(objective: str, given: dict[str, Any]) -> None:
    """Refuse, before a model is loaded, what would not be the named objective. Raises ValueError.

    Whatever the objective: two runs that differ in it alone stay comparable.
    """
    check_choice("objective", objective, OBJECTIVES)
    for name in ("tools", "environment_factory"):
        if given.get(name):
            raise ValueError(
                f"{name} must be left out: a tool's tokens are no process steps, got {given[name]!r}"
            )
    dataset, other, args = given.get("train_dataset"), given.get("eval_dataset"), given.get("args")
    check_columns("train_dataset", dataset)
    for evaluated in other.values() if isinstance(other, dict) else [other]:
        check_columns("eval_dataset", evaluated)
    if args is None:
        return
    prompts = args.generation_batch_size // args.num_generations
    # TRL would stop at once and say that it is done
    if isinstance(dataset, Dataset) and len(dataset) < prompts:
        raise ValueError(
            f"train_dataset must hold the {prompts} prompts of a generation at least, got {len(dataset)}"
        )
    for name, value in REQUIRED.items():
        if (got := vars(args).get(name, value)) != value:  # older versions lack some
            raise ValueError(f"{name} must be {value!r} for the process objectives, got {got!r}")
    if args.use_vllm and args.vllm_importance_sampling_correction:
        # others: per completion
        mode, per_token = args.vllm_importance_sampling_mode, ("token_truncate", "token_mask")
        check_choice("vllm_importance_sampling_mode", mode, per_token)
    if args.beta and args.use_bias_correction_kl:
        warnings.warn(
            "use_bias_correction_kl is on, TRL's default: the paper's KL needs False", stacklevel=3
        )


def check_columns(name: str, dataset: Any) -> None:
    """Require a data set with prompts. Raises ValueError."""
    if not isinstance(dataset, Dataset | IterableDataset | None):
        raise ValueError(
            f"{name} must be a datasets.Dataset or IterableDataset, got {type(dataset).__name__}"
        )
    columns = dataset and dataset.column_names  # a stream may not know
    if columns and "prompt" not in columns:
        raise ValueError(
            f"{name} must have a column 'prompt', got {', '.join(columns)}: rename one"
        )


def seed_vllm(args: Any, accelerator: Any) -> None:
    """Sample by the seed that was asked for: a colocated vLLM has seeded the whole process with a number of its own.

    Processes that share a model in vLLM have to draw alike, others not.

    Args:
        args: TRL's.
        accelerator: the trainer's.
    """
    if args.use_vllm and args.vllm_mode == "colocate":
        set_seed(args.seed + accelerator.process_index // args.vllm_tensor_parallel_size)


class ProcessGRPOTrainer(PackedGRPOTrainer):
    """`trl.GRPOTrainer` with an `objective` of `minigrpo.OBJECTIVES`; all else as its parent takes it.

    Tokens that rows share are computed once where that pays (`minigrpo.integrations.packed`); pack=False leaves it.

    Raises: ValueError, before a model is loaded, for another objective or an option under which it would not be exact.
    """

    def __init__(
        self,
        *arguments: Any,
        objective: str = "lambda_grpo",
        pack: bool | str = "auto",
        **keywords: Any,
    ) -> None:
        check_arguments(
            objective, inspect.signature(GRPOTrainer).bind(*arguments, **keywords).arguments
        )
        self.objective, self._boundary = objective, GenerationBoundary()
        # the last forward pass, and whether to take it again
        self._forward, self._again = None, False
        super().__init__(*arguments, pack=pack, **keywords)
        if self.args.enable_jit_checkpoint:
            self._boundary.at_sigterm = self.pop_callback(JITCheckpointCallback)
        self.add_callback(self._boundary)
        seed_vllm(self.args, self.accelerator)

    def stop_when(self, is_time: Callable[[], bool]) -> None:
        """Save and stop at the end of a generation at which `is_time` says yes."""
        self.add_callback(StopWhen(self._boundary, is_time))

    def _get_train_sampler(self, *arguments: Any) -> Any:
        self._boundary.sampler = super()._get_train_sampler(*arguments)
        return self._boundary.sampler

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Add each token's advantage and weight to the scored batch; a step needs its whole group, on all processes."""
        batch = super()._generate_and_score_completions(inputs)
        if WEIGHTS in batch:
            raise ValueError(
                "rollout_func must return no env_mask: another's tokens are no process steps"
            )
        # with 0, to the longest T
        gather, pad = self.accelerator.gather, self.accelerator.pad_across_processes
        ids, mask = (
            gather(pad(batch[name], dim=1)) for name in ("completion_ids", "completion_mask")
        )
        if not mask.any():  # all were cut off, and mask_truncated_completions is on
            return batch
        G = self.num_generations if self.model.training else self.num_generations_eval
        ids, mask = ids.unflatten(0, (-1, G)), mask.unflatten(0, (-1, G)).bool()  # (P, G, T)
        objective = (
            OBJECTIVES[self.objective](self._rewards.view(-1, G), ids, mask)
            if self.objective in FROM_REWARDS
            else FROM_ADVANTAGES[self.objective](gather(batch["advantages"]).view(-1, G), ids, mask)
        )
        B, T = batch["completion_ids"].shape
        mine = (
            value.flatten(0, 1).split(B)[self.accelerator.process_index][:, :T]
            for value in objective
        )
        return batch | dict(zip(("advantages", WEIGHTS), mine, strict=True))

    def _calculate_rewards(self, *arguments: Any, **keywords: Any) -> Tensor:
        """TRL's, of all processes; their weighted sum is kept, NaN where no function gave one."""
        rewards = super()._calculate_rewards(*arguments, **keywords)  # (all B, functions)
        self._rewards = (
            (rewards * self.reward_weights.to(rewards.device))
            .nansum(dim=1)
            .masked_fill(rewards.isnan().all(dim=1), torch.nan)
        )
        return rewards

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss of the weighted terms, and its metrics of the unweighted ones."""
        metrics, self._metrics = (
            self._metrics,
            {"train": defaultdict(list), "eval": defaultdict(list)},
        )
        loss = super()._compute_loss(model, inputs)
        self._metrics, self._again = metrics, True
        with torch.no_grad():
            super()._compute_loss(
                model, {name: value for name, value in inputs.items() if name != WEIGHTS}
            )
        self._forward, self._again = None, False
        return loss

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **keywords: Any) -> Any:
        if not self._again:
            self._forward = super()._get_per_token_logps_and_entropies(*arguments, **keywords)
        return self._forward
