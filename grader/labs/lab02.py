"""Lab 02, process steps: the cases, the reference and the mistakes of its exercises."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import WORKED_IDS, draw_completions, pad, worked_group
from grader.exercise import Case, Exercise, Mistake, Part

# lab02.1: the definition, on lists


def process_sets(completions: list[list[int]]) -> list[list[list[int]]]:
    return [
        [
            [j for j, other in enumerate(completions) if other[: t + 1] == y[: t + 1]]
            for t in range(len(y))
        ]
        for y in completions
    ]


def sets_of_equal_tokens(completions):
    return [
        [
            [j for j, other in enumerate(completions) if other[t : t + 1] == y[t : t + 1]]
            for t in range(len(y))
        ]
        for y in completions
    ]


def sets_before_the_token(completions):
    return [
        [[j for j, other in enumerate(completions) if other[:t] == y[:t]] for t in range(len(y))]
        for y in completions
    ]


def sets_without_itself(completions):
    sets = process_sets(completions)
    return [[[j for j in members if j != i] for members in row] for i, row in enumerate(sets)]


def sets_cut_to_the_shortest(completions):
    return [
        [
            [j for j, z in enumerate(completions) if z[: t + 1] == y[: len(z[: t + 1])]]
            for t in range(len(y))
        ]
        for y in completions
    ]


def duplicated(rng: np.random.Generator) -> list[list[int]]:
    """Three identical completions, and three that differ from them at the first token but not at the others."""
    first, *rest = rng.integers(3, size=5).tolist()
    others = draw_completions(rng, size=2)
    return [[first, *rest]] * 3 + [[3, *rest], [4, *rest[:3]], *others]


def nested(rng: np.random.Generator) -> list[list[int]]:
    """Completions that end inside others."""
    longest = rng.integers(3, size=6).tolist()
    return [longest, longest[:2], longest[:4], [longest[0], 3, 1], longest[:1]]


# lab02.2: sizes, on padded tensors


def sizes_with_padding(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    return minigrpo.step_sizes(completion_ids, torch.ones_like(completion_mask)) * completion_mask


def sizes_without_the_mask(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    return minigrpo.step_sizes(completion_ids, torch.ones_like(completion_mask))


def sizes_not_zeroed(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    agree = (completion_ids.unsqueeze(0) == completion_ids.unsqueeze(1)).cumprod(-1).bool()
    return (agree & completion_mask.unsqueeze(0)).sum(dim=1)


def sizes_of_equal_tokens(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    both = completion_mask.unsqueeze(0) & completion_mask.unsqueeze(1)
    return (both & (completion_ids.unsqueeze(0) == completion_ids.unsqueeze(1))).sum(dim=1)


def sizes_as_floats(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    return minigrpo.step_sizes(completion_ids, completion_mask).double()


def sizes_off_by_one(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    before = torch.full_like(completion_ids[:, :1], len(completion_ids))
    return (
        torch.cat([before, minigrpo.step_sizes(completion_ids, completion_mask)[:, :-1]], dim=1)
        * completion_mask
    )


def tensors(completions: list[list[int]], filler: int = 0) -> Case:
    ids, mask = pad(completions, filler)
    return {"completion_ids": ids, "completion_mask": mask}


def padded_like_a_token(rng: np.random.Generator) -> Case:
    """The shorter of two rows goes on, under its mask, just as the longer one does."""
    longest = rng.integers(3, size=6).tolist()
    completions = [longest, longest[:3], longest[:5], [3, *longest[1:4]]]
    case = tensors(completions)
    hidden = case["completion_ids"][0].expand_as(case["completion_ids"])
    case["completion_ids"] = torch.where(case["completion_mask"], case["completion_ids"], hidden)
    return case


# lab02.3: runs of one set


def process_steps(sizes: list[int]) -> list[tuple[int, int]]:
    starts = [t for t in range(len(sizes)) if t == 0 or sizes[t] != sizes[t - 1]]
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def steps_with_last_token(sizes):
    return [(start, stop - 1) for start, stop in process_steps(sizes)]


def steps_without_the_last(sizes):
    return process_steps(sizes)[:-1]


def one_step_a_token(sizes):
    return [(t, t + 1) for t in range(len(sizes))]


def draw_sizes(rng: np.random.Generator) -> Case:
    sizes = np.sort(rng.choice([1, 2, 3, 5, 8], size=rng.integers(4, 10)))[::-1]
    return {"sizes": sizes.tolist()}


EXERCISES = (
    Exercise(
        id="lab02.1",
        function="process_sets",
        reference=process_sets,
        parts=(
            Part(
                name="random groups",
                points=2,
                draw=lambda rng: {"completions": draw_completions(rng)},
                hint="compare whole prefixes: tokens 0…t of both completions, t included.",
                examples=({"completions": WORKED_IDS},),
            ),
            Part(
                name="identical completions",
                points=1,
                draw=lambda rng: {"completions": duplicated(rng)},
                hint="identical completions stay in one set to their last token.",
            ),
            Part(
                name="completions that end early",
                points=1,
                draw=lambda rng: {"completions": nested(rng)},
                hint="a completion which has ended before token t is in no set of token t.",
            ),
        ),
        mistakes=(
            Mistake(
                name="equal tokens",
                hint="you compare token t alone. Two completions are in one set only if all their "
                "tokens 0…t are equal.",
                wrong=sets_of_equal_tokens,
            ),
            Mistake(
                name="t not included",
                hint="you compare the tokens before t. λ^(i,t) asks for tokens 0…t, with t.",
                wrong=sets_before_the_token,
            ),
            Mistake(
                name="without itself",
                hint="a completion shares its own prefix: i is in λ^(i,t).",
                wrong=sets_without_itself,
            ),
            Mistake(
                name="ended completions kept",
                hint="you keep completions which have ended before t. They leave the set where they end.",
                wrong=sets_cut_to_the_shortest,
            ),
        ),
    ),
    Exercise(
        id="lab02.2",
        function="step_sizes",
        reference=minigrpo.step_sizes,
        parts=(
            Part(
                name="random groups",
                points=2,
                draw=lambda rng: tensors(draw_completions(rng)),
                hint="count for each token the completions that share its whole prefix.",
                examples=(
                    dict(
                        zip(("completion_ids", "completion_mask"), worked_group()[:2], strict=True)
                    ),
                ),
            ),
            Part(
                name="identical completions",
                points=1,
                draw=lambda rng: tensors(duplicated(rng)),
                hint="three identical completions: each of their tokens is shared by three at least.",
            ),
            Part(
                name="padding that looks like a token",
                points=2,
                draw=padded_like_a_token,
                hint="what stands under the mask belongs to no set, even where its id is that of a real token.",
            ),
        ),
        mistakes=(
            Mistake(
                name="padding counted",
                hint="you compare ids where the mask is False. Both tokens have to be unmasked, at every s ≤ t.",
                wrong=sizes_with_padding,
            ),
            Mistake(
                name="no mask",
                hint="you do not use completion_mask: padding belongs to no set, and its own size is 0.",
                wrong=sizes_without_the_mask,
            ),
            Mistake(
                name="padding not zeroed",
                hint="sizes under the mask have to be 0.",
                wrong=sizes_not_zeroed,
            ),
            Mistake(
                name="equal tokens",
                hint="you compare token t alone: agreement has to hold from token 0 on (a cumulative product does it).",
                wrong=sizes_of_equal_tokens,
            ),
            Mistake(
                name="floats",
                hint="sizes are counts: return an integer tensor.",
                wrong=sizes_as_floats,
            ),
            Mistake(
                name="shifted by one",
                hint="your sizes come one token late: token t itself has to agree, not only those before it.",
                wrong=sizes_off_by_one,
            ),
        ),
    ),
    Exercise(
        id="lab02.3",
        function="process_steps",
        reference=process_steps,
        parts=(
            Part(
                name="random completions",
                points=3,
                draw=draw_sizes,
                hint="a new step begins where the size changes; its stop is the next one's start.",
                examples=({"sizes": [3, 3, 3, 2, 2, 1, 1]}, {"sizes": [4, 4]}),
            ),
        ),
        mistakes=(
            Mistake(
                name="stop included",
                hint="your stop is the last token of the step. As in a slice, it is one past it.",
                wrong=steps_with_last_token,
            ),
            Mistake(
                name="last step lost",
                hint="the last step ends where the completion ends; you dropped it.",
                wrong=steps_without_the_last,
            ),
            Mistake(
                name="a step for each token",
                hint="you give each token a step of its own: a step is a maximal run of tokens with one size.",
                wrong=one_step_a_token,
            ),
        ),
    ),
)
