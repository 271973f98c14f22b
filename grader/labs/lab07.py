"""Lab 07, overlap: the cases, the references and the mistakes of its exercises."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import WORKED_IDS, draw_completions, pad
from grader.exercise import Case, Exercise, Mistake, Part


def sizes_of(completions: list[list[int]]) -> Tensor:
    return minigrpo.step_sizes(*pad(completions))


def draw_group(rng: np.random.Generator) -> Case:
    """A group of which some completions are deep, and one at least is flat."""
    completions = [*draw_completions(rng, size=6), [7, 8, 9]]
    stem = rng.integers(3, size=5).tolist()
    return {"sizes": sizes_of([*completions, stem, stem[:3], [*stem[:2], 4, 4]])}


def draw_identical(rng: np.random.Generator) -> Case:
    """Two identical completions that branch off from a third, and one that ends inside another."""
    stem = rng.integers(3, size=6).tolist()
    branch = [*stem[:2], 5, *rng.integers(3, size=3).tolist()]
    return {"sizes": sizes_of([stem, stem, branch, [*branch, 1], [*stem[:1], 6]])}


def draw_empty(rng: np.random.Generator) -> Case:
    """An ordinary group with completions that have no token."""
    sizes = draw_group(rng)["sizes"]
    return {"sizes": torch.cat([sizes, torch.zeros_like(sizes[:2])])}


# lab07.1: path depth


def path_depth(sizes: Tensor) -> Tensor:
    rows = [sorted({size for size in row if size > 0}) for row in sizes.tolist()]
    return torch.tensor([max(len(row) - 1, 0) for row in rows])


def depth_with_the_root(sizes: Tensor) -> Tensor:
    return torch.tensor([len({size for size in row if size > 0}) for row in sizes.tolist()])


def depth_into_padding(sizes: Tensor) -> Tensor:
    return (sizes[:, 1:] != sizes[:, :-1]).sum(dim=1)


def depth_in_tokens(sizes: Tensor) -> Tensor:
    return (sizes > 1).sum(dim=1)


def depth_of_the_group(sizes: Tensor) -> Tensor:
    return torch.full((len(sizes),), int(path_depth(sizes).max()))


# lab07.2: intermediate proportion


def intermediate_proportion(sizes: Tensor) -> Tensor:
    shares = []
    for row in sizes.tolist():
        row = [size for size in row if size > 0]
        shares.append(sum(size != row[-1] for size in row) / len(row) if row else 0.0)
    return torch.tensor(shares)


def proportion_shared(sizes: Tensor) -> Tensor:
    return (sizes > 1).sum(dim=1) / (sizes > 0).sum(dim=1).clamp(min=1)


def proportion_of_the_width(sizes: Tensor) -> Tensor:
    lengths = (sizes > 0).sum(dim=1)
    return intermediate_proportion(sizes) * lengths / sizes.shape[1]


def proportion_inside(sizes: Tensor) -> Tensor:
    return torch.where((sizes > 0).any(dim=1), 1 - intermediate_proportion(sizes), 0.0)


def proportion_from_the_last_column(sizes: Tensor) -> Tensor:
    outside = ((sizes != sizes[:, -1:]) & (sizes > 0)).sum(dim=1)
    return outside / (sizes > 0).sum(dim=1).clamp(min=1)


def proportion_of_nothing(sizes: Tensor) -> Tensor:
    return intermediate_proportion(sizes) * (sizes > 0).sum(dim=1) / (sizes > 0).sum(dim=1)


# lab07.3: entropy


def token_entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


def entropy_in_bits(logits: Tensor) -> Tensor:
    return token_entropy(logits) / np.log(2)


def entropy_of_minus_infinity(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def entropy_that_overflows(logits: Tensor) -> Tensor:
    p = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(dim=-1)


def surprise_of_the_likeliest(logits: Tensor) -> Tensor:
    return -logits.log_softmax(dim=-1).amax(dim=-1)


def mean_over_the_vocabulary(logits: Tensor) -> Tensor:
    return token_entropy(logits) / logits.shape[-1]


def draw_logits(rng: np.random.Generator, offset: float = 0.0) -> Case:
    return {"logits": torch.from_numpy(2 * rng.normal(size=(2, 3, 7)) + offset)}


def draw_forbidden(rng: np.random.Generator) -> Case:
    case = draw_logits(rng)
    forbidden = torch.from_numpy(rng.random(size=(2, 3, 7)) < 0.3)
    forbidden[..., 0] = False
    forbidden[0, 0, 1] = True
    return {"logits": case["logits"].masked_fill(forbidden, -torch.inf)}


# lab07.4: rank correlation


def rank_correlation(x: list[float], y: list[float]) -> float:
    def ranks(values: list[float]) -> np.ndarray:
        order = sorted(values)
        return np.array(
            [np.mean([k for k, other in enumerate(order, 1) if other == value]) for value in values]
        )

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def correlation_of_values(x: list[float], y: list[float]) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def correlation_with_ties_in_order(x: list[float], y: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def correlation_of_orders(x: list[float], y: list[float]) -> float:
    orders = [np.argsort(values, kind="stable") for values in (x, y)]
    return float(np.corrcoef(orders[0], orders[1])[0, 1])


def correlation_by_the_short_formula(x: list[float], y: list[float]) -> float:
    """1 − 6 Σ d² / (n³ − n), which is right where no values are equal."""
    ranks = [
        [(sum(b < a for b in values) + sum(b <= a for b in values) + 1) / 2 for a in values]
        for values in (x, y)
    ]
    n = len(x)
    return 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / (n**3 - n)


def draw_pairs(rng: np.random.Generator, *, ties: bool) -> Case:
    x = rng.exponential(size=9)
    y = np.exp(-x + 0.5 * rng.normal(size=9))
    if ties:
        x = np.concatenate([np.round(2 * x) / 2, [0.5, 0.5, 4.0]])
        y = np.concatenate([np.round(4 * y) / 4, [0.25, 0.75, 0.25]])
    return {"x": x.tolist(), "y": y.tolist()}


EXERCISES = (
    Exercise(
        id="lab07.1",
        function="path_depth",
        reference=path_depth,
        parts=(
            Part(
                name="random groups",
                points=1,
                draw=draw_group,
                hint="count the distinct sizes along each completion, padding left out, and take one away.",
                examples=({"sizes": sizes_of(WORKED_IDS)},),
            ),
            Part(
                name="identical completions",
                points=1,
                draw=draw_identical,
                hint="a set of two that ends as a set of two is one step.",
            ),
            Part(
                name="completions with no token",
                points=1,
                draw=draw_empty,
                hint="a completion with no token has depth 0, not −1.",
            ),
        ),
        mistakes=(
            Mistake(
                name="not minus one",
                hint="you count the steps; depth is one less, so that flat is 0.",
                wrong=depth_with_the_root,
            ),
            Mistake(
                name="into the padding",
                hint="the fall to 0 under the mask is the end, not a new step.",
                wrong=depth_into_padding,
            ),
            Mistake(
                name="tokens counted",
                hint="you count shared tokens. Depth counts steps, however long.",
                wrong=depth_in_tokens,
            ),
            Mistake(
                name="one for the group",
                hint="each completion has a depth of its own.",
                wrong=depth_of_the_group,
            ),
        ),
    ),
    Exercise(
        id="lab07.2",
        function="intermediate_proportion",
        reference=intermediate_proportion,
        parts=(
            Part(
                name="random groups",
                points=1,
                draw=draw_group,
                hint="count the tokens whose size differs from that of the completion's last token; "
                "divide by its length.",
                examples=({"sizes": sizes_of(WORKED_IDS)},),
            ),
            Part(
                name="identical completions",
                points=1,
                draw=draw_identical,
                hint="the last step may be one that others share too: compare with the last token's size, not with 1.",
            ),
            Part(
                name="completions with no token",
                points=1,
                draw=draw_empty,
                hint="a completion with no token has proportion 0, not NaN.",
            ),
        ),
        mistakes=(
            Mistake(
                name="all that is shared",
                hint="you count every shared token. What identical completions share at their end is their last step.",
                wrong=proportion_shared,
            ),
            Mistake(
                name="divided by the width",
                hint="you divide by T; the denominator is the completion's own length.",
                wrong=proportion_of_the_width,
            ),
            Mistake(
                name="the other part",
                hint="you measure what lies inside the last step: asked is what lies outside.",
                wrong=proportion_inside,
            ),
            Mistake(
                name="last column",
                hint="you compare with the last column of the tensor, which is padding for shorter completions.",
                wrong=proportion_from_the_last_column,
            ),
            Mistake(
                name="0/0",
                hint="you divide by a length of 0: an empty completion has proportion 0.",
                wrong=proportion_of_nothing,
            ),
        ),
    ),
    Exercise(
        id="lab07.3",
        function="token_entropy",
        reference=token_entropy,
        parts=(
            Part(
                name="random logits",
                points=1,
                draw=draw_logits,
                hint="take the softmax over the last dimension and sum −p ln p over it.",
                examples=({"logits": torch.zeros(1, 2, dtype=torch.float64)},),
            ),
            Part(
                name="large logits",
                points=1,
                draw=lambda rng: draw_logits(rng, 1000.0),
                hint="exp of a large logit is infinite: use log_softmax.",
            ),
            Part(
                name="tokens that can't occur",
                points=1,
                draw=draw_forbidden,
                hint="a logit of −∞ has p = 0 and adds 0, not 0·∞ = NaN.",
            ),
        ),
        mistakes=(
            Mistake(
                name="bits",
                hint="nats are asked: use the natural logarithm.",
                wrong=entropy_in_bits,
            ),
            Mistake(
                name="0·∞",
                hint="where p is 0, p ln p is NaN for the computer; it has to count as 0.",
                wrong=entropy_of_minus_infinity,
            ),
            Mistake(
                name="overflow",
                hint="you exponentiate the logits themselves, which overflows: subtract first, as log_softmax does.",
                wrong=entropy_that_overflows,
            ),
            Mistake(
                name="only the likeliest",
                hint="you take −ln p of one token; entropy is the mean of −ln p over all of them.",
                wrong=surprise_of_the_likeliest,
            ),
            Mistake(
                name="mean over V",
                hint="sum over the vocabulary: p already weighs its tokens.",
                wrong=mean_over_the_vocabulary,
            ),
        ),
    ),
    Exercise(
        id="lab07.4",
        function="rank_correlation",
        reference=rank_correlation,
        parts=(
            Part(
                name="no ties",
                points=1,
                draw=lambda rng: draw_pairs(rng, ties=False),
                hint="replace values by ranks, then correlate.",
                examples=({"x": [1.0, 2.0, 10.0], "y": [0.3, 0.2, 0.1]},),
            ),
            Part(
                name="ties",
                points=2,
                draw=lambda rng: draw_pairs(rng, ties=True),
                hint="equal values share the mean of their ranks.",
            ),
        ),
        mistakes=(
            Mistake(
                name="values, not ranks",
                hint="you correlate the values; rank them first.",
                wrong=correlation_of_values,
            ),
            Mistake(
                name="ties in order",
                hint="equal values get different ranks from you; they share the mean rank.",
                wrong=correlation_with_ties_in_order,
            ),
            Mistake(
                name="the short formula",
                hint="1 − 6 Σ d² / (n³ − n) holds without ties alone: correlate the ranks themselves.",
                wrong=correlation_by_the_short_formula,
            ),
            Mistake(
                name="argsort once",
                hint="argsort gives who stands at each place, not the rank of each value.",
                wrong=correlation_of_orders,
            ),
        ),
    ),
)
