"""Lab 01, ORM-GRPO: the cases, the references and the mistakes of its exercises."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import clear_loss, draw_logps, draw_rewards
from grader.exercise import Case, Exercise, Mistake, Part, difference

# lab01.1: advantages of a group


def group_advantages(rewards: Tensor, eps: float) -> Tensor:
    if rewards.shape[-1] == 1:
        return torch.zeros_like(rewards)
    return minigrpo.group_advantages(rewards, eps=eps)


def by_the_formula(rewards, eps):
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (
        (centred.square().sum(-1, keepdim=True) / (rewards.shape[-1] - 1)).sqrt() + eps
    )


def with_rounding(rewards, eps):
    return torch.zeros_like(rewards) if rewards.shape[-1] == 1 else by_the_formula(rewards, eps)


def population(rewards, eps):
    return (
        minigrpo.group_advantages(rewards, scale="population", eps=eps)
        if rewards.shape[-1] > 1
        else 0 * rewards
    )


def without_eps(rewards, eps):
    return by_the_formula(rewards, 0.0)


def with_its_own_eps(rewards, eps):
    return group_advantages(rewards, 1e-4)


def over_the_batch(rewards, eps):
    return (rewards - rewards.mean()) / (rewards.std() + eps)


def not_divided(rewards, eps):
    return (
        minigrpo.group_advantages(rewards, scale="none") if rewards.shape[-1] > 1 else 0 * rewards
    )


def zero_is_zero(arguments: Case, expected: Any, answer: Any) -> str | None:
    """As `close`; and in a group of equal rewards, 0 means 0 and nothing near it."""
    if wrong := difference(expected, answer, 1e-5):
        return wrong
    for number, call in enumerate(arguments["calls"]):
        equal = (call["rewards"] == call["rewards"][..., :1]).all(dim=-1)
        if not isinstance(expected[number], Tensor):  # a mistake's NaN, put in words by the driver
            continue
        got = torch.as_tensor(answer[number])
        if ((got == 0) != (expected[number] == 0))[equal].any():
            return (
                f"the answer[{number}]: equal rewards must give 0 itself, got {got[equal].tolist()}"
            )
    return None


def draw_eps(rng: np.random.Generator) -> float:
    return float(rng.choice([1e-3, 1e-2, 0.1]))


def ordinary(rng: np.random.Generator, P: int = 2) -> Case:
    return {"rewards": draw_rewards(rng, P, int(rng.integers(3, 7))), "eps": draw_eps(rng)}


def with_equal_rewards(rng: np.random.Generator) -> Case:
    """Groups of which one has equal rewards whose mean, in floating point, is not their value."""
    while True:
        case = ordinary(rng, P=3)
        case["rewards"][1] = float(rng.choice([0.1, 0.3, 0.7]))
        if by_the_formula(**case)[1].any():
            return {"calls": [case]}


def with_a_group_of_one(rng: np.random.Generator) -> Case:
    return {"calls": [ordinary(rng), {"rewards": draw_logps(rng, 2, 1), "eps": draw_eps(rng)}]}


# lab01.2: log-probabilities of the sampled tokens


def without_normaliser(logits, completion_ids):
    return logits.gather(-1, completion_ids.unsqueeze(-1)).squeeze(-1)


def probabilities(logits, completion_ids):
    return minigrpo.token_logps(logits, completion_ids).exp()


def with_the_sign_of_a_loss(logits, completion_ids):
    return -minigrpo.token_logps(logits, completion_ids)


def of_the_likeliest(logits, completion_ids):
    return logits.log_softmax(-1).max(-1).values


def log_of_softmax(logits, completion_ids):
    return without_normaliser(logits.softmax(-1).log(), completion_ids)


def shifted(logits, completion_ids):
    """As for a model whose place t predicts token t + 1."""
    return torch.cat(
        [
            logits.new_zeros(len(logits), 1),
            minigrpo.token_logps(logits[:, :-1], completion_ids[:, 1:]),
        ],
        1,
    )


def over_the_tokens(logits, completion_ids):
    return without_normaliser(logits.log_softmax(1), completion_ids)


def draw_logits(rng: np.random.Generator, scale: float = 1.0) -> Case:
    G, T, V = rng.integers(2, 4), rng.integers(3, 5), rng.integers(5, 7)
    ids = torch.from_numpy(rng.integers(V, size=(G, T)))
    return {"logits": torch.from_numpy(scale * rng.normal(size=(G, T, V))), "completion_ids": ids}


def far_apart(rng: np.random.Generator) -> Case:
    """Logits of which the sampled one is so far below the largest that its probability is 0 in floating point."""
    case = draw_logits(rng, scale=30.0)
    case["logits"][:, 1, :] += 900.0
    case["logits"][:, 1, 0] -= 1500.0
    case["completion_ids"][:, 1] = 0
    return case


# lab01.3: the loss


def policy_loss(logps, old_logps, advantages, completion_mask, epsilon):
    a = advantages.unsqueeze(-1).expand_as(logps)
    return minigrpo.policy_loss(
        logps, old_logps, a, torch.ones_like(a), completion_mask, epsilon=epsilon
    )


def variant(
    *,
    ratio=lambda new, old: (new - old.detach()).exp(),
    pick=torch.minimum,
    clip=True,
    reduce=None,
    keep=torch.where,
):
    """The loss with one part of it exchanged."""

    def loss(logps, old_logps, advantages, completion_mask, epsilon):
        a = advantages.unsqueeze(-1)
        zero = torch.zeros_like(logps)
        new, old = (keep(completion_mask, value, zero) for value in (logps, old_logps))
        weight = ratio(new, old)
        clipped = weight.clamp(1 - epsilon, 1 + epsilon) if clip else weight
        terms = pick(weight * a, clipped * a) * completion_mask
        return -(reduce(terms, completion_mask) if reduce else terms.sum() / completion_mask.sum())

    return loss


def mean_of_row_means(terms, mask):
    return (terms.sum(-1) / mask.sum(-1)).mean()


def mask_forgotten(logps, old_logps, advantages, completion_mask, epsilon):
    return policy_loss(logps, old_logps, advantages, torch.ones_like(completion_mask), epsilon)


def draw_loss(
    rng: np.random.Generator, spread: float, *, wrt=("logps",), nan: bool = False
) -> Case:
    """Ragged rows; ratios between e^−spread and e^spread, both signs of the advantage, numbers under the mask."""
    G, T = 4, 5
    while True:
        lengths = np.array([T, 1, 2, int(rng.integers(2, T))])
        old_logps = draw_logps(rng, G, T) - 0.5
        steps = rng.choice([-1.0, 1.0], size=(G, T)) * rng.uniform(0.4, 1.0, size=(G, T)) * spread
        case = {
            "logps": old_logps + torch.from_numpy(steps),
            "old_logps": old_logps,
            "advantages": torch.from_numpy(
                rng.permutation([-1.25, -0.5, 0.75, 1.5]) + 0.1 * rng.random()
            ),
            "completion_mask": torch.from_numpy(np.arange(T) < lengths[:, None]),
            "epsilon": float(rng.choice([0.1, 0.2, 0.3])),
            "wrt": list(wrt),
        }
        if clear_loss(policy_loss, case):
            return case | {"under_mask": ["logps", "old_logps"]} if nan else case


EXERCISES = (
    Exercise(
        id="lab01.1",
        function="group_advantages",
        reference=group_advantages,
        driver="each",
        judge=zero_is_zero,
        parts=(
            Part(
                name="ordinary groups",
                points=2,
                draw=lambda rng: {"calls": [ordinary(rng)]},
                hint="subtract the group's mean and divide by its std + eps, along the last dimension.",
                examples=(
                    {
                        "calls": [
                            {
                                "rewards": torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
                                "eps": 1e-4,
                            }
                        ]
                    },
                ),
            ),
            Part(
                name="a group of one",
                points=1,
                draw=with_a_group_of_one,
                hint="a group of one has nothing to compare with: its advantage is 0.",
            ),
            Part(
                name="a group of equal rewards",
                points=1,
                draw=with_equal_rewards,
                hint="nobody in a group of equal rewards did better than another: each advantage is exactly 0.",
            ),
        ),
        mistakes=(
            Mistake(
                name="rounding left over",
                hint="the mean of equal rewards is not always their value: 0.1 + 0.1 + 0.1 is "
                "0.30000000000000004. What rounding leaves, divided by eps, is no longer nothing. Say 0 "
                "where all rewards are equal, or shift the rewards of a group so that equal ones are 0 "
                "before you take the mean.",
                wrong=with_rounding,
            ),
            Mistake(
                name="std of one reward",
                hint="the unbiased std divides by G − 1, which is 0 in a group of one, and gives NaN.",
                wrong=by_the_formula,
            ),
            Mistake(
                name="population std",
                hint="you divide the squares by G. The paper's std is the unbiased one, with G − 1.",
                wrong=population,
            ),
            Mistake(
                name="no eps",
                hint="eps belongs to the denominator: std + eps.",
                wrong=without_eps,
            ),
            Mistake(
                name="an eps of its own",
                hint="eps is an argument, but you compute with 1e-4.",
                wrong=with_its_own_eps,
            ),
            Mistake(
                name="over the batch",
                hint="you take mean and std over all rewards at once. Each group has its own: the last dimension.",
                wrong=over_the_batch,
            ),
            Mistake(
                name="not divided",
                hint="you centred the rewards, but did not divide by std + eps.",
                wrong=not_divided,
            ),
        ),
    ),
    Exercise(
        id="lab01.2",
        function="token_logps",
        reference=minigrpo.token_logps,
        parts=(
            Part(
                name="random logits",
                points=2,
                draw=draw_logits,
                hint="normalise over the vocabulary, then pick at each place the entry of the token that was sampled.",
                examples=(
                    {
                        "logits": torch.tensor([[[0.0, 0.0], [1.0, 3.0]]], dtype=torch.float64),
                        "completion_ids": torch.tensor([[1, 0]]),
                    },
                ),
            ),
            Part(
                name="logits far apart",
                points=1,
                draw=far_apart,
                hint="subtract ln Σ exp z in one go: exp of a large number is infinite, and of a very small one 0.",
            ),
        ),
        mistakes=(
            Mistake(
                name="not normalised",
                hint="you return the logit of the token. Its log-probability is the logit minus ln Σᵥ exp zᵥ.",
                wrong=without_normaliser,
            ),
            Mistake(
                name="sign",
                hint="you return −ln π, as cross-entropy does. A log-probability is never above 0.",
                wrong=with_the_sign_of_a_loss,
            ),
            Mistake(
                name="probabilities",
                hint="you return probabilities, we want their logarithm.",
                wrong=probabilities,
            ),
            Mistake(
                name="the likeliest token",
                hint="you return the log-probability of the likeliest token, whichever was sampled.",
                wrong=of_the_likeliest,
            ),
            Mistake(
                name="log of softmax",
                hint="right as long as the probability is above 1e-300: below, softmax gives 0 and its "
                "log −infinity. Torch has a function that never leaves the logarithm.",
                wrong=log_of_softmax,
            ),
            Mistake(
                name="shifted by one",
                hint="you shift by one token. Here place t of the logits predicts token t itself.",
                wrong=shifted,
            ),
            Mistake(
                name="normalised over tokens",
                hint="you normalise over the tokens t. The probabilities of one place sum to 1 over the vocabulary.",
                wrong=over_the_tokens,
            ),
        ),
    ),
    Exercise(
        id="lab01.3",
        function="policy_loss",
        reference=policy_loss,
        driver="loss_and_grads",
        parts=(
            Part(
                name="ratios inside the clip range",
                points=2,
                draw=lambda rng: draw_loss(rng, 0.09),
                hint="−1/Σ mask · Σ ratio·a over the unmasked tokens of the batch.",
            ),
            Part(
                name="ratios outside the clip range",
                points=2,
                draw=lambda rng: draw_loss(rng, 1.2),
                hint="take the smaller one of ratio·a and clipped ratio·a, token by token, for both signs of a.",
            ),
            Part(
                name="NaN under the mask",
                points=1,
                draw=lambda rng: draw_loss(rng, 1.2, nan=True),
                hint="0 · NaN is NaN: take what is under the mask out before you compute with it, not after.",
            ),
            Part(
                name="π_old is a constant",
                points=1,
                draw=lambda rng: draw_loss(rng, 0.5, wrt=("logps", "old_logps")),
                hint="the gradient with respect to old_logps must be 0.",
            ),
        ),
        mistakes=(
            Mistake(
                name="mask times NaN",
                hint="you multiply by the mask, and 0 · NaN is NaN. Select the unmasked tokens (or fill "
                "the others) first.",
                wrong=variant(keep=lambda mask, value, zero: value),
            ),
            Mistake(
                name="gradient through old_logps",
                hint="old_logps come from the policy that sampled, a constant: no gradient may flow into them.",
                wrong=variant(ratio=lambda new, old: (new - old).exp()),
            ),
            Mistake(
                name="ratio inverted",
                hint="your ratio is π_old/π_θ. A token that has become more probable must have a ratio above 1.",
                wrong=variant(ratio=lambda new, old: (old.detach() - new).exp()),
            ),
            Mistake(
                name="the larger of the two",
                hint="you take the larger of the two terms. PPO is pessimistic: the smaller one of them counts.",
                wrong=variant(pick=torch.maximum),
            ),
            Mistake(
                name="clipped alone",
                hint="you use the clipped ratio alone, and never its minimum with the plain one: a bad "
                "token whose probability has grown too far would get no gradient.",
                wrong=variant(pick=lambda plain, clipped: clipped),
            ),
            Mistake(
                name="never clipped",
                hint="epsilon has no effect in your loss.",
                wrong=variant(clip=False),
            ),
            Mistake(
                name="sign",
                hint="your loss goes up where the objective does. We minimise: loss = −objective.",
                wrong=lambda **arguments: -policy_loss(**arguments),
            ),
            Mistake(
                name="divided by G·T",
                hint="you divide by all places of the tensor, padding too. The denominator is the "
                "number of unmasked ones.",
                wrong=variant(reduce=lambda terms, mask: terms.mean()),
            ),
            Mistake(
                name="mean of row means",
                hint="you average each completion first, then over completions, so that tokens of short "
                "ones weigh more. Here every token of the batch has the same weight: one sum, one "
                "denominator.",
                wrong=variant(reduce=mean_of_row_means),
            ),
            Mistake(
                name="not divided",
                hint="your loss is a sum: it grows with the batch. Divide by the number of unmasked tokens.",
                wrong=variant(reduce=lambda terms, mask: terms.sum()),
            ),
            Mistake(
                name="mask forgotten",
                hint="you count what stands under the mask.",
                wrong=mask_forgotten,
            ),
        ),
    ),
)
