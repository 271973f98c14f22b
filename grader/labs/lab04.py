"""Lab 04, the theorem: the cases, the references and the mistakes of its exercises."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import clear_loss, draw_completions, draw_rewards, pad
from grader.exercise import Case, Exercise, Mistake, Part

# lab04.1: the loss with process rewards


def prm_loss(logps, old_logps, ref_logps, advantages, sets, completion_mask, beta):
    members = sets.to(advantages.dtype)
    A = torch.einsum("ijt,j->it", members, advantages) / members.sum(dim=1).clamp(min=1)
    ones = torch.ones_like(A)
    return minigrpo.policy_loss(
        logps, old_logps, A, ones, completion_mask, beta=beta, ref_logps=ref_logps
    )


def variant(*, A=None, kl=None, constant=lambda value: value.detach(), reduce=None):
    """The loss with one part of it exchanged; A takes advantages and sets, kl the log of π_ref/π_θ."""

    def loss(logps, old_logps, ref_logps, advantages, sets, completion_mask, beta):
        rewards = (A or _mean)(advantages, sets)
        log_ratio = constant(ref_logps) - logps
        estimate = kl(log_ratio) if kl else log_ratio.exp() - log_ratio - 1
        terms = ((logps - constant(old_logps)).exp() * rewards - beta * estimate) * completion_mask
        return -(reduce(terms, completion_mask) if reduce else terms.sum() / completion_mask.sum())

    return loss


def _sum(advantages: Tensor, sets: Tensor) -> Tensor:
    return torch.einsum("ijt,j->it", sets.to(advantages.dtype), advantages)


def _mean(advantages: Tensor, sets: Tensor) -> Tensor:
    return _sum(advantages, sets) / sets.sum(dim=1).clamp(min=1)


def zero_by_zero(logps, old_logps, ref_logps, advantages, sets, completion_mask, beta):
    """The right value, but 0 · NaN in the gradient under the mask."""
    A = _sum(advantages, sets) / sets.sum(dim=1)
    log_ratio = ref_logps.detach() - logps
    terms = (logps - old_logps.detach()).exp() * A - beta * (log_ratio.exp() - log_ratio - 1)
    return -terms[completion_mask].mean()


def without_ratio(logps, old_logps, ref_logps, advantages, sets, completion_mask, beta):
    log_ratio = ref_logps.detach() - logps
    terms = (
        logps * _mean(advantages, sets) - beta * (log_ratio.exp() - log_ratio - 1)
    ) * completion_mask
    return -terms.sum() / completion_mask.sum()


def by_prefix(rng: np.random.Generator, completions: list[list[int]], T: int) -> Tensor:
    """Log-probs float64 (G, T), equal where prefixes are, as a policy gives them; under the mask anything."""
    table: dict[tuple[int, ...], float] = {}
    logps = torch.from_numpy(-rng.exponential(1.0, size=(len(completions), T)))
    for i, completion in enumerate(completions):
        for t in range(len(completion)):
            logps[i, t] = table.setdefault(tuple(completion[: t + 1]), logps[i, t].item())
    return logps


def draw_group(rng: np.random.Generator) -> list[list[int]]:
    """Completions of which no token is shared by all, and two share their first."""
    while True:
        completions = draw_completions(rng, size=5, longest=5)
        firsts = {y[0] for y in completions}
        if 1 < len(firsts) < len(completions):
            return completions


def draw_loss(
    rng: np.random.Generator, *, off_policy: bool, wrt: tuple[str, ...] = ("logps",)
) -> Case:
    while True:
        completions = draw_group(rng)
        ids, mask = pad(completions)
        logps, older, reference = (by_prefix(rng, completions, ids.shape[1]) for _ in range(3))
        case = {
            "logps": logps,
            "old_logps": (logps + older) / 2 if off_policy else logps,
            "ref_logps": (logps + reference) / 2,
            "advantages": minigrpo.group_advantages(draw_rewards(rng, len(completions))),
            "sets": minigrpo.same_prefix(ids, mask),
            "completion_mask": mask,
            "beta": float(rng.choice([0.5, 1.0])) if off_policy else 0.0,
            "wrt": list(wrt),
        }
        if clear_loss(prm_loss, case):
            return case


# lab04.2: the sets at one token


def step_sets(completions: list[list[int]], t: int) -> list[list[int]]:
    there = [i for i, y in enumerate(completions) if t < len(y)]
    sets = [[j for j in there if completions[j][: t + 1] == completions[i][: t + 1]] for i in there]
    return [members for i, members in zip(there, sets, strict=True) if members[0] == i]


def grouped_by(key, keep=lambda y, t: t < len(y)):
    def sets(completions, t):
        found: dict = {}
        for i, y in enumerate(completions):
            if keep(y, t):
                found.setdefault(key(y, t), []).append(i)
        return list(found.values())

    return sets


def one_set_for_each(completions, t):
    return [members for members in step_sets(completions, t) for _ in members]


def only_shared(completions, t):
    return [members for members in step_sets(completions, t) if len(members) > 1]


def draw_sets(rng: np.random.Generator) -> Case:
    """Groups with an ended completion, a shared set, and two prefixes that differ but end alike."""
    stem = rng.integers(3, size=2).tolist()
    other = [stem[0] + 3, stem[1]]
    last = int(rng.integers(3))
    completions = [
        [*stem, last],
        other + [last, 1],
        stem[:2],
        [*stem, last, 2],
        [*stem, last + 1],
        other + [last],
    ]
    return {"completions": [completions[k] for k in rng.permutation(6)], "t": 2}


def draw_ended(rng: np.random.Generator) -> Case:
    """Two equal completions that have ended before token t, beside three that go on."""
    stem = rng.integers(3, size=3).tolist()
    completions = [stem, stem, [*stem, 0], [*stem, 0, 1], [*stem, 1]]
    return {"completions": [completions[k] for k in rng.permutation(5)], "t": 3}


# lab04.3: the proof, line by line


def proof_lines(ratio, advantages, completion_mask, partitions) -> dict[str, float]:
    lines = dict.fromkeys(("exchanged", "factored", "averaged", "prm"), 0.0)
    for t, sets in enumerate(partitions):
        for members in sets:
            P, a = ratio[members, t], advantages[members]
            lines["exchanged"] += (P * a).sum().item()
            lines["factored"] += (P[0] * a.sum()).item()
            lines["averaged"] += (len(members) * P[0] * a.mean()).item()
            lines["prm"] += (P.sum() * a.mean()).item()
    return {"grpo": (ratio * advantages.unsqueeze(-1))[completion_mask].sum().item()} | lines


def changed(**lines):
    """The five lines with some of them written otherwise; each takes P and a of one set's members."""

    def wrong(ratio, advantages, completion_mask, partitions):
        found = proof_lines(ratio, advantages, completion_mask, partitions)
        pairs = [(ratio[m, t], advantages[m]) for t, sets in enumerate(partitions) for m in sets]
        return found | {
            name: sum(float(line(P, a)) for P, a in pairs) for name, line in lines.items()
        }

    return wrong


def padding_too(ratio, advantages, completion_mask, partitions):
    found = proof_lines(ratio, advantages, completion_mask, partitions)
    return found | {"grpo": (ratio * advantages.unsqueeze(-1)).sum().item()}


def all_the_first(ratio, advantages, completion_mask, partitions):
    found = proof_lines(ratio, advantages, completion_mask, partitions)
    return dict.fromkeys(found, found["grpo"])


def draw_proof(rng: np.random.Generator, *, equal: bool) -> Case:
    completions = draw_group(rng)
    ids, mask = pad(completions)
    ratio = by_prefix(rng, completions, ids.shape[1]).exp() + 0.5
    if not equal:
        ratio = ratio + torch.from_numpy(rng.uniform(0.0, 1.0, size=ratio.shape))
    return {
        "ratio": ratio,
        "advantages": minigrpo.group_advantages(draw_rewards(rng, len(completions))),
        "completion_mask": mask,
        "partitions": [step_sets(completions, t) for t in range(ids.shape[1])],
    }


# lab04.4: the gap between two gradients


def gradients(loss_a, loss_b, theta):
    leaf = theta.detach().clone().requires_grad_()
    return [torch.autograd.grad(loss(leaf), leaf)[0] for loss in (loss_a, loss_b)]


def gradient_gap(loss_a, loss_b, theta):
    a, b = gradients(loss_a, loss_b, theta)
    return ((a - b).norm() / a.norm().clamp(min=1e-3)).item()


def without_floor(loss_a, loss_b, theta):
    a, b = gradients(loss_a, loss_b, theta)
    return ((a - b).norm() / a.norm()).item()


def with_added_floor(loss_a, loss_b, theta):
    a, b = gradients(loss_a, loss_b, theta)
    return ((a - b).norm() / (a.norm() + 1e-3)).item()


def not_relative(loss_a, loss_b, theta):
    a, b = gradients(loss_a, loss_b, theta)
    return (a - b).norm().item()


def largest_entry(loss_a, loss_b, theta):
    a, b = gradients(loss_a, loss_b, theta)
    return ((a - b).abs().max() / a.norm().clamp(min=1e-3)).item()


def of_the_norms(loss_a, loss_b, theta):
    a, b = gradients(loss_a, loss_b, theta)
    return ((a.norm() - b.norm()).abs() / a.norm().clamp(min=1e-3)).item()


def of_the_losses(loss_a, loss_b, theta):
    a, _ = gradients(loss_a, loss_b, theta)
    return ((loss_a(theta) - loss_b(theta)).abs() / a.norm().clamp(min=1e-3)).item()


def accumulated(loss_a, loss_b, theta):
    """θ.grad is never cleared, nor is it from one gap to the next."""
    theta.requires_grad_()
    found = []
    for loss in (loss_a, loss_b):
        loss(theta).backward()
        found.append(theta.grad.clone())
    return ((found[0] - found[1]).norm() / found[0].norm().clamp(min=1e-3)).item()


def accumulated_once(loss_a, loss_b, theta):
    return accumulated(loss_a, loss_b, theta.detach().clone())


def draw_pairs(rng: np.random.Generator, scale_a: float = 1.0, scale_b: float = 1.0) -> Case:
    S, V, n, K = 4, 3, 8, 2
    return {
        "theta": torch.from_numpy(rng.normal(size=(S, V))),
        "states": torch.from_numpy(rng.integers(S, size=n)),
        "ids": torch.from_numpy(rng.integers(V, size=n)),
        "weights_a": torch.from_numpy(scale_a * rng.normal(size=n)),
        "weights_b": torch.from_numpy(scale_b * rng.normal(size=(K, n))),
    }


def of_the_theorem(rng: np.random.Generator) -> Case:
    """GRPO's loss against PRM's, then against λ-GRPO's, on a table with a row for each prefix."""
    completions = draw_group(rng)
    ids, mask = pad(completions)
    rewards = draw_rewards(rng, len(completions))
    prefixes = sorted({tuple(y[:t]) for y in completions for t in range(len(y))})
    a, A, weighted = (
        (advantages * weights)[mask] / mask.sum()
        for advantages, weights in (
            minigrpo.OBJECTIVES[name](rewards, ids, mask) for name in ("grpo", "prm", "lambda_grpo")
        )
    )
    return {
        "theta": torch.from_numpy(rng.normal(size=(len(prefixes), 6))),
        "states": torch.tensor(
            [prefixes.index(tuple(y[:t])) for y in completions for t in range(len(y))]
        ),
        "ids": ids[mask],
        "weights_a": a,
        "weights_b": torch.stack([A, weighted]),
    }


ACCUMULATED = (
    "θ.grad still holds an earlier gradient when you read the next one: backward adds. Use a fresh copy of θ for each "
    "loss, or torch.autograd.grad."
)

EXERCISES = (
    Exercise(
        id="lab04.1",
        function="prm_loss",
        reference=prm_loss,
        driver="loss_and_grads",
        parts=(
            Part(
                name="one update, no KL",
                points=2,
                draw=lambda rng: draw_loss(rng, off_policy=False),
                hint="−1/Σ mask · Σ P·A over unmasked tokens, A being the mean of a over the token's "
                "set. Under the mask sets are empty: beware of 0/0.",
            ),
            Part(
                name="other ratios, with KL",
                points=2,
                draw=lambda rng: draw_loss(rng, off_policy=True),
                hint="subtract D = β·( π_ref/π_θ − ln(π_ref/π_θ) − 1 ) from each token's P·A.",
            ),
            Part(
                name="π_old and π_ref are constants",
                points=1,
                draw=lambda rng: draw_loss(
                    rng, off_policy=True, wrt=("logps", "old_logps", "ref_logps")
                ),
                hint="the gradients with respect to old_logps and ref_logps must be 0.",
            ),
        ),
        mistakes=(
            Mistake(
                name="GRPO's loss",
                hint="the value is right, and that is the theorem! But you used aᵢ, which is L_GRPO: "
                "the gradient of each single token's log-prob gives you away. Put A_{i,t}, the mean of "
                "a over the set, in its place.",
                wrong=variant(A=lambda a, sets: a.unsqueeze(-1)),
            ),
            Mistake(
                name="0/0 under the mask",
                hint="the value is right, but the gradient is NaN: under the mask |λ| = 0, your A is "
                "0/0, and its NaN comes back in the gradient, even if you select afterwards. Keep the "
                "denominator at 1 or more.",
                wrong=zero_by_zero,
            ),
            Mistake(
                name="no ratio",
                hint="you weigh ln π_θ where the ratio P = π_θ/π_old belongs.",
                wrong=without_ratio,
            ),
            Mistake(
                name="summed over the set",
                hint="you sum a over the set. A is the mean; the |λ| comes by itself, as the sum over i "
                "has |λ| members.",
                wrong=variant(A=_sum),
            ),
            Mistake(
                name="divided by G",
                hint="you divide the sum over the set by G, not by |λ|.",
                wrong=variant(A=lambda a, sets: _sum(a, sets) / len(a)),
            ),
            Mistake(
                name="each step once",
                hint="you divide by |λ| once more: that is λ-GRPO, which the theorem is not about.",
                wrong=variant(A=lambda a, sets: _mean(a, sets) / sets.sum(dim=1).clamp(min=1)),
            ),
            Mistake(
                name="gradient through constants",
                hint="only π_θ learns: no gradient may flow into old_logps or ref_logps.",
                wrong=variant(constant=lambda value: value),
            ),
            Mistake(
                name="sign of the KL term",
                hint="you reward the distance from π_ref. D is subtracted from the objective, so it adds to the loss.",
                wrong=variant(kl=lambda log_ratio: -(log_ratio.exp() - log_ratio - 1)),
            ),
            Mistake(
                name="KL upside down",
                hint="your KL estimate has π_θ/π_ref where π_ref/π_θ belongs.",
                wrong=variant(kl=lambda log_ratio: (-log_ratio).exp() + log_ratio - 1),
            ),
            Mistake(
                name="no KL term",
                hint="beta has no effect in your loss.",
                wrong=variant(kl=lambda log_ratio: 0 * log_ratio),
            ),
            Mistake(
                name="sign",
                hint="your loss goes up where the objective does. We minimise: loss = −objective.",
                wrong=lambda **arguments: -prm_loss(**arguments),
            ),
            Mistake(
                name="divided by G·T",
                hint="you divide by all places of the tensor, padding too. The denominator is the "
                "number of unmasked ones.",
                wrong=variant(reduce=lambda terms, mask: terms.mean()),
            ),
            Mistake(
                name="mean of row means",
                hint="you average each completion first. Under that denominator the theorem does not "
                "hold: one sum over all tokens of the group, one denominator.",
                wrong=variant(reduce=lambda terms, mask: (terms.sum(-1) / mask.sum(-1)).mean()),
            ),
        ),
    ),
    Exercise(
        id="lab04.2",
        function="step_sets",
        reference=step_sets,
        parts=(
            Part(
                name="sets of one token",
                points=1,
                draw=draw_sets,
                hint="equal tokens 0…t make a set, each completion is in exactly one; sets go by their first members.",
                examples=({"completions": [[7, 8], [7, 9], [7], [7, 8, 5]], "t": 1},),
            ),
            Part(
                name="completions that have ended",
                points=1,
                draw=draw_ended,
                hint="a completion with no token t is in no set of token t.",
            ),
        ),
        mistakes=(
            Mistake(
                name="by token t alone",
                hint="you sort by token t alone: a set agrees on all its tokens 0…t.",
                wrong=grouped_by(lambda y, t: y[t]),
            ),
            Mistake(
                name="t not included",
                hint="you compare the tokens before t; t counts too.",
                wrong=grouped_by(lambda y, t: tuple(y[:t])),
            ),
            Mistake(
                name="ended completions kept",
                hint="you keep completions that have ended before token t.",
                wrong=grouped_by(lambda y, t: tuple(y[: t + 1]), keep=lambda y, t: True),
            ),
            Mistake(
                name="a set for each completion",
                hint="you list a set once for each of its members, so that the exchanged sum would count it |λ| times.",
                wrong=one_set_for_each,
            ),
            Mistake(
                name="single completions left out",
                hint="a completion that goes on alone is a set of one, and its token is in the sum too.",
                wrong=only_shared,
            ),
        ),
    ),
    Exercise(
        id="lab04.3",
        function="proof_lines",
        reference=proof_lines,
        parts=(
            Part(
                name="equal ratios in a step",
                points=2,
                draw=lambda rng: draw_proof(rng, equal=True),
                hint="all five lines have one value here; compute each as it is written.",
            ),
            Part(
                name="ratios that differ in a step",
                points=2,
                draw=lambda rng: draw_proof(rng, equal=False),
                hint="lines 1, 2 and 5 take each member's own ratio; lines 3 and 4 that of the set's first member.",
            ),
        ),
        mistakes=(
            Mistake(
                name="|λ| missing",
                hint="line 4 lacks its |λ|: the sum of a over a set is |λ| times their mean.",
                wrong=changed(averaged=lambda P, a: P[0] * a.mean()),
            ),
            Mistake(
                name="sum for a mean",
                hint="line 5 has the sum of a where its mean A belongs.",
                wrong=changed(prm=lambda P, a: P.sum() * a.sum()),
            ),
            Mistake(
                name="mean ratio",
                hint="you take the mean ratio of the set for P_λ. That hides the assumption: take its first member's.",
                wrong=changed(
                    factored=lambda P, a: P.mean() * a.sum(),
                    averaged=lambda P, a: P.sum() * a.mean(),
                ),
            ),
            Mistake(
                name="first ratio in line 5",
                hint="line 5 is the PRM loss as you train it: each member has its own ratio there.",
                wrong=changed(prm=lambda P, a: len(a) * P[0] * a.mean()),
            ),
            Mistake(
                name="padding counted",
                hint="line 1 counts what stands under the mask.",
                wrong=padding_too,
            ),
            Mistake(
                name="one line for all",
                hint="your five lines are one and the same. Where ratios differ inside a set, they must part.",
                wrong=all_the_first,
            ),
        ),
    ),
    Exercise(
        id="lab04.4",
        function="gradient_gap",
        reference=gradient_gap,
        driver="pairs_of_losses",
        parts=(
            Part(
                name="losses that differ",
                points=1,
                draw=draw_pairs,
                hint="‖∇a − ∇b‖ over ‖∇a‖, with the Euclidean norm over all of θ. theta comes without "
                "requires_grad: give both losses a copy that has it.",
            ),
            Part(
                name="small gradients",
                points=1,
                draw=lambda rng: draw_pairs(rng, scale_a=1e-5, scale_b=1e-3),
                hint="divide by 1e-3 where ‖∇a‖ is smaller than that.",
            ),
            Part(
                name="GRPO, PRM and λ-GRPO",
                points=1,
                draw=of_the_theorem,
                hint="the first pair is the theorem's, with a gap near 1e-16; the second is λ-GRPO's, with a real gap.",
            ),
        ),
        mistakes=(
            Mistake(
                name="gradients accumulated",
                hint=ACCUMULATED,
                wrong=accumulated,
            ),
            Mistake(
                name="gradients accumulated between two losses",
                hint=ACCUMULATED,
                wrong=accumulated_once,
            ),
            Mistake(
                name="always 0",
                hint="your gap is 0 for any two losses. Do both of your gradients name one and the same "
                "tensor, θ.grad?",
                wrong=lambda loss_a, loss_b, theta: 0.0,
            ),
            Mistake(
                name="no floor",
                hint="where ∇a is almost 0, so is your denominator: it is at least 1e-3.",
                wrong=without_floor,
            ),
            Mistake(
                name="floor added",
                hint="you add 1e-3 to the norm, also where it is large. The denominator is the larger of the two.",
                wrong=with_added_floor,
            ),
            Mistake(
                name="not relative",
                hint="you return ‖∇a − ∇b‖, which is small wherever gradients are.",
                wrong=not_relative,
            ),
            Mistake(
                name="largest entry",
                hint="you take the largest entry of the difference. ‖·‖ is the Euclidean norm, over all of θ.",
                wrong=largest_entry,
            ),
            Mistake(
                name="difference of norms",
                hint="you compare lengths: two gradients of one length may point in opposite directions.",
                wrong=of_the_norms,
            ),
            Mistake(
                name="losses compared",
                hint="you compare the losses. Equal values do not make equal gradients.",
                wrong=of_the_losses,
            ),
        ),
    ),
)
