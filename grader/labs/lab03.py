"""Lab 03, Monte-Carlo process rewards: the cases, the references and the mistakes of its exercises."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import draw_completions, draw_rewards, pad, worked_group
from grader.drivers import DRIVERS
from grader.exercise import Case, Exercise, Mistake, Part, difference

# lab03.1: step rewards


def over_sets(sets: Tensor, rewards: Tensor) -> Tensor:
    """Mean of r over sets bool (G, G, T), [i, j, t] True where j is in the set of token t of i; 0 over no members."""
    members = sets.to(rewards.dtype)
    return torch.einsum("ijt,j->it", members, rewards) / members.sum(dim=1).clamp(min=1)


def with_padding(rewards, completion_ids, completion_mask):
    whole = torch.ones_like(completion_mask)
    return minigrpo.process_rewards(rewards, completion_ids, whole) * completion_mask


def of_equal_tokens(rewards, completion_ids, completion_mask):
    both = completion_mask.unsqueeze(0) & completion_mask.unsqueeze(1)
    return over_sets(both & (completion_ids.unsqueeze(0) == completion_ids.unsqueeze(1)), rewards)


def zero_by_zero(rewards, completion_ids, completion_mask):
    sets = minigrpo.same_prefix(completion_ids, completion_mask)
    return over_sets(sets, rewards) * (sets.sum(dim=1) / sets.sum(dim=1))


def summed(rewards, completion_ids, completion_mask):
    sizes = minigrpo.step_sizes(completion_ids, completion_mask)
    return minigrpo.process_rewards(rewards, completion_ids, completion_mask) * sizes


def divided_by_the_group(rewards, completion_ids, completion_mask):
    return summed(rewards, completion_ids, completion_mask) / len(rewards)


def of_the_others(rewards, completion_ids, completion_mask):
    sets = minigrpo.same_prefix(completion_ids, completion_mask)
    return over_sets(sets & ~torch.eye(len(rewards), dtype=torch.bool).unsqueeze(-1), rewards)


def outcome_rewards(rewards, completion_ids, completion_mask):
    return rewards.unsqueeze(-1) * completion_mask


def conserved(arguments: Case, expected: Any, answer: Any) -> str | None:
    """As `close`; and where a token's column does not sum to the rewards of those who are there, say so."""
    wrong = difference(expected, answer, 1e-5)
    tensors = isinstance(expected, Tensor) and isinstance(answer, Tensor)
    if not wrong or not tensors or answer.shape != expected.shape:
        return wrong
    mask = arguments["completion_mask"]
    ours = (answer * mask).sum(dim=0)
    theirs = (arguments["rewards"].unsqueeze(-1) * mask).sum(dim=0)
    lost = ((ours - theirs).abs() > 1e-5 * arguments["rewards"].abs().sum()).nonzero()
    if not len(lost):
        return wrong
    t = int(lost[0])
    return f"{wrong}. At token {t} your step rewards sum to {ours[t]:.4g}, the rewards there to {theirs[t]:.4g}"


def scored(completions: list[list[int]], rng: np.random.Generator) -> Case:
    ids, mask = pad(completions)
    return {
        "rewards": draw_rewards(rng, len(completions)),
        "completion_ids": ids,
        "completion_mask": mask,
    }


def padded_like_a_token(rng: np.random.Generator) -> Case:
    """The shorter rows go on, under their mask, just as the longest one does."""
    longest = rng.integers(3, size=6).tolist()
    case = scored([longest, longest[:3], longest[:5], [3, *longest[1:4]]], rng)
    hidden = case["completion_ids"][0].expand_as(case["completion_ids"])
    case["completion_ids"] = torch.where(case["completion_mask"], case["completion_ids"], hidden)
    return case


def large(rng: np.random.Generator) -> Case:
    """Fourteen completions, the last one the same as the first."""
    completions = draw_completions(rng, size=13, longest=9)
    return scored([*completions, completions[0]], rng)


def worked() -> Case:
    ids, mask, rewards = worked_group()
    return {"rewards": rewards, "completion_ids": ids, "completion_mask": mask}


# lab03.2: step advantages


def step_advantages(
    step_rewards: Tensor, rewards: Tensor, completion_mask: Tensor, eps: float
) -> Tensor:
    shift = rewards[:1]  # as the package does, so that equal rewards give 0
    mean, unit = (rewards - shift).mean() + shift, (rewards - shift).std() + eps
    return torch.where(completion_mask, (step_rewards - mean) / unit, 0)


def not_zeroed(step_rewards, rewards, completion_mask, eps):
    return step_advantages(step_rewards, rewards, torch.ones_like(completion_mask), eps)


def around_the_mean_of_steps(step_rewards, rewards, completion_mask, eps):
    mean = step_rewards[completion_mask].mean()
    return (step_rewards - mean) / (rewards.std() + eps) * completion_mask


def in_units_of_the_steps(step_rewards, rewards, completion_mask, eps):
    return (
        (step_rewards - rewards.mean())
        / (step_rewards[completion_mask].std() + eps)
        * completion_mask
    )


def by_columns(step_rewards, rewards, completion_mask, eps):
    counts = completion_mask.sum(dim=0).clamp(min=1)
    mean = (step_rewards * completion_mask).sum(dim=0) / counts
    return (step_rewards - mean) / (rewards.std() + eps) * completion_mask


def population(step_rewards, rewards, completion_mask, eps):
    return (step_rewards - rewards.mean()) / (rewards.std(correction=0) + eps) * completion_mask


def not_divided(step_rewards, rewards, completion_mask, eps):
    return (step_rewards - rewards.mean()) * completion_mask


def with_its_own_eps(step_rewards, rewards, completion_mask, eps):
    return step_advantages(step_rewards, rewards, completion_mask, 1e-4)


def without_eps(step_rewards, rewards, completion_mask, eps):
    return step_advantages(step_rewards, rewards, completion_mask, 0.0)


def with_step_rewards(case: Case, rng: np.random.Generator, under_mask: float = 0.0) -> Case:
    steps = minigrpo.process_rewards(**case).masked_fill(~case["completion_mask"], under_mask)
    kept = {name: case[name] for name in ("rewards", "completion_mask")}
    return {"step_rewards": steps, **kept, "eps": float(rng.choice([1e-3, 1e-2, 0.1]))}


# lab03.3: a value from fresh continuations


def fresh_value(sample_outcome, prefix, samples, seed):
    generator = torch.Generator().manual_seed(seed)
    outcomes = [sample_outcome(prefix, generator) for _ in range(samples)]
    return statistics.mean(outcomes), statistics.stdev(outcomes) / math.sqrt(samples)


def one_seed_for_all(sample_outcome, prefix, samples, seed):
    outcomes = [sample_outcome(prefix, torch.Generator().manual_seed(seed)) for _ in range(samples)]
    return statistics.mean(outcomes), statistics.stdev(outcomes) / math.sqrt(samples)


def a_seed_for_each(sample_outcome, prefix, samples, seed):
    outcomes = [
        sample_outcome(prefix, torch.Generator().manual_seed(seed + k)) for k in range(samples)
    ]
    return statistics.mean(outcomes), statistics.stdev(outcomes) / math.sqrt(samples)


def from_the_root(sample_outcome, prefix, samples, seed):
    return fresh_value(sample_outcome, [], samples, seed)


def without_its_last_token(sample_outcome, prefix, samples, seed):
    return fresh_value(sample_outcome, prefix[:-1], samples, seed)


def with_std_of_one_outcome(sample_outcome, prefix, samples, seed):
    mean, error = fresh_value(sample_outcome, prefix, samples, seed)
    return mean, error * math.sqrt(samples)


def with_population_std(sample_outcome, prefix, samples, seed):
    mean, error = fresh_value(sample_outcome, prefix, samples, seed)
    return mean, error * math.sqrt((samples - 1) / samples)


def with_variance_of_the_mean(sample_outcome, prefix, samples, seed):
    mean, error = fresh_value(sample_outcome, prefix, samples, seed)
    return mean, error**2


def one_outcome_too_many(sample_outcome, prefix, samples, seed):
    return fresh_value(sample_outcome, prefix, samples + 1, seed)


def draw_tree(rng: np.random.Generator, tokens: int) -> Case:
    """A tree of depth 5 with rewards at its 32 leaves, and a prefix of so many tokens whose outcomes differ."""
    while True:
        case = {
            "right": torch.from_numpy(rng.uniform(0.2, 0.8, size=31)),
            "leaf_rewards": torch.from_numpy(np.round(rng.normal(size=32), 2)),
            "prefix": rng.integers(2, size=tokens).tolist(),
            "samples": int(rng.integers(6, 12)),
            "seed": int(rng.integers(1000)),
        }
        mean, error = DRIVERS["from_prefix"]({"fresh_value": fresh_value}, "fresh_value", case)
        if abs(mean) > 0.01 and error > 0.01:  # 0 would be right for many wrong reasons
            return case


# lab03.4: bias and variance


def bias_and_variance(estimates: Tensor, truth: float) -> dict[str, Tensor]:
    centre = estimates.mean(dim=0)
    return {
        "bias": centre - truth,
        "variance": (estimates - centre).square().sum(dim=0) / (len(estimates) - 1),
    }


def with_absolute_errors(estimates, truth):
    return bias_and_variance(estimates, truth) | {"bias": (estimates - truth).abs().mean(dim=0)}


def around_the_truth(estimates, truth):
    squares = (estimates - truth).square().sum(dim=0) / (len(estimates) - 1)
    return bias_and_variance(estimates, truth) | {"variance": squares}


def with_population_variance(estimates, truth):
    return bias_and_variance(estimates, truth) | {"variance": estimates.var(dim=0, correction=0)}


def with_std(estimates, truth):
    found = bias_and_variance(estimates, truth)
    return found | {"variance": found["variance"].sqrt()}


def along_the_settings(estimates, truth):
    return bias_and_variance(estimates.T, truth)


def with_the_other_sign(estimates, truth):
    found = bias_and_variance(estimates, truth)
    return found | {"bias": -found["bias"]}


def without_its_sign(estimates, truth):
    found = bias_and_variance(estimates, truth)
    return found | {"bias": found["bias"].abs()}


def draw_estimates(rng: np.random.Generator) -> Case:
    """Estimates whose bias has both signs among the three settings."""
    runs, settings = int(rng.integers(4, 7)), 3
    truth = float(np.round(rng.normal(), 2))
    noise = rng.normal(size=(runs, settings))
    bias = rng.permutation([-1.0, 1.0, rng.choice([-1.0, 1.0])]) * rng.uniform(
        0.3, 1.0, size=settings
    )
    estimates = truth + bias + noise - noise.mean(axis=0)
    return {"estimates": torch.from_numpy(estimates), "truth": truth}


EXERCISES = (
    Exercise(
        id="lab03.1",
        function="step_rewards",
        reference=minigrpo.process_rewards,
        judge=conserved,
        parts=(
            Part(
                name="random groups",
                points=2,
                draw=lambda rng: scored(draw_completions(rng), rng),
                hint="for each token, average the rewards of the completions that share its prefix.",
                examples=(worked(),),
            ),
            Part(
                name="padding that looks like a token",
                points=1,
                draw=padded_like_a_token,
                hint="what stands under the mask belongs to no set, even where its id is that of a real token.",
            ),
            Part(
                name="conserved sums",
                points=1,
                draw=large,
                hint="averaging inside sets moves reward around and makes none: at every token the step "
                "rewards of the completions that are there sum to their rewards.",
            ),
        ),
        mistakes=(
            Mistake(
                name="0/0 under the mask",
                hint="padding is in no set, so you divide 0 by |λ| = 0 there. Where the mask is False, R is 0.",
                wrong=zero_by_zero,
            ),
            Mistake(
                name="divided by G",
                hint="you divided by G, not by |λ|: R is the mean over the members of the set.",
                wrong=divided_by_the_group,
            ),
            Mistake(
                name="not divided",
                hint="you summed the rewards of the set. R is their mean: divide by |λ|.",
                wrong=summed,
            ),
            Mistake(
                name="equal tokens",
                hint="you compare token t alone: a set shares all its tokens 0…t.",
                wrong=of_equal_tokens,
            ),
            Mistake(
                name="padding counted",
                hint="a completion that has ended is in no set any more: both tokens have to be unmasked.",
                wrong=with_padding,
            ),
            Mistake(
                name="without itself",
                hint="you average over the others. A completion is a member of its own set, at the end the only one.",
                wrong=of_the_others,
            ),
            Mistake(
                name="outcome rewards",
                hint="each token got the reward of its own completion: that is GRPO as everyone writes "
                "it. A step's reward is the mean over all who took that step.",
                wrong=outcome_rewards,
            ),
        ),
    ),
    Exercise(
        id="lab03.2",
        function="step_advantages",
        reference=step_advantages,
        parts=(
            Part(
                name="random groups",
                points=2,
                draw=lambda rng: with_step_rewards(scored(draw_completions(rng), rng), rng),
                hint="centre with the mean of the outcome rewards r, divide by their unbiased std + eps.",
                examples=(with_step_rewards(worked(), np.random.default_rng(0)) | {"eps": 0.1},),
            ),
            Part(
                name="numbers under the mask",
                points=1,
                draw=lambda rng: with_step_rewards(padded_like_a_token(rng), rng, under_mask=3.0),
                hint="padding belongs to no step: its advantage is 0, whatever its step reward says.",
            ),
        ),
        mistakes=(
            Mistake(
                name="padding not zeroed",
                hint="under the mask the advantage has to be 0. A reward of 0 is not an advantage of 0.",
                wrong=not_zeroed,
            ),
            Mistake(
                name="mean over the tokens",
                hint="you subtract the mean of the step rewards over all tokens, in which long "
                "completions count more. Subtract the mean of r, in which each completion counts once.",
                wrong=around_the_mean_of_steps,
            ),
            Mistake(
                name="std of the step rewards",
                hint="you divide by the spread of the step rewards. The unit is the std of the outcome rewards r.",
                wrong=in_units_of_the_steps,
            ),
            Mistake(
                name="mean of each token",
                hint="you centre each token t by itself. All tokens of a group are compared with one number, mean r.",
                wrong=by_columns,
            ),
            Mistake(
                name="population std",
                hint="std is the unbiased one, with G − 1.",
                wrong=population,
            ),
            Mistake(
                name="an eps of its own",
                hint="eps is an argument, but you compute with 1e-4.",
                wrong=with_its_own_eps,
            ),
            Mistake(
                name="no eps",
                hint="eps belongs to the denominator: std r + eps.",
                wrong=without_eps,
            ),
            Mistake(
                name="not divided",
                hint="you centred the step rewards, but did not divide by std r + eps.",
                wrong=not_divided,
            ),
        ),
    ),
    Exercise(
        id="lab03.3",
        function="fresh_value",
        reference=fresh_value,
        driver="from_prefix",
        parts=(
            Part(
                name="a prefix of one token",
                points=2,
                draw=lambda rng: draw_tree(rng, 1),
                hint="one generator with the seed, then `samples` calls with the prefix: their mean, "
                "and their unbiased std over √samples.",
            ),
            Part(
                name="longer prefixes",
                points=2,
                draw=lambda rng: draw_tree(rng, 3),
                hint="hand the whole prefix to every call.",
            ),
        ),
        mistakes=(
            Mistake(
                name="one seed for all",
                hint="every one of your continuations is the same: you seed anew for each. Seed once, "
                "before the first.",
                wrong=one_seed_for_all,
            ),
            Mistake(
                name="a seed for each",
                hint="you make a generator for each continuation. Make one, and let all of them draw from it.",
                wrong=a_seed_for_each,
            ),
            Mistake(
                name="from the root",
                hint="you sample whole completions: the prefix is not used.",
                wrong=from_the_root,
            ),
            Mistake(
                name="last token lost",
                hint="you continue from one token too early: the value of a step is taken after its last token.",
                wrong=without_its_last_token,
            ),
            Mistake(
                name="spread of one outcome",
                hint="you return the std of one outcome. The mean of n of them varies √n times less.",
                wrong=with_std_of_one_outcome,
            ),
            Mistake(
                name="population std",
                hint="the std is the unbiased one, with samples − 1.",
                wrong=with_population_std,
            ),
            Mistake(
                name="variance of the mean",
                hint="you return a variance, in squared units of the reward. The standard error is its square root.",
                wrong=with_variance_of_the_mean,
            ),
            Mistake(
                name="one too many",
                hint="you take samples + 1 outcomes.",
                wrong=one_outcome_too_many,
            ),
        ),
    ),
    Exercise(
        id="lab03.4",
        function="bias_and_variance",
        reference=bias_and_variance,
        parts=(
            Part(
                name="random estimates",
                points=2,
                draw=draw_estimates,
                hint="the runs are rows: how far is their mean from the truth, and how do they scatter "
                "around their mean?",
                examples=(
                    {
                        "estimates": torch.tensor(
                            [[1.0, 1.0], [2.0, 1.5], [6.0, 2.0]], dtype=torch.float64
                        ),
                        "truth": 2.0,
                    },
                ),
            ),
        ),
        mistakes=(
            Mistake(
                name="absolute errors",
                hint="you average the sizes of the errors, so that they can't cancel. A bias is what is "
                "left when they do.",
                wrong=with_absolute_errors,
            ),
            Mistake(
                name="around the truth",
                hint="you measure the spread around the truth: that holds the squared bias too. "
                "Variance is taken around the mean of the estimates.",
                wrong=around_the_truth,
            ),
            Mistake(
                name="population variance",
                hint="the variance is the unbiased one: divide by the number of runs − 1.",
                wrong=with_population_variance,
            ),
            Mistake(
                name="std",
                hint="you return a standard deviation; its square is the variance.",
                wrong=with_std,
            ),
            Mistake(
                name="along the settings",
                hint="you average over the settings. The runs are rows: average over the first dimension.",
                wrong=along_the_settings,
            ),
            Mistake(
                name="size of the bias",
                hint="a bias has a sign: estimates may be too small as well.",
                wrong=without_its_sign,
            ),
            Mistake(
                name="sign",
                hint="bias is the mean estimate minus the truth, not the other way round.",
                wrong=with_the_other_sign,
            ),
        ),
    ),
)
