"""Fit the cost model to a machine: a few passes are timed, and what a token, a pair, a layer's call cost is read off.

`forward.forward_costs` knows a model's sizes, and three constants that were measured on a processor. A card has others:
its matrix products are quick beside its calls. Passes forward and back over small groups of random tokens, each in the
ways that the model may use, give seconds; the constants are those whose costs are nearest to them.

    seconds ≈ s · ( token·tokens + scored·scored + a·pair·pairs + c·call·passes + b·block·blocks )

Least squares of the relative error, over s, s·a, s·c and s·b, none of them negative; where the passes say little about
one of them, as small ones do about the attention, it stays near the known constant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minigrpo.llm.forward import FORWARDS, ForwardCosts, forward_costs
from minigrpo.llm.sampling import Samples, context_of
from minigrpo.text import text_table

# (P, G, L, T, S): prompts of L tokens, completions of T that share their first S. From cheap to dear, each unlike the
# one before: many rows, long rows, long trees
SHAPES = (
    (1, 4, 8, 8, 2),
    (1, 8, 8, 32, 0),
    (1, 8, 64, 16, 4),
    (2, 8, 16, 64, 0),
    (1, 4, 16, 256, 0),
    (1, 16, 256, 32, 4),
    (1, 8, 512, 128, 0),
    (1, 4, 64, 1024, 0),
)
SECONDS = 2.0  # as long as anybody waits before a run
LEAST = 5  # timed passes; fewer can't tell four constants apart
TRUST = 0.1  # in the known constants: a pull as strong as that of a pass that counts for a tenth


@dataclass(frozen=True)
class Timed:
    """One way of one shape: its name, the four terms of its cost, and the seconds it took."""

    forward: str
    shape: tuple[int, ...]
    terms: tuple[float, ...]
    seconds: float


def calibrate(
    model: PreTrainedModel,
    forwards: Collection[str],
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[ForwardCosts, list[Timed]]:
    """Measure and fit.

    Args:
        model: as it is trained, under its autocast; its gradients are dropped.
        forwards: of FORWARDS, those that it may use.
        seconds: after which no pass is begun but the first; one that would not end by then is left out, as is all that
            comes after one for which memory is too short.
        clock: seconds.

    Returns:
        The costs, those that are read off the model's sizes where the time was too short; and what was timed.
    """
    was_training = model.training
    model.train()
    rows = list(_timed(model, forwards, seconds, clock))
    model.train(was_training)
    costs = forward_costs(model)
    return (fitted(costs, rows) if is_fitted(rows) else costs), rows


def _timed(
    model: PreTrainedModel, forwards: Collection[str], seconds: float, clock: Callable[[], float]
) -> Iterator[Timed]:
    """Time each way of each shape once warm, as long as there is time.

    Args:
        model: as `calibrate`.
        forwards: as `calibrate`.
        seconds: as `calibrate`.
        clock: as `calibrate`.
    """
    start = clock()
    rate = 0.0  # seconds a unit of cost, of the dearest pass so far
    sizes = forward_costs(model)
    for shape in SHAPES:
        if shape[2] + shape[3] > context_of(model.config)[0]:
            continue
        samples = random_groups(model, *shape)
        for name in forwards:
            layout = FORWARDS[name].layout(samples)
            cost = FORWARDS[name].cost(layout, sizes)
            left = seconds - (clock() - start)
            if rate and 2 * rate * cost > left:  # one to warm up, one that counts
                return
            try:
                taken = [_pass_seconds(model, name, layout, clock) for _ in range(2)]
            except torch.OutOfMemoryError:  # a run's own batches may be smaller
                model.zero_grad(set_to_none=True)
                return
            rate = taken[1] / cost
            yield Timed(name, shape, terms(name, layout, sizes), min(taken))


def random_groups(model: PreTrainedModel, P: int, G: int, L: int, T: int, S: int) -> Samples:
    """Groups of random tokens, the same for every run.

    Args:
        model: whose vocabulary and device are taken.
        P: prompts.
        G: completions of each.
        L: tokens of a prompt.
        T: tokens of a completion.
        S: tokens that the completions of a group begin with.
    """
    vocabulary = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocabulary, (P, L), generator=draw)
    ids = torch.randint(0, vocabulary, (P, G, T), generator=draw)
    ids[..., :S] = ids[:, :1, :S]
    tensors = (prompts, torch.ones_like(prompts).bool(), ids, torch.ones_like(ids).bool())
    return Samples(*(x.to(model.device) for x in (*tensors, torch.zeros(P, G, T))))


def _pass_seconds(
    model: PreTrainedModel, name: str, layout: Any, clock: Callable[[], float]
) -> float:
    """Seconds of one pass forward and back.

    Args:
        model: as `calibrate`.
        name: of FORWARDS.
        layout: of the samples.
        clock: as `calibrate`.
    """
    _finish(model)
    start = clock()
    FORWARDS[name].logps(model, layout).sum().backward()
    _finish(model)
    taken = clock() - start
    model.zero_grad(set_to_none=True)
    return taken


def _finish(model: PreTrainedModel) -> None:
    """Wait for what a card still has to do."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def terms(name: str, layout: Any, costs: ForwardCosts) -> tuple[float, ...]:
    """The terms of a pass's cost: linear layers, attention, calls, blocks. Their sum is its cost.

    Args:
        name: of FORWARDS.
        layout: of the samples.
        costs: the model's.
    """
    none = ForwardCosts(0, 0, 0, 0)
    parts = (
        replace(none, token=costs.token, scored=costs.scored),
        replace(none, pair=costs.pair),
        replace(none, call=costs.call),
        replace(none, block=costs.block),
    )
    return tuple(FORWARDS[name].cost(layout, part) for part in parts)


def fitted(costs: ForwardCosts, rows: Collection[Timed]) -> ForwardCosts:
    """The costs in the same unit, FLOPs of a linear layer, with the prices that the timed passes had.

    Args:
        costs: by which the terms of the rows were counted.
        rows: what was timed.
    """
    shares = torch.tensor([[term / row.seconds for term in row.terms] for row in rows]).double()
    known = (1 / shares.sum(dim=1)).median()  # seconds a unit of cost
    pull = TRUST * torch.eye(4, dtype=torch.float64)
    goal = torch.cat([torch.ones(len(shares)), torch.full((4,), TRUST)]).double()
    prices = _not_negative(torch.cat([shares * known, pull]), goal)
    if not prices[0] > 0:  # the linear layers were lost beside the calls: no unit is left
        return costs
    attention, call, block = (prices[1:] / prices[0]).tolist()
    return replace(
        costs, pair=costs.pair * attention, call=costs.call * call, block=costs.block * block
    )


def _not_negative(a: Tensor, b: Tensor) -> Tensor:
    """The x ≥ 0, float64 (k,), that brings a (n, k) times x nearest to b (n,)."""
    kept = list(range(a.shape[1]))
    while (found := torch.linalg.lstsq(a[:, kept], b.unsqueeze(1)).solution[:, 0]).min() < 0:
        kept.pop(int(found.argmin()))
    return torch.zeros(a.shape[1], dtype=a.dtype).index_copy(0, torch.tensor(kept), found)


def is_fitted(rows: Collection[Timed]) -> bool:
    """Whether there was time for enough passes."""
    return len(rows) >= LEAST


def predicted(costs: ForwardCosts, first: ForwardCosts, row: Timed) -> float:
    """The cost of what was timed, by other costs.

    Args:
        costs: to be used.
        first: by which the row's terms were counted.
        row: what was timed.
    """
    linear, pairs, calls, blocks = row.terms
    return (
        linear
        + pairs * costs.pair / first.pair
        + calls * costs.call / first.call
        + blocks * costs.block / first.block
    )


def calibration_text(known: ForwardCosts, costs: ForwardCosts, rows: Sequence[Timed]) -> str:
    """What was timed as a table, with the seconds by the known and by the fitted costs, and the prices found.

    Args:
        known: read off the model's sizes.
        costs: fitted.
        rows: what was timed.
    """
    columns = []
    for prices in (known, costs):
        counted = [predicted(prices, known, row) for row in rows]
        unit = (
            median(row.seconds / cost for row, cost in zip(rows, counted, strict=True))
            if rows
            else 0.0
        )
        columns.append([unit * cost for cost in counted])
    lines = [
        (
            f"{P} × {G} × ({L} + {T}), {S}",
            row.forward,
            *(f"{1e3 * x:.1f}" for x in (row.seconds, *both)),
        )
        for row, *both in zip(rows, *columns, strict=True)
        for P, G, L, T, S in [row.shape]
    ]
    header = ("P × G × (L + T), S shared", "forward", "ms", "by the known costs", "by the fitted")
    if not is_fitted(rows):
        verdict = (
            f"a fit needs {LEAST} passes, and there was time for {len(rows)}: the known costs are kept; "
            "give it more --seconds"
        )
    else:
        pair, call, block = (
            costs.pair / known.pair,
            costs.call / known.call,
            costs.block / known.block,
        )
        verdict = (
            f"beside a token in the linear layers, against what was known: a pair in the attention costs {pair:.2f} "
            f"times as much, calling a layer {call:.2f}, one more block of queries {block:.2f}"
        )
    return f"{text_table(header, lines)}\n\n{verdict}"
