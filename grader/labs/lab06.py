"""Lab 06, λ-GRPO: the cases, the references and the mistakes of its exercises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import draw_completions, draw_logps, draw_rewards, pad
from grader.exercise import Case, Exercise, Mistake, Part, difference
from minigrpo.envs import PathTreeEnv

RESAMPLES = 10_000
MANY = 16  # scores: with fewer, intervals of two bootstrap seeds may be equal by chance
NEAR = 0.2  # standard errors of the mean by which an end may be away (grader/thresholds/lab06.json)

# lab06.1: the loss


def lambda_grpo_loss(logps, old_logps, ref_logps, advantages, sizes, completion_mask, beta):
    weights = 1 / sizes.clamp(min=1).to(logps.dtype)
    a = advantages.unsqueeze(1).expand_as(logps).contiguous()
    return minigrpo.policy_loss(
        logps, old_logps, a, weights, completion_mask, beta=beta, ref_logps=ref_logps
    )


def loss_variant(
    *,
    weight=None,
    kl_weight=None,
    reduce=None,
    sign=-1,
    constant=Tensor.detach,
    old=Tensor.detach,
    kl_of=lambda x: x,
):
    """The loss with one part of it exchanged; weight and kl_weight take sizes (at least 1), reduce terms and mask.

    constant and old make constants of ref_logps and old_logps; kl_of takes ln π_ref/π_θ and gives what D is made of.
    """

    def loss(logps, old_logps, ref_logps, advantages, sizes, completion_mask, beta):
        there = sizes.clamp(min=1).to(logps.dtype)
        w = weight(there) if weight else 1 / there
        log_ratio = kl_of(constant(ref_logps) - logps)
        kl = beta * (log_ratio.exp() - log_ratio - 1) * (kl_weight(there) if kl_weight else w)
        terms = (
            (logps - old(old_logps)).exp() * advantages.unsqueeze(1) * w - kl
        ) * completion_mask
        return sign * (
            reduce(terms, completion_mask, there) if reduce else terms.sum() / completion_mask.sum()
        )

    return loss


def zero_by_zero(logps, old_logps, ref_logps, advantages, sizes, completion_mask, beta):
    """Divides by the 0 under the mask, and masks afterwards."""
    log_ratio = ref_logps.detach() - logps
    kl = beta * (log_ratio.exp() - log_ratio - 1)
    terms = ((logps - old_logps.detach()).exp() * advantages.unsqueeze(1) - kl) / sizes
    return -(terms * completion_mask).sum() / completion_mask.sum()


def draw_loss(rng: np.random.Generator, *, beta: float, empty: bool = False) -> Case:
    completions = draw_completions(rng, size=5, longest=5)
    # the first token of the first completion is shared
    ids, mask = pad([*completions, completions[0][:1]])
    if empty:
        ids, mask = (torch.nn.functional.pad(value, (0, 2, 0, 1)) for value in (ids, mask))
    logps = draw_logps(rng, *mask.shape)
    return {
        "logps": logps,
        "old_logps": logps + torch.from_numpy(rng.normal(size=mask.shape)).mul(0.3),
        "ref_logps": logps + torch.from_numpy(rng.normal(size=mask.shape)).mul(0.3),
        "advantages": minigrpo.group_advantages(draw_rewards(rng, len(mask))),
        "sizes": minigrpo.step_sizes(ids, mask),
        "completion_mask": mask,
        "beta": beta,
        "wrt": ["logps", "old_logps", "ref_logps"],
    }


def worked_loss() -> Case:
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    return {
        "logps": zeros,
        "old_logps": zeros.clone(),
        "ref_logps": zeros.clone(),
        "advantages": torch.tensor([1.0, -2.0], dtype=torch.float64),
        "sizes": torch.tensor([[2, 1], [2, 1]]),
        "completion_mask": torch.ones(2, 2, dtype=torch.bool),
        "beta": 0.0,
        "wrt": ["logps"],
    }


# lab06.2: the trap


def trap(depth: int, n: int, r_neg: float, target: list[int]) -> PathTreeEnv:
    return PathTreeEnv(depth, n, r_neg, target)


class RewardsOnTheWay(PathTreeEnv):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.outcome(self.path), *rest


class Swapped(PathTreeEnv):
    def outcome(self, path):
        reward = super().outcome(path)
        return {self.r_neg: self.r_other, self.r_other: self.r_neg}.get(reward, reward)


class OneMore(PathTreeEnv):
    def outcome(self, path):
        if tuple(path) == self.target:
            return self.r_target
        return (
            self.r_neg if tuple(path[: self.n + 1]) == self.target[: self.n + 1] else self.r_other
        )


class OneAction(PathTreeEnv):
    """Compares action n − 1 alone."""

    def outcome(self, path):
        if tuple(path) == self.target:
            return self.r_target
        return self.r_neg if path[self.n - 1] == self.target[self.n - 1] else self.r_other


class NodesInALevel(PathTreeEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation - (2 ** len(self.path) - 1), *rest


class NeverCleared(PathTreeEnv):
    def reset(self, *, seed=None, options=None):
        kept = getattr(self, "path", [])  # there is none before the first episode
        result = super().reset(seed=seed)
        self.path = kept
        return result


class Truncated(PathTreeEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, truncated, terminated, info


class OneNodeTooMany(PathTreeEnv):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.observation_space = gym.spaces.Discrete(2 ** (self.depth + 1))


class LeavesOnly(PathTreeEnv):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.observation_space = gym.spaces.Discrete(2**self.depth)


def judge_walks(arguments: Case, expected: dict, answer: Any) -> str | None:
    """Judge the two spaces, then what the environment said on each walk."""
    if not isinstance(answer, dict) or set(answer) != set(expected):
        return f"the answer must be a gymnasium.Env, got {answer!r}"[:200]
    for key, space in (("actions", "action_space"), ("nodes", "observation_space")):
        if difference(expected[key], answer[key], 0.0) is not None:
            return f"{space} must be Discrete({expected[key]}), got Discrete({answer[key]})"[:200]
    return difference(expected["traces"], answer["traces"], 1e-5, "walks")


def draw_trap(rng: np.random.Generator, *, interrupted: bool = False) -> Case:
    depth = int(rng.integers(3, 6))
    n = int(rng.integers(1, depth - 1))
    target = rng.integers(2, size=depth).tolist()

    def parted(place: int) -> list[int]:
        """A path that leaves the target's at this action."""
        return [
            *target[:place],
            1 - target[place],
            *rng.integers(2, size=depth - place - 1).tolist(),
        ]

    first = [1 - target[0], *target[1:]]  # equals the target but for its first action
    walks = [target, parted(0), parted(n - 1), parted(n), parted(n + 1), parted(depth - 1), first]
    walks = [walks[k] for k in rng.permutation(len(walks))]
    if interrupted:
        walks = [
            [*walks[0]][:2],
            *[walk[: int(rng.integers(1, depth))] for walk in walks[1:3]],
            *walks,
        ]
    return {
        "depth": depth,
        "n": n,
        "r_neg": round(float(rng.uniform(-2, -0.1)), 2),
        "target": target,
        "walks": walks,
    }


def draw_edges(rng: np.random.Generator) -> Case:
    """n = 0: every path but the target is a near miss; sometimes with a single action."""
    depth = int(rng.integers(1, 4))
    target = rng.integers(2, size=depth).tolist()
    near = [[*target[:k], 1 - target[k], *target[k + 1 :]] for k in range(depth)]
    return {"depth": depth, "n": 0, "r_neg": -1.5, "target": target, "walks": [*near, target]}


WORKED_TRAP = {
    "depth": 2,
    "n": 1,
    "r_neg": -0.5,
    "target": [1, 0],
    "walks": [[1, 1], [0, 0], [1, 0]],
}


# lab06.3: an interval


def paired_interval(a: Tensor, b: Tensor, resamples: int, seed: int) -> tuple[float, float]:
    return _ends(_means((a - b).numpy(), resamples, seed))


def _means(values: np.ndarray, resamples: int, seed: int | None) -> np.ndarray:
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return values[draws].mean(axis=1)


def _ends(values: np.ndarray, tail: float = 0.025) -> tuple[float, float]:
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def unpaired_interval(a, b, resamples, seed):
    return _ends(_means(a.numpy(), resamples, seed) - _means(b.numpy(), resamples, seed + 1))


def interval_of_the_data(a, b, resamples, seed):
    return _ends((a - b).numpy())


def one_deviation(a, b, resamples, seed):
    mean, deviation = float((a - b).mean()), float((a - b).std())
    return mean - deviation, mean + deviation


def normal_interval(a, b, resamples, seed):
    """No bootstrap at all: close for many symmetric scores, not for few skewed ones."""
    error = standard_error({"a": a, "b": b})
    return float((a - b).mean()) - 1.96 * error, float((a - b).mean()) + 1.96 * error


def other_way_round(a, b, resamples, seed):
    return paired_interval(b, a, resamples, seed)


def ninety_percent(a, b, resamples, seed):
    return _ends(_means((a - b).numpy(), resamples, seed), tail=0.05)


def without_seed(a, b, resamples, seed):
    return _ends(_means((a - b).numpy(), resamples, None))


def one_seed_for_all(a, b, resamples, seed):
    return paired_interval(a, b, resamples, 0)


def other_axis(a, b, resamples, seed):
    d = (a - b).numpy()
    return _ends(
        d[np.random.default_rng(seed).integers(len(d), size=(resamples, len(d)))].mean(axis=0)
    )


def without_replacement(a, b, resamples, seed):
    rng, d = np.random.default_rng(seed), (a - b).numpy()
    return _ends(np.array([rng.permutation(d).mean() for _ in range(resamples // 10)]))


def judge_interval(arguments: Case, expected: list, answer: Any) -> str | None:
    """Near in standard errors of the mean, the same again for the same seed, and another for another where that shows.

    The calls are of one seed, of another, and of the first again; a single one is judged by its ends alone.
    """
    if not isinstance(answer, list) or len(answer) != len(expected):
        return "the answer must be two numbers, low and high"
    pairs = [_two_numbers(pair) for pair in answer]
    intervals = [pair for pair in pairs if pair is not None]
    if len(intervals) < len(pairs):
        return "the answer must be two numbers, low and high"
    calls = arguments["calls"]
    for call, want, got in zip(calls, expected, intervals, strict=True):
        near = NEAR * standard_error(call)
        for name, wanted, end in zip(("low", "high"), want, got, strict=True):
            if not abs(wanted - end) <= near:
                return f"{name}: expected {wanted:.4g} ± {near:.2g}, got {end:.4g}"
        if (kind := _kind(call, got)) != _kind(call, want):
            return f"low and high are {kind}"
    if len(calls) < 3:
        return None
    want, got = ([pairs[0] == pairs[2], pairs[0] == pairs[1]] for pairs in (expected, intervals))
    if want[0] != got[0]:
        return "two calls with the same seed gave different intervals"
    if want[1] != got[1] and len(calls[0]["a"]) >= MANY:
        return "two calls with different seeds gave the same interval"
    return None


def _two_numbers(pair: Any) -> tuple[float, float] | None:
    """Low and high as floats, from a list or an array of two numbers, or None for anything else."""
    ends = pair.tolist() if isinstance(pair, (Tensor, np.ndarray)) else pair
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return None
    ends = [
        end.item() if isinstance(end, (Tensor, np.generic)) and end.shape == () else end
        for end in ends
    ]
    return (
        (float(ends[0]), float(ends[1])) if all(type(end) in (int, float) for end in ends) else None
    )


def _kind(call: Case, ends: Sequence[float]) -> str:
    """What can be seen of how an interval was made, whatever the random numbers were."""
    mean, (low, high) = float((call["a"] - call["b"]).mean()), ends
    if abs(high - low) <= 1e-9 * standard_error(call):
        return "one number"
    return (
        "equally far from the mean"
        if abs(low + high - 2 * mean) <= 1e-6 * abs(high - low)
        else "quantiles"
    )


def standard_error(arguments: Case) -> float:
    differences = arguments["a"] - arguments["b"]
    return float(differences.std()) / len(differences) ** 0.5


def draw_scores(rng: np.random.Generator, *, few: bool) -> Case:
    """Scores whose seeds differ far more than the two objectives of one seed; with few seeds, skewed differences."""
    size = int(rng.integers(8, 12) if few else rng.integers(16, 31))
    level = rng.normal(0.0, 3.0, size=size)
    difference = rng.exponential(1.0, size=size) - 0.7 if few else rng.normal(0.3, 1.0, size=size)
    a, b = torch.from_numpy(level + difference), torch.from_numpy(level)
    return {"a": a, "b": b, "resamples": RESAMPLES, "seed": int(rng.integers(1000))}


def with_seeds(scores: Case) -> Case:
    """Three calls: with the seed, with another, and with the first again."""
    return {"calls": [scores | {"seed": scores["seed"] + more} for more in (0, 1, 0)]}


WORKED_SCORES = {
    "a": torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64),
    "b": torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64),
    "resamples": RESAMPLES,
    "seed": 0,
}


# lab06.4: each at its own rate


def fair_comparison(rates, baseline, candidate, tuning):
    return comparison(rates, baseline, candidate, tuning)


def comparison(
    rates,
    baseline,
    candidate,
    tuning,
    *,
    chosen=slice,
    kept=lambda t: slice(t, None),
    best=None,
    own=True,
    sign=1,
):
    """Compare as the lab says; each keyword exchanges one rule of it."""
    # the first of equals
    best = best or (lambda scores: max(range(len(rates)), key=lambda k: scores[k].mean().item()))
    own_best = [best(scores[:, chosen(tuning)]) for scores in (baseline, candidate)]
    first, second = own_best if own else (own_best[1], own_best[1])
    differences = sign * (candidate[second] - baseline[first])[kept(tuning)]
    return {
        "baseline_rate": rates[first],
        "candidate_rate": rates[second],
        "differences": differences,
    }


def rates_with(**exchanged):
    return lambda rates, baseline, candidate, tuning: comparison(
        rates, baseline, candidate, tuning, **exchanged
    )


def last_of_equals(scores: Tensor) -> int:
    means = scores.mean(dim=1).tolist()
    return max(k for k, mean in enumerate(means) if mean == max(means))


def luckiest(scores: Tensor) -> int:
    return int(scores.amax(dim=1).argmax())


def draw_sweep(rng: np.random.Generator, *, tie: bool) -> Case:
    """Random scores; the seeds that choose and those that are compared favour different rates.

    tie: two rates of each objective have the same, highest scores on the seeds that choose.
    """
    R, S, tuning = 5, int(rng.integers(10, 14)), int(rng.integers(3, 6))
    rates = np.cumprod(rng.uniform(1.5, 4.0, size=R)).round(3).tolist()
    sweeps = []
    *bests, other = rng.permutation(R - 2).tolist()
    for best in bests:
        # what wrong rules choose; nobody's best
        lucky, later = rng.permutation([other, R - 2]).tolist()
        scores = rng.uniform(0.2, 0.6, size=(R, S))
        scores[best, :tuning] += 0.2
        scores[later, tuning:] += 0.5
        scores[lucky, 0] = scores[:, :tuning].max() + 0.01
        scores[lucky, 1:tuning] = 0.0
        if tie:
            scores[best + 1 :][-1, :tuning] = scores[best, :tuning]
        sweeps.append(torch.from_numpy(scores))
    return {"rates": rates, "baseline": sweeps[0], "candidate": sweeps[1], "tuning": tuning}


WORKED_SWEEP = {
    "rates": [1.0, 2.0],
    "baseline": torch.tensor([[0.5, 0.2, 0.4], [0.1, 0.9, 0.9]], dtype=torch.float64),
    "candidate": torch.tensor([[0.3, 0.0, 0.0], [0.6, 0.7, 0.5]], dtype=torch.float64),
    "tuning": 1,
}


# lab06.5: a conclusion


def conclusion(low: float, high: float) -> str:
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def by_the_middle(low, high):
    return "higher" if low + high > 0 else "lower"


def zero_left_out(low, high):
    return "higher" if low >= 0 else "lower" if high <= 0 else "not told apart"


def never_lower(low, high):
    return "higher" if low > 0 else "not told apart"


def the_other_way(low, high):
    return "lower" if low > 0 else "higher" if high < 0 else "not told apart"


def draw_intervals(rng: np.random.Generator) -> Case:
    x, y = (sorted(rng.uniform(0.01, 1.0, size=2).round(3).tolist()) for _ in range(2))
    ends = [
        (x[0], x[1] + 0.1),
        (-y[1] - 0.1, -y[0]),
        (-x[0], y[1]),
        (-y[1], x[0]),
        (0.0, x[1]),
        (-y[0], 0.0),
    ]
    return {"calls": [{"low": ends[k][0], "high": ends[k][1]} for k in rng.permutation(len(ends))]}


EXERCISES = (
    Exercise(
        id="lab06.1",
        function="lambda_grpo_loss",
        reference=lambda_grpo_loss,
        driver="loss_and_grads",
        parts=(
            Part(
                name="no KL term",
                points=1,
                draw=lambda rng: draw_loss(rng, beta=0.0),
                hint="divide each token's P·a by its |λ|, sum over the real tokens, divide by their "
                "number, and negate.",
                examples=(worked_loss(),),
            ),
            Part(
                name="with the KL term",
                points=2,
                draw=lambda rng: draw_loss(rng, beta=float(rng.choice([0.5, 1.0]))),
                hint="D belongs to the token's term: it is divided by |λ|, too.",
            ),
            Part(
                name="padding and an empty completion",
                points=1,
                draw=lambda rng: draw_loss(rng, beta=0.5, empty=True),
                hint="what is masked has no part in the sum, in the count or in the gradient; |λ| is 0 there.",
            ),
        ),
        mistakes=(
            Mistake(
                name="0/0",
                hint="under the mask |λ| is 0. Divide by something else there, or select the real "
                "tokens first: masking afterwards leaves NaN.",
                wrong=zero_by_zero,
            ),
            Mistake(
                name="KL not divided",
                hint="you divide P·a by |λ|, but not D: the whole term of the token is divided.",
                wrong=loss_variant(kl_weight=torch.ones_like),
            ),
            Mistake(
                name="another normaliser",
                hint="you divide by the sum of 1/|λ|; the denominator in front stays the number of tokens.",
                wrong=loss_variant(
                    reduce=lambda terms, mask, sizes: terms.sum() / (mask / sizes).sum()
                ),
            ),
            Mistake(
                name="divided by G",
                hint="you divided by G, not by |λ|.",
                wrong=loss_variant(weight=lambda sizes: torch.full_like(sizes, 1 / len(sizes))),
            ),
            Mistake(
                name="multiplied",
                hint="you multiply by |λ|; λ-GRPO divides by it.",
                wrong=loss_variant(weight=torch.clone),
            ),
            Mistake(
                name="GRPO",
                hint="there is no |λ| in your loss: this is GRPO's.",
                wrong=loss_variant(weight=torch.ones_like),
            ),
            Mistake(
                name="objective",
                hint="this is the objective; the loss is its negative.",
                wrong=loss_variant(sign=1),
            ),
            Mistake(
                name="per-completion mean",
                hint="you take a mean per completion first; one count of all tokens is the denominator.",
                wrong=loss_variant(
                    reduce=lambda terms, mask, sizes: (
                        terms.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
                    ).mean()
                ),
            ),
            Mistake(
                name="padding counted",
                hint="you divide by all places of the tensor; only real tokens count.",
                wrong=loss_variant(reduce=lambda terms, mask, sizes: terms.mean()),
            ),
            Mistake(
                name="D rewarded",
                hint="you add D to the objective; it is taken away, so that distance from the reference costs.",
                wrong=loss_variant(kl_weight=lambda sizes: -1 / sizes),
            ),
            Mistake(
                name="the ratio of D upside down",
                hint="your D is made of π_θ/π_ref; it has π_ref/π_θ.",
                wrong=loss_variant(kl_of=lambda log_ratio: -log_ratio),
            ),
            Mistake(
                name="the old policy learns",
                hint="gradient flows into old_logps, where what comes from it cancels what comes from "
                "logps: detach it.",
                wrong=loss_variant(old=lambda value: value),
            ),
            Mistake(
                name="the reference learns",
                hint="a gradient flows into ref_logps: it is a constant (detach).",
                wrong=loss_variant(constant=lambda value: value),
            ),
        ),
    ),
    Exercise(
        id="lab06.2",
        function="TrapEnv",
        reference=trap,
        driver="walk_env",
        judge=judge_walks,
        parts=(
            Part(
                name="whole walks",
                points=2,
                draw=draw_trap,
                hint="walk the tree on paper: node, reward, terminated after each action, and the "
                "rewards of the table.",
                examples=(WORKED_TRAP,),
            ),
            Part(
                name="walks that are broken off",
                points=1,
                draw=lambda rng: draw_trap(rng, interrupted=True),
                hint="reset begins anew, also in the middle of an episode.",
            ),
            Part(
                name="n = 0",
                points=1,
                draw=draw_edges,
                hint="with n = 0 every path shares the target's first n actions; a tree may have depth 1.",
            ),
        ),
        mistakes=(
            Mistake(
                name="rewards on the way",
                hint="you give a reward before the leaf. It is 0 until the episode ends.",
                wrong=RewardsOnTheWay,
            ),
            Mistake(
                name="swapped",
                hint="you have r_neg and 0.7 the wrong way round: near misses get r_neg.",
                wrong=Swapped,
            ),
            Mistake(
                name="one more",
                hint="you compare n + 1 actions with the target's; r_neg is for paths that share the first n.",
                wrong=OneMore,
            ),
            Mistake(
                name="one action",
                hint="you compare one action; all of the first n have to be equal.",
                wrong=OneAction,
            ),
            Mistake(
                name="numbered in a level",
                hint="your numbers begin anew in each level. The children of node k are 2k + 1 and 2k + 2.",
                wrong=NodesInALevel,
            ),
            Mistake(
                name="never cleared",
                hint="reset has to forget the path of the last episode.",
                wrong=NeverCleared,
            ),
            Mistake(
                name="truncated",
                hint="the leaf terminates the episode: the third value, not the fourth (truncated).",
                wrong=Truncated,
            ),
            Mistake(
                name="leaves only",
                hint="the observation space has to hold every node of the tree, and nothing else: "
                "1 + 2 + 4 + … down to the leaves.",
                wrong=LeavesOnly,
            ),
            Mistake(
                name="one node too many",
                hint="your observation space holds one number more than the tree has nodes: these are "
                "2^(depth + 1) − 1.",
                wrong=OneNodeTooMany,
            ),
        ),
    ),
    Exercise(
        id="lab06.3",
        function="paired_interval",
        reference=paired_interval,
        driver="each",
        judge=judge_interval,
        seconds=20.0,  # a loop over the resamples is slow, and right
        seeded=True,
        parts=(
            Part(
                name="scores that go together",
                points=2,
                draw=lambda rng: with_seeds(draw_scores(rng, few=False)),
                hint="take a − b first, then resample the differences, and take quantiles of the resampled means.",
                examples=(with_seeds(WORKED_SCORES),),
            ),
            Part(
                name="few seeds, skewed",
                points=1,
                draw=lambda rng: with_seeds(draw_scores(rng, few=True)),
                hint="with few and skewed differences the interval is not symmetric: use quantiles of the means.",
            ),
        ),
        mistakes=(
            Mistake(
                name="not paired",
                hint="you resample a and b each by itself. Entry s of both comes from one seed: "
                "resample the differences.",
                wrong=unpaired_interval,
            ),
            Mistake(
                name="quantiles of the data",
                hint="these are quantiles of the differences: how seeds scatter, not how sure their mean is.",
                wrong=interval_of_the_data,
            ),
            Mistake(
                name="one deviation",
                hint="the mean ± one standard deviation shows how seeds scatter. Asked is how sure the mean is.",
                wrong=one_deviation,
            ),
            Mistake(
                name="no bootstrap",
                hint="this is the mean ± 1.96 standard errors, which takes the mean to be normal. Resample instead.",
                wrong=normal_interval,
            ),
            Mistake(
                name="b − a",
                hint="it is a − b; yours has the other sign.",
                wrong=other_way_round,
            ),
            Mistake(
                name="90%",
                hint="you cut 5% at each end; a 95% interval leaves 2.5% at each.",
                wrong=ninety_percent,
            ),
            Mistake(
                name="no seed",
                hint="the same seed has to give the same interval: make a generator from it.",
                wrong=without_seed,
            ),
            Mistake(
                name="one seed for all",
                hint="your interval is the same for every seed: make the generator from the argument `seed`.",
                wrong=one_seed_for_all,
            ),
            Mistake(
                name="the other axis",
                hint="you average over the resamples, for each place; take the mean of each resample's S differences.",
                wrong=other_axis,
            ),
            Mistake(
                name="without replacement",
                hint="you draw without replacement, which is the same S differences each time. Draw with it.",
                wrong=without_replacement,
            ),
        ),
    ),
    Exercise(
        id="lab06.4",
        function="fair_comparison",
        reference=fair_comparison,
        parts=(
            Part(
                name="sweeps",
                points=2,
                draw=lambda rng: draw_sweep(rng, tie=False),
                hint="the first seeds choose a rate for each objective, the other seeds give the differences.",
                examples=(WORKED_SWEEP,),
            ),
            Part(
                name="equally good rates",
                points=1,
                draw=lambda rng: draw_sweep(rng, tie=True),
                hint="of equally good rates the smallest is taken.",
            ),
        ),
        mistakes=(
            Mistake(
                name="one rate for both",
                hint="you use the candidate's best rate for both. The baseline has a right to its own.",
                wrong=rates_with(own=False),
            ),
            Mistake(
                name="chosen by all seeds",
                hint="the seeds that you compare on have chosen the rate, too: only the first `tuning` may.",
                wrong=rates_with(chosen=lambda tuning: slice(None)),
            ),
            Mistake(
                name="compared on all seeds",
                hint="your differences include the seeds that chose: leave the first `tuning` out.",
                wrong=rates_with(kept=lambda tuning: slice(None)),
            ),
            Mistake(
                name="compared where chosen",
                hint="you compare on the seeds that chose; take the others.",
                wrong=rates_with(kept=slice),
            ),
            Mistake(
                name="the luckiest seed",
                hint="you choose by the best single seed; choose by the mean over the first `tuning`.",
                wrong=rates_with(best=luckiest),
            ),
            Mistake(
                name="baseline − candidate",
                hint="it is candidate − baseline.",
                wrong=rates_with(sign=-1),
            ),
            Mistake(
                name="the largest of equals",
                hint="of equally good rates you take the largest; the smallest is asked.",
                wrong=rates_with(best=last_of_equals),
            ),
        ),
    ),
    Exercise(
        id="lab06.5",
        function="conclusion",
        reference=conclusion,
        driver="each",
        parts=(
            Part(
                name="six intervals",
                points=1,
                draw=draw_intervals,
                hint="is the whole interval above 0, is it below, or does it hold 0, its ends included?",
                examples=({"calls": [{"low": 0.1, "high": 0.3}, {"low": -0.3, "high": 0.1}]},),
            ),
        ),
        mistakes=(
            Mistake(
                name="by the middle",
                hint="you look at the middle; an interval that holds 0 decides nothing.",
                wrong=by_the_middle,
            ),
            Mistake(
                name="zero left out",
                hint="an interval that ends at 0 holds it: not told apart.",
                wrong=zero_left_out,
            ),
            Mistake(
                name="never lower",
                hint="an interval below 0 is a finding, too: lower.",
                wrong=never_lower,
            ),
            Mistake(
                name="the wrong way",
                hint="above 0 is higher, below is lower.",
                wrong=the_other_way,
            ),
        ),
    ),
)
