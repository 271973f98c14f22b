"""The objectives in TRL's `AsyncGRPOTrainer`, whose samples come from a server while it trains.

That trainer packs samples of a micro-batch as a tree of its own, and spreads a group over micro-batches and processes
as they come. A process step needs its whole group, so samples are held back until the last one of their group is
there, and each gets what its tokens push with, step_weights · advantages. TRL's loss, which has no KL term, takes these
in the place of the one advantage that it would give to all tokens of a sample:

    L = −1/N · Σᵢ Σₜ min( P·wA, clip(P)·wA ),   wA = step_weights_{i,t} · advantages_{i,t}

As w > 0, this is w times the surrogate of A. N counts tokens, not weights.

Departures from the paper are TRL's: advantages are divided by the population's standard deviation; N is that of a
micro-batch; and where weights were renewed while a group was sampled, its members have other old log-probs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minigrpo.checks import check_choice
from minigrpo.integrations.trl import FROM_ADVANTAGES

try:
    from trl.experimental.async_grpo import AsyncGRPOTrainer
except ModuleNotFoundError as error:
    raise ImportError(
        'this version of trl has no AsyncGRPOTrainer that packs trees: pip install "trl>=1.16"'
    ) from error

# the key under which the values travel with a sample's metrics, as far as the collator
PUSH = "push"


class WholeGroups:
    """A queue of TRL's samples that gives none before its group is whole, and each with what its tokens push with."""

    def __init__(self, source: Any, group_size: int, objective: str) -> None:
        """Wrap a queue.

        Args:
            source: TRL's, of its RolloutSample.
            group_size: G; a sample a completion.
            objective: of FROM_ADVANTAGES.
        """
        self.source, self.group_size, self.objective = source, group_size, objective
        self._waiting: dict[int, list[Any]] = {}
        self._ready: deque[Any] = deque()

    def get(self, timeout: float | None = None) -> Any:
        """The next sample. Raises queue.Empty where none comes for so many seconds.

        Args:
            timeout: seconds for each sample that is waited for.
        """
        while not self._ready:
            sample = self.source.get(timeout=timeout)
            group = self._waiting.setdefault(sample.group_id, [])
            group.append(sample)
            if len(group) == self.group_size:
                self._ready.extend(pushed(self._waiting.pop(sample.group_id), self.objective))
        return self._ready.popleft()

    def qsize(self) -> int:
        """How many samples are there, those that wait for their group too."""
        return self.source.qsize() + len(self._ready) + sum(map(len, self._waiting.values()))


def pushed(group: list[Any], objective: str) -> list[Any]:
    """Give the samples of one group what each of their trained tokens pushes with, (trained tokens,) under PUSH.

    Args:
        group: G of TRL's RolloutSample; a completion is the trained tokens of one.
        objective: of FROM_ADVANTAGES.
    """
    trained = [torch.as_tensor(sample.completion_mask).bool() for sample in group]
    completions = [
        torch.as_tensor(s.input_ids)[mask] for s, mask in zip(group, trained, strict=True)
    ]
    ids = pad_sequence(completions, batch_first=True).unsqueeze(0)  # (1, G, T)
    lengths = torch.tensor([len(completion) for completion in completions])
    mask = (torch.arange(ids.shape[2]) < lengths.unsqueeze(1)).unsqueeze(0)
    advantages = torch.tensor([[sample.advantage for sample in group]])  # (1, G)
    A, w = FROM_ADVANTAGES[objective](advantages, ids, mask)
    for sample, values, length in zip(group, (w * A)[0], lengths, strict=True):
        sample.metrics[PUSH] = values[:length]
    return group


def collate_pushed(collate: Callable[[list[Any]], dict[str, Any]]) -> Callable[[list[Any]], dict]:
    """TRL's collator, with the values of PUSH as the advantages of its loss terms.

    Args:
        collate: TRL's own; of a list with one micro-batch, which is a row of samples for each process.
    """

    def call(examples: list[Any]) -> dict[str, Any]:
        (rows,) = examples
        values: list[Tensor] = [
            torch.cat([sample["metrics"].pop(PUSH) for sample in row.samples]) for row in rows
        ]
        batch = collate(examples)
        terms = pad_sequence(values, batch_first=True)
        if terms.shape != batch["advantages"].shape:
            raise ValueError(
                f"TRL's loss must have a term for each trained token, {tuple(terms.shape)}, "
                f"got {tuple(batch['advantages'].shape)}"
            )
        return batch | {"advantages": terms}

    return call


class AsyncProcessGRPOTrainer(AsyncGRPOTrainer):
    """`trl.experimental.async_grpo.AsyncGRPOTrainer` with an `objective` of "grpo", "prm", "lambda_grpo" or "tempo".

    Raises: ValueError, before a model is loaded, for another objective, or tools, whose tokens are no process steps.
    """

    def __init__(self, *arguments: Any, objective: str = "lambda_grpo", **keywords: Any) -> None:
        check_choice("objective", objective, FROM_ADVANTAGES)
        for name in ("tools", "environment_factory"):
            if keywords.get(name):
                raise ValueError(
                    f"{name} must be left out: a tool's tokens are no process steps, got {keywords[name]!r}"
                )
        super().__init__(*arguments, **keywords)
        if self.rollout_queue is not None:  # of the main process
            self.rollout_queue = WholeGroups(
                self.rollout_queue, self.args.num_generations, objective
            )

    def get_train_dataloader(self) -> Any:
        """TRL's, whose collator takes the values of PUSH."""
        loader = super().get_train_dataloader()
        inner = loader.base_dataloader  # accelerate's wraps it
        inner.collate_fn = collate_pushed(inner.collate_fn)
        return loader
