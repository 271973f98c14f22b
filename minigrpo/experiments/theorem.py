"""The theorem, GRPO = PRM: loss and gradient compared, and where it breaks.

Each case names a policy, groups and a pair of losses that are, or are not, one. Everything is float64, so that rounding
stays near 1e-16 and a difference is a difference.
Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from minigrpo.losses import policy_loss, token_logps
from minigrpo.objectives import OBJECTIVES, group_advantages
from minigrpo.policies import POLICIES, make_policy
from minigrpo.rollout import Rollout, make_envs, sample_group, state_action_ids
from minigrpo.steps import step_mean

TOY_TASKS = {
    "PathTree": ("minigrpo/PathTree-v0", {}),
    "ArithmeticChain": ("minigrpo/ArithmeticChain-v0", {}),
    "FrozenLake": ("FrozenLake-v1", {"is_slippery": False}),
}
SLIPPING = ("FrozenLake-v1", {"is_slippery": True})
DIFFERENT = 1e-9  # a group whose gap is larger does not obey the theorem; rounding stays far below
TOLERANCE = 1e-12  # what the gaps of cases in which it holds stay below
BROKEN = "broken: "  # how the names of cases begin that break an assumption on purpose

RANDOM_VOCABULARY = 3  # of random groups
RANDOM_LENGTH = 8  # of random completions at most
# every prefix is a state of its own
RANDOM_STATES = sum(RANDOM_VOCABULARY**t for t in range(RANDOM_LENGTH))

# Two losses of one group: (logps, old_logps, step_ids, group) → (loss, loss).
Pair = Callable[[Tensor, Tensor, Tensor, Rollout], tuple[Tensor, Tensor]]
# Makes groups, each with the ids that make its steps.
GroupSource = Callable[[], Iterator[tuple[Rollout, Tensor]]]


# ---------------------------------------------------------------------------------------------------------------------
# Pairs of losses: the map of the theorem
# ---------------------------------------------------------------------------------------------------------------------


def outcome_and_process_loss(
    logps: Tensor,
    old_logps: Tensor,
    step_ids: Tensor,
    group: Rollout,
    *,
    scale: str = "std",
    **loss_options: Any,
) -> tuple[Tensor, Tensor]:
    """The two sides of the theorem on one group: the loss of `grpo` and the loss of `prm`, on the same log-probs.

    Args:
        logps: float (G, T), ln π_θ in nats.
        old_logps: float (G, T), ln π_old in nats.
        step_ids: int (G, T), what makes tokens equal: completion_ids, or `state_action_ids`.
        group: its rewards (G,) and completion_mask (G, T) are used.
        scale: of `group_advantages`.
        loss_options: of `policy_loss`.

    Returns:
        Two scalars.
    """
    mask = group.completion_mask

    def loss(name: str) -> Tensor:
        advantages, step_weights = OBJECTIVES[name](group.rewards, step_ids, mask, scale=scale)
        return policy_loss(logps, old_logps, advantages, step_weights, mask, **loss_options)

    return loss("grpo"), loss("prm")


def _on_policy(**options: Any) -> Pair:
    """One update a batch (μ = 1): every ratio is 1."""

    def pair(
        logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
    ) -> tuple[Tensor, Tensor]:
        return outcome_and_process_loss(logps, logps, step_ids, group, **options)

    return pair


def _off_policy(**options: Any) -> Pair:
    """Ratios other than 1: the samples come from an older policy."""

    def pair(
        logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
    ) -> tuple[Tensor, Tensor]:
        return outcome_and_process_loss(logps, old_logps, step_ids, group, **options)

    return pair


def _kl(
    logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
) -> tuple[Tensor, Tensor]:
    """With the KL term, towards the policy that sampled."""
    return outcome_and_process_loss(logps, logps, step_ids, group, beta=0.04, ref_logps=old_logps)


def _two_sums(
    logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
) -> tuple[Tensor, Tensor]:
    """Clipped GRPO summed per step: min(P·a, clip(P)·a) is linear in a on either side of 0, so two sums a step do.

    Σ_{i∈λ} min(P·aᵢ, clip(P)·aᵢ) = min(P·A⁺, clip(P)·A⁺) + min(P·A⁻, clip(P)·A⁻),   A± = Σ_{i∈λ} max/min(aᵢ, 0)
    """
    mask = group.completion_mask
    ones = torch.ones_like(logps)
    outcome, _ = outcome_and_process_loss(logps, old_logps, step_ids, group, epsilon=0.2)
    a = group_advantages(group.rewards)  # (G,)
    process = torch.zeros_like(outcome)
    for part in (a.clamp(min=0), a.clamp(max=0)):
        A = step_mean(part, step_ids, mask)  # (G, T)
        process = process + policy_loss(logps, old_logps, A, ones, mask, epsilon=0.2)
    return outcome, process


def _micro_batches(
    logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
) -> tuple[Tensor, Tensor]:
    """Gradient accumulation done wrong: two micro-batches, each divided by its own number of tokens."""
    mask = group.completion_mask

    def loss(name: str) -> Tensor:
        advantages, step_weights = OBJECTIVES[name](group.rewards, step_ids, mask)
        tensors = (logps, logps, advantages, step_weights, mask)
        first = [tensor.tensor_split(2)[0] for tensor in tensors]
        second = [tensor.tensor_split(2)[1] for tensor in tensors]
        return torch.stack(
            [policy_loss(*half) / 2 for half in (first, second) if half[-1].any()]
        ).sum()

    return loss("grpo"), loss("prm")


def _neighbour(objective: str, factor: Callable[[Tensor], Tensor | float]) -> Pair:
    """A neighbour's advantages are rᵢ − mean r times a factor of the group: against the steps' own, times the same."""

    def pair(
        logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
    ) -> tuple[Tensor, Tensor]:
        mask = group.completion_mask
        rewards = (group.rewards > group.rewards.mean()).to(logps)  # right or wrong, both occur
        a, step_weights = OBJECTIVES[objective](rewards, step_ids, mask)
        A, _ = OBJECTIVES["prm"](rewards, step_ids, mask, scale="none")
        return (
            policy_loss(logps, logps, a, step_weights, mask),
            policy_loss(logps, logps, A * factor(rewards), step_weights, mask),
        )

    return pair


def _cispo(
    logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
) -> tuple[Tensor, Tensor]:
    """CISPO: the clipped ratio is a constant weight of ln π, so that a token's term is linear in its advantage.

    L = −1/Σᵢlen(y⁽ⁱ⁾) · Σᵢ Σₜ stop(min(P, 1 + ε))·A·ln π

    Source: MiniMax-M1, arXiv 2506.13585.
    """
    mask = group.completion_mask
    weight = (logps - old_logps).exp().clamp(max=1.2).detach()

    def loss(name: str) -> Tensor:
        advantages, _ = OBJECTIVES[name](group.rewards, step_ids, mask)
        return -(weight * advantages * logps)[mask].sum() / mask.sum()

    return loss("grpo"), loss("prm")


def _gspo(
    logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
) -> tuple[Tensor, Tensor]:
    """GSPO: every token of a completion has the completion's own ratio, which members of a step do not share.

    s = exp( mean over t of (ln π − ln π_old) )

    Source: Zheng et al. 2025, arXiv 2507.18071.
    """
    mask = group.completion_mask
    lengths = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    log_ratio = torch.where(mask, logps - old_logps, 0)
    ratio = (log_ratio.sum(dim=-1, keepdim=True) / lengths).exp().expand_as(logps)  # (G, T)

    def loss(name: str) -> Tensor:
        advantages, _ = OBJECTIVES[name](group.rewards, step_ids, mask)
        return -(ratio * advantages)[mask].sum() / mask.sum()

    return loss("grpo"), loss("prm")


def _equal_group_dropped(
    logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout
) -> tuple[Tensor, Tensor]:
    """Dynamic sampling: a group of equal rewards beside this one is left out, with its tokens in the denominator.

    Source: DAPO, Yu et al. 2025, arXiv 2503.14476.
    """
    both = [
        torch.stack([value, value]) for value in (logps, old_logps, step_ids, group.completion_mask)
    ]
    rewards = torch.stack([group.rewards, torch.ones_like(group.rewards)])
    kept = (rewards != rewards[:, :1]).any(dim=1)
    logps, _, step_ids, mask = (value[kept] for value in both)

    def loss(name: str) -> Tensor:
        advantages, step_weights = OBJECTIVES[name](rewards[kept], step_ids, mask)
        return policy_loss(logps, logps, advantages, step_weights, mask)

    return loss("grpo"), loss("prm")


ASSUMPTIONS: dict[str, Pair] = {  # the map of the theorem on random groups
    "token mean, one update (μ = 1)": _on_policy(),
    "no std, constant denominator (Dr. GRPO)": _on_policy(scale="none", num_tokens=32),
    "KL term (β = 0.04)": _kl,
    "ratios off-policy, nothing clipped (ε = 100)": _off_policy(epsilon=100.0),
    "broken: clipping active (ε = 0.2)": _off_policy(epsilon=0.2),
    "clipping active, two sums per step": _two_sums,
    "CISPO, clipping active (1 + ε = 1.2)": _cispo,
    "RLOO": _neighbour("rloo", lambda r: len(r) / (len(r) - 1)),
    "MaxRL": _neighbour("maxrl", lambda r: 1 / r.mean()),
    "equal groups dropped": _equal_group_dropped,
    "broken: GSPO, a sequence's ratio": _gspo,
    "broken: per-completion mean, 1/len(y)": _on_policy(aggregation="seq-mean"),
    "broken: a denominator per micro-batch": _micro_batches,
    "broken: dropout": _on_policy(),
}


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------


def theorem(
    *, groups: int = 300, seed: int = 0, progress: bool = True
) -> Generator[dict, None, bool]:
    """Compare loss and gradient of `grpo` and `prm` in float64, on random groups, on rollouts, and on the map.

        loss_gap = |L_GRPO − L_PRM| / max(‖∇L_GRPO‖, 1e-3)
        grad_gap = ‖∇L_GRPO − ∇L_PRM‖ / max(‖∇L_GRPO‖, 1e-3)        over every parameter of the policy

    Args:
        groups: random ragged groups for each case of the map, a quarter of them for each policy before it.
        seed: of groups and policies.
        progress: show a bar.

    Yields:
        A row a case: its name, `case`; the largest `loss_gap` and `grad_gap`; the number of `groups`; the share of
        them that `differ` (grad_gap above 1e-9); the `median_gap`; and the smallest norm of the gradients,
        `min_grad_norm`. Cases that break an assumption on purpose are named `broken: …`.

    Returns:
        True, at the end of the cases.

    Raises:
        ValueError: for fewer than 4 groups or a negative seed.
    """
    for name, value, least in (("groups", groups, 4), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    cases = list(_cases(groups, seed))
    for name, policy, source, pair in tqdm(
        cases, disable=not progress, desc="theorem", unit=" cases", leave=False
    ):
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's global state
            torch.manual_seed(seed)
            gaps = [_gaps(policy, group, step_ids, pair) for group, step_ids in source()]
        loss_gaps, grad_gaps, norms = np.array(gaps).T
        yield {
            "case": name,
            "loss_gap": float(loss_gaps.max()),
            "grad_gap": float(grad_gaps.max()),
            "groups": len(gaps),
            "differ": float((grad_gaps > DIFFERENT).mean()),
            "median_gap": float(np.median(grad_gaps)),
            "min_grad_norm": float(norms.min()),
        }
    return True


def is_broken(row: dict) -> bool:
    """Whether a row of `theorem` breaks an assumption on purpose."""
    return row["case"].startswith(BROKEN)


def failures(rows: Sequence[dict]) -> list[str]:
    """Cases of `theorem` that came out as they should not: a gap where it holds, none where it is broken."""
    failed = []
    for row in rows:
        holds = max(row["loss_gap"], row["grad_gap"]) < TOLERANCE
        if row["differ"] == 0 if is_broken(row) else not holds:
            failed.append(row["case"])
    return failed


def _gaps(
    policy: nn.Module, group: Rollout, step_ids: Tensor, pair: Pair
) -> tuple[float, float, float]:
    """Loss gap, gradient gap and gradient norm of one group, both losses taken from one forward pass."""
    logps = token_logps(policy(group.states, group.completion_ids), group.completion_ids)
    parameters = list(policy.parameters())

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
        )

    outcome_loss, process_loss = pair(logps, group.old_logps, step_ids, group)
    outcome, process = gradient(outcome_loss), gradient(process_loss)
    unit = outcome.norm().clamp(min=1e-3)
    loss_gap = (outcome_loss - process_loss).abs() / unit
    grad_gap = (outcome - process).norm() / unit
    return loss_gap.item(), grad_gap.item(), outcome.norm().item()


# ---------------------------------------------------------------------------------------------------------------------
# Cases: a name, the policy that is differentiated, its groups, and the two losses to compare
# ---------------------------------------------------------------------------------------------------------------------

Case = tuple[str, nn.Module, GroupSource, Pair]


def _cases(groups: int, seed: int) -> Iterator[Case]:
    """Every case of `theorem`."""
    yield from _random_cases(groups // 4, seed)
    yield from _task_cases(seed)
    yield from _slippery_cases(seed)
    yield from _map_cases(groups, seed)


def _random_cases(groups: int, seed: int) -> Iterator[Case]:
    """Each policy on random groups."""
    holds = ASSUMPTIONS["token mean, one update (μ = 1)"]
    for kind in POLICIES:
        policy = _random_policy(kind, RANDOM_STATES, RANDOM_VOCABULARY, seed)
        older = _random_policy(kind, RANDOM_STATES, RANDOM_VOCABULARY, seed + 1)
        yield f"random groups, {kind}", policy, _random_groups(older, groups, seed), holds


def _task_cases(seed: int) -> Iterator[Case]:
    """Each policy on rollouts of each task."""
    holds = ASSUMPTIONS["token mean, one update (μ = 1)"]
    for task, (env_id, kwargs) in TOY_TASKS.items():
        for kind in POLICIES:
            envs = make_envs(env_id, 16, **kwargs)
            policy = _policy_for(envs[0], kind, seed)
            yield (
                f"{task}, {kind}",
                policy,
                _rollout_groups(envs, policy, seed, keyed_by_state=False),
                holds,
            )


def _slippery_cases(seed: int) -> Iterator[Case]:
    """A lake on which an action does not say where it leads: its steps need the states, too."""
    holds = ASSUMPTIONS["token mean, one update (μ = 1)"]
    env_id, kwargs = SLIPPING
    for kind, keyed_by_state in itertools.product(POLICIES, (True, False)):
        envs = make_envs(env_id, 16, **kwargs)
        policy = _policy_for(envs[0], kind, seed)
        keys = (
            "slippery lake, state and action"
            if keyed_by_state
            else "broken: slippery lake, action alone"
        )
        yield (
            f"{keys}, {kind}",
            policy,
            _rollout_groups(envs, policy, seed, keyed_by_state=keyed_by_state),
            holds,
        )


def _map_cases(groups: int, seed: int) -> Iterator[Case]:
    """Each assumption on random groups."""
    for name, pair in ASSUMPTIONS.items():
        options = {"layers": 1, "width": 16}
        older = _random_policy("transformer", RANDOM_STATES, RANDOM_VOCABULARY, seed + 1, **options)
        if "dropout" in name:
            options["dropout"] = 0.1
        policy = _random_policy("transformer", RANDOM_STATES, RANDOM_VOCABULARY, seed, **options)
        yield name, policy, _random_groups(older, groups, seed), pair


def _policy_for(env: gymnasium.Env, kind: str, seed: int) -> nn.Module:
    """A random policy of the size of a task."""
    return _random_policy(kind, int(env.observation_space.n), int(env.action_space.n), seed)


def _random_policy(
    kind: str, num_states: int, num_actions: int, seed: int, **options: Any
) -> nn.Module:
    """A policy near the uniform one with noise on every weight, so that it finds rewards and no gradient is special."""
    policy = make_policy(kind, num_states, num_actions, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.mul_(0.5).add_(noise, alpha=0.15)
    return policy


def _random_groups(older: nn.Module, count: int, seed: int) -> GroupSource:
    """Ragged groups of random tokens and rewards: duplicates, prefixes of one another and empty rows occur."""

    def groups() -> Iterator[tuple[Rollout, Tensor]]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            group = _random_group(older, rng)
            yield group, group.completion_ids

    return groups


def _random_group(older: nn.Module, rng: np.random.Generator) -> Rollout:
    """One group; its first completion is as long as the tensors are."""
    V = RANDOM_VOCABULARY
    G = rng.integers(3, 9)
    T = rng.integers(2, RANDOM_LENGTH + 1)
    ids = torch.from_numpy(rng.integers(V, size=(G, T)))
    lengths = torch.from_numpy(rng.integers(T + 1, size=G))
    lengths[0] = T
    # Prefixes are numbered as the nodes of a V-ary tree: the children of s are V·s + 1 … V·s + V.
    states = torch.zeros_like(ids)
    for t in range(T - 1):
        states[:, t + 1] = V * states[:, t] + 1 + ids[:, t]
    with torch.no_grad():
        old_logps = token_logps(older(states, ids), ids)
    rewards = torch.from_numpy(rng.normal(size=G))
    mask = torch.arange(T) < lengths.unsqueeze(1)  # (G, T)
    return Rollout(ids, mask, old_logps, rewards, states)


def _rollout_groups(
    envs: list[gymnasium.Env], policy: nn.Module, seed: int, *, keyed_by_state: bool, count: int = 8
) -> GroupSource:
    """Real groups of a task, from start states 0, 1, …; those whose rewards are all equal are passed over.

    A group with equal rewards has no gradient, so it would agree with anything.
    """

    def groups() -> Iterator[tuple[Rollout, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        num_actions = int(envs[0].action_space.n)
        taken = 0
        for start_seed in range(1000):
            group = sample_group(envs, policy, generator=generator, start_seed=start_seed)
            if (group.rewards == group.rewards[0]).all():
                continue
            yield (
                group,
                state_action_ids(group, num_actions) if keyed_by_state else group.completion_ids,
            )
            taken += 1
            if taken == count:
                return
        raise RuntimeError(
            f"only {taken} of 1000 groups of {envs[0].spec.id} had rewards that differ"
        )

    return groups
