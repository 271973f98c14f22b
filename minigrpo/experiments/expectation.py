"""What the objectives do in expectation: every group of a small tree is enumerated, and compared with a closed form.

One prompt; v is a prefix, p_v the probability that one completion passes through it, Q_v the expected reward of those
that do, V that of the prompt. With advantages rᵢ − mean r, a constant denominator and one update a batch (μ = 1):

    E[ GRPO's gradient ]   = Σ_v (G − 1)·p_v             · (Q_v − V) · ∇ ln π(v)
    E[ λ-GRPO's gradient ] = Σ_v ( 1 − (1 − p_v)^(G−1) ) · (Q_v − V) · ∇ ln π(v)

GRPO weighs a step by the expected visits of the other G − 1 completions, λ-GRPO by the probability that they visit it
at all. Both are one formula: a factor w(|λ|) on each step gives the weight E[ K·w(K) ], with K ~ Binomial(G − 1, p_v)
those visits (`visits_weight` for w = |λ|^−α). RLOO's weight is G·p_v. TEMPO adds to GRPO's sum, with v⁻ the prefix
before v and π(v) = p_v / p_v⁻,

    Σ_v ( G·p_v⁻ − (1 − (1 − p_v⁻)^G) ) · π(v) · (Q_v − Q_v⁻) · ∇ ln π(v)

which doubles the first decision and vanishes below prefixes that are rarely visited. For one decision and a constant
baseline b λ-GRPO's is the gradient of Σ_a (Q_a − b)·F(p_a),

    F(p) = Σ_{k=1..G} (1 − (1 − p)^k) / k,

a harmonic mixture of pass@1 … pass@G. docs/expectation.md has the proof. Everything is float64.
Not in the paper: derived for this project.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.experiments.theorem import BROKEN, DIFFERENT, TOLERANCE, is_broken
from minigrpo.losses import policy_loss
from minigrpo.objectives import OBJECTIVES

MAX_GROUPS = 200_000  # enumerated: more take more than seconds, and gigabytes
# Of Q_v − V, by p_v and G.
WEIGHTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "grpo": lambda p, G: (G - 1) * p,
    "prm": lambda p, G: (G - 1) * p,
    "lambda_grpo": lambda p, G: 1 - (1 - p) ** (G - 1),
    "rloo": lambda p, G: G * p,
    "tempo": lambda p, G: (G - 1) * p,
}
# Of π(v)·(Q_v − Q_v⁻), by p_v⁻ and G.
BRANCH_WEIGHTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tempo": lambda before, G: G * before - (1 - (1 - before) ** G),
}


def visits_weight(p: Tensor, group_size: int, power: float) -> Tensor:
    """What λ-GRPO with |λ|^power weighs a step by: its visits by the other completions, each to 1 − power.

        E[ K^(1 − power) ] over K ~ Binomial(G − 1, p), and 0 for K = 0

    Args:
        p: the probability that one completion visits the step; float, any shape.
        group_size: G.
        power: 0 gives (G − 1)·p, GRPO's; 1 gives 1 − (1 − p)^(G−1), λ-GRPO's.
    """
    K = torch.arange(1, group_size, dtype=p.dtype)
    ways = torch.tensor([comb(group_size - 1, k) for k in range(1, group_size)], dtype=p.dtype)
    p = p.unsqueeze(-1)
    chance = ways * p**K * (1 - p) ** (group_size - 1 - K)  # (…, G − 1), of K visits
    return (chance * K ** (1 - power)).sum(dim=-1)


@dataclass(frozen=True)
class SmallTree:
    """All completions of a prompt, their policy and their rewards.

    completion_ids: int (leaves, T); mask: bool (leaves, T); nodes: int (leaves, T), the decision at which each token is
    taken; logits: float (decisions, A); rewards: float (leaves,).
    """

    completion_ids: Tensor
    mask: Tensor
    nodes: Tensor
    logits: Tensor
    rewards: Tensor

    def logps(self, logits: Tensor) -> Tensor:
        """ln π of each token of each completion: float (leaves, T) in nats, 0 where masked."""
        chosen = logits.log_softmax(dim=-1)[self.nodes, self.completion_ids]
        return torch.where(self.mask, chosen, 0)

    def visits(self) -> Tensor:
        """Which completions pass through each token's prefix: bool (leaves, leaves, T), by [completion, passing]."""
        agree = self.completion_ids.unsqueeze(1) == self.completion_ids.unsqueeze(0)
        both = self.mask.unsqueeze(1) & self.mask.unsqueeze(0)
        return (agree & both).cumprod(dim=-1).bool()


def draw_tree(actions: int, depth: int, seed: int, *, ragged: bool = False) -> SmallTree:
    """Draw the policy and rewards of a complete tree.

    Args:
        actions: A, at each decision.
        depth: T.
        seed: of policy and rewards.
        ragged: whether completions that begin with action 0 end there.
    """
    rng = np.random.default_rng(seed)
    paths = list(itertools.product(range(actions), repeat=depth))
    if ragged:
        paths = [
            path for path in paths if path[0] or not any(path)
        ]  # of those that begin with 0 one is left
    ids = torch.tensor(paths)
    lengths = torch.where((ids[:, 0] == 0) & ragged, 1, depth)
    mask = torch.arange(depth) < lengths.unsqueeze(1)
    # Decisions are numbered as the nodes of an A-ary tree.
    nodes = torch.zeros_like(ids)
    for t in range(depth - 1):
        nodes[:, t + 1] = actions * nodes[:, t] + 1 + ids[:, t]
    decisions = sum(actions**t for t in range(depth))
    logits = torch.from_numpy(rng.normal(size=(decisions, actions)))
    rewards = torch.from_numpy(rng.normal(size=len(paths)))
    return SmallTree(ids, mask, nodes, logits, rewards)


def expected_update(
    tree: SmallTree,
    objective: str,
    group_size: int,
    *,
    scale: str = "none",
    token_mean: bool = False,
    baseline: float | None = None,
    epsilon: float | None = None,
    old_logits: Tensor | None = None,
    **options: Any,
) -> tuple[float, Tensor]:
    """The objective's expected loss and gradient, over all groups that the policy may sample.

    Args:
        tree: the prompt.
        objective: of OBJECTIVES.
        group_size: G.
        scale: of the advantages, "none" for rᵢ − mean r.
        token_mean: divide by each group's own number of tokens, instead of by 1.
        baseline: b in the place of the group's mean.
        epsilon: clip range; None for no clip.
        old_logits: of the policy that samples, (decisions, A); None for the tree's own.
        options: of the objective, as power of lambda_grpo.

    Returns:
        The loss, and its gradient in the logits, (decisions, A).

    Raises:
        ValueError: for more groups than can be enumerated.
    """
    leaves = len(tree.rewards)
    groups = _groups(leaves, group_size)  # (N, G)
    logits = tree.logits.clone().requires_grad_()
    old_logps = tree.logps(tree.logits if old_logits is None else old_logits)
    chance = old_logps.sum(dim=1)[groups].sum(dim=1).exp()  # (N,)

    ids = tree.completion_ids[groups]  # (N, G, T)
    mask = tree.mask[groups]
    rewards = tree.rewards[groups]  # (N, G)
    advantages, step_weights = OBJECTIVES[objective](rewards, ids, mask, scale=scale, **options)
    if baseline is not None:
        advantages = (rewards - baseline).unsqueeze(-1) * mask
    step_weights = step_weights * chance.view(-1, 1, 1)
    if token_mean:
        step_weights = step_weights / mask.sum(dim=(1, 2)).view(-1, 1, 1)
    loss = policy_loss(
        tree.logps(logits)[groups],
        old_logps[groups],
        advantages,
        step_weights,
        mask,
        epsilon=epsilon,
        num_tokens=1,
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.item(), gradient


def _groups(leaves: int, group_size: int) -> Tensor:
    """All groups as completions' numbers, int (leaves^G, G)."""
    count = leaves**group_size
    if count > MAX_GROUPS:
        raise ValueError(
            f"{leaves} completions make {count} groups of {group_size}, at most {MAX_GROUPS} can be enumerated: "
            "take a smaller tree or group_size"
        )
    places = torch.arange(count).unsqueeze(1)
    powers = leaves ** torch.arange(group_size)
    return places // powers % leaves


def closed_form(
    tree: SmallTree, objective: str, group_size: int, power: float | None = None
) -> tuple[float, Tensor]:
    """What `expected_update` gives, by the formula: the sum over prefixes, and its gradient by way of ln π(v).

        L = −Σ_v ( WEIGHTS(p_v)·(Q_v − V) + BRANCH_WEIGHTS(p_v⁻)·π(v)·(Q_v − Q_v⁻) )

    Args:
        tree: the prompt.
        objective: of WEIGHTS.
        group_size: G.
        power: of |λ|, for `visits_weight` in the place of WEIGHTS.

    Raises:
        ValueError: for an objective without a closed form.
    """
    if objective not in WEIGHTS:
        raise ValueError(
            f"objective must be one of {', '.join(WEIGHTS)}, got {objective!r}: others have no closed form"
        )
    logits = tree.logits.clone().requires_grad_()
    logps = tree.logps(logits)
    chance = logps.detach().sum(dim=1).exp()  # (leaves,), of each completion
    passing = tree.visits().to(chance.dtype)  # (leaves, leaves, T)
    p = torch.einsum("j,ijt->it", chance, passing)  # (leaves, T)
    Q = torch.einsum("j,ijt->it", chance * tree.rewards, passing) / p.clamp(min=1e-300)
    V = chance @ tree.rewards
    # Each prefix stands once for every completion through it: divide by how many those are.
    copies = passing.sum(dim=1).clamp(min=1)
    if power is None:
        weight = WEIGHTS[objective](p, group_size)
    else:
        weight = visits_weight(p, group_size, power)
    push = weight * (Q - V)
    if objective in BRANCH_WEIGHTS:
        before, Q_before = (
            F.pad(p, (1, -1), value=1),
            torch.cat([V.expand(len(Q), 1), Q], 1)[:, :-1],
        )
        weight = BRANCH_WEIGHTS[objective](before, group_size)
        push = push + weight * logps.detach().exp() * (Q - Q_before)
    push = torch.where(tree.mask, push / copies, 0)
    (gradient,) = torch.autograd.grad(-(push * logps).sum(), logits)
    return -push.sum().item(), gradient


def harmonic_utility(p: Tensor, group_size: int) -> Tensor:
    """F(p) = Σ_{k=1..G} (1 − (1 − p)^k)/k, the mixture of pass@1 … pass@G that λ-GRPO maximises for one decision."""
    k = torch.arange(1, group_size + 1, dtype=p.dtype)
    return ((1 - (1 - p.unsqueeze(-1)) ** k) / k).sum(dim=-1)


def utility_update(tree: SmallTree, group_size: int, baseline: float) -> tuple[float, Tensor]:
    """The gradient of −Σ_a (Q_a − b)·F(p_a) for one decision, and λ-GRPO's expected loss there by its weights.

    Args:
        tree: of depth 1.
        group_size: G.
        baseline: b.
    """
    logits = tree.logits.clone().requires_grad_()
    p = tree.logps(logits).sum(dim=1).exp()
    utility = ((tree.rewards - baseline) * harmonic_utility(p, group_size)).sum()
    (gradient,) = torch.autograd.grad(-utility, logits)
    weight = 1 - (1 - p.detach()) ** group_size
    return -(weight * (tree.rewards - baseline)).sum().item(), gradient


# ---------------------------------------------------------------------------------------------------------------------
# The cases
# ---------------------------------------------------------------------------------------------------------------------

Update = tuple[float, Tensor]


@dataclass(frozen=True)
class Case:
    """A comparison; `own_denominator` where the statement can hold up to a constant alone."""

    name: str
    objective: str
    enumerated: Callable[[], Update]
    closed: Callable[[], Update]
    own_denominator: bool = False


def expectation(*, seed: int = 0) -> Generator[dict, None, bool]:
    """Compare the expected update of each objective, by enumeration, with its closed form; then break it.

        loss_gap = |L − c·L′| / max(c·‖∇L′‖, 1e-3);   grad_gap = ‖∇L − c·∇L′‖ / max(c·‖∇L′‖, 1e-3)

    with L′ the closed form. The statement holds up to a constant: c is 1, but where there is another denominator, such
    as the standard deviation. There it is the one that brings the gradients closest, and what is left is no constant.

    Args:
        seed: of policies and rewards.

    Yields:
        A row a case: {case, objective, loss_gap, grad_gap, constant}. Cases that break an assumption on purpose are
        named `broken: …`: there the gap says how far the statement is off.

    Returns:
        True, at the end of the cases.

    Raises:
        ValueError: for a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    for case in _cases(seed):
        loss, gradient = case.enumerated()
        closed_loss, closed_gradient = case.closed()
        constant = 1.0
        if case.own_denominator:
            constant = ((gradient * closed_gradient).sum() / closed_gradient.square().sum()).item()
        unit = max(constant * closed_gradient.norm().item(), 1e-3)
        yield {
            "case": case.name,
            "objective": case.objective,
            "loss_gap": abs(loss - constant * closed_loss) / unit,
            "grad_gap": (gradient - constant * closed_gradient).norm().item() / unit,
            "constant": constant,
        }
    return True


def failed_expectations(rows: Sequence[dict]) -> list[str]:
    """Cases that came out as they should not: a gap where the statement holds, none where it is broken."""
    failed = []
    for row in rows:
        gap = max(row["loss_gap"], row["grad_gap"])
        if gap < DIFFERENT if is_broken(row) else not gap < TOLERANCE:
            failed.append(row["case"])
    return failed


def _cases(seed: int) -> Iterator[Case]:
    """Every case of `expectation`."""
    yield from _holding_cases(seed)
    yield from _utility_cases(seed)
    yield from _broken_cases(seed)


def _holding_cases(seed: int) -> Iterator[Case]:
    """Bandits and trees, several group sizes, each objective with a closed form."""
    shapes = {
        "bandit of 2": (2, 1),
        "bandit of 3": (3, 1),
        "bandit of 4": (4, 1),
        "tree of depth 2": (2, 2),
        "tree of depth 3": (2, 3),
    }
    ragged = draw_tree(2, 3, seed, ragged=True)
    for objective in WEIGHTS:
        for (name, (actions, depth)), G in itertools.product(shapes.items(), (2, 3, 5)):
            tree = draw_tree(actions, depth, seed)
            yield _case(f"{name}, G = {G}", tree, objective, G)
        yield _case("ragged tree, G = 4", ragged, objective, 4)
    for power, G in itertools.product((0, 0.5, 2), (2, 3, 5)):
        tree = draw_tree(2, 3, seed)
        name = f"|λ|^−{power:g}, tree of depth 3, G = {G}"
        yield _case(name, tree, "lambda_grpo", G, power=power)


def _utility_cases(seed: int) -> Iterator[Case]:
    """One decision, a constant baseline: λ-GRPO climbs the harmonic mixture."""
    tree = draw_tree(4, 1, seed)
    for G in (2, 5):
        yield Case(
            f"one decision, Σ(Q − b)·F, G = {G}",
            "lambda_grpo",
            lambda G=G: expected_update(tree, "lambda_grpo", G, baseline=0.3),
            lambda G=G: utility_update(tree, G, 0.3),
        )


def _broken_cases(seed: int) -> Iterator[Case]:
    """Each assumption broken in turn, for both objectives."""
    tree = draw_tree(2, 3, seed)
    ragged = draw_tree(2, 3, seed, ragged=True)
    noise = np.random.default_rng(seed + 1).normal(size=tuple(tree.logits.shape))
    old = tree.logits + 0.3 * torch.from_numpy(noise)
    for objective in ("grpo", "lambda_grpo"):
        yield _case(f"{BROKEN}divided by the std", tree, objective, 4, scale="std")
        yield _case(f"{BROKEN}ragged token mean", ragged, objective, 4, token_mean=True)
        yield _case(
            f"{BROKEN}off-policy, clipped",
            tree,
            objective,
            4,
            epsilon=0.2,
            old_logits=old,
        )


def _case(name: str, tree: SmallTree, objective: str, G: int, **options: Any) -> Case:
    """An objective against its closed form."""
    return Case(
        name,
        objective,
        lambda: expected_update(tree, objective, G, **options),
        lambda: closed_form(tree, objective, G, options.get("power")),
        "scale" in options or "token_mean" in options,
    )
