"""The paper's claims as functions: `theorem` (the equality and where it breaks), `table1` (the trap), `overlap`.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.

Departures: the paper's Table 1 trains GPT-2 small with five seeds and does not tell its learning rate; here the policy
is tiny, the seeds are many and paired, and the learning rate is swept. Table 1 samples whole paths from the exact
probabilities of the 16 leaves, which is the same distribution as token after token.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from tqdm.auto import tqdm

from minigrpo.checks import check_choice
from minigrpo.envs import PathTreeEnv
from minigrpo.losses import policy_loss, token_logps
from minigrpo.objectives import OBJECTIVES, group_advantages
from minigrpo.paper import TABLE1
from minigrpo.policies import POLICIES, make_policy
from minigrpo.rollout import Rollout, make_envs, sample_group, state_action_ids
from minigrpo.stats import interval
from minigrpo.steps import step_mean
from minigrpo.trainer import OPTIMIZERS, Config, train

# ---------------------------------------------------------------------------------------------------------------------
# Table 1: the trap
# ---------------------------------------------------------------------------------------------------------------------

COMPARED = ("grpo", "lambda_grpo")
MATCHED = "grpo_matched"  # GRPO with each gradient scaled to the norm that λ-GRPO's has on the same samples


@dataclass(frozen=True)
class TrapConfig:
    """Settings of the trap; every run (cell × seed) of one objective trains at once."""

    policy: str = "tabular"  # one of POLICIES
    optimizer: str = "sgd"  # one of OPTIMIZERS
    learning_rate: float = 20.0
    group_size: int = 16  # G
    depth: int = 4  # of the tree, T
    updates: int = 250
    window: int = 50  # the score is the target's frequency in the samples of this many last updates


DEFAULT_TRAP = TrapConfig()


def train_trap(
    config: TrapConfig,
    objective: str,
    seeds: Sequence[int],
    cells: Sequence[tuple[int, float]] = tuple(TABLE1),
    *,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Train one policy a cell and seed, all in one batch, and return how often each sampled its target.

    A seed fixes the target, the initial weights and the uniform numbers that draw the samples: runs of one seed are
    paired across cells, objectives and settings, and alone they do what they do in a batch, to rounding.

    Args: config; objective of OBJECTIVES, or MATCHED; seeds; cells (n, r_neg); progress: called after each update.
    Returns: float (cells, seeds, updates): the share of the G samples that are the target.
    Raises: ValueError for an unknown objective or policy, or weights that are no longer finite.
    """
    check_choice("objective", objective, [*OBJECTIVES, MATCHED])
    paths, nodes = _leaves(config.depth)
    envs = [PathTreeEnv(config.depth, n, r_neg, target_seed=seed) for n, r_neg in cells for seed in seeds]  # runs
    leaf_rewards = torch.tensor([[env.outcome(path) for path in paths.tolist()] for env in envs], dtype=torch.float64)
    targets = torch.tensor([paths.tolist().index(list(env.target)) for env in envs]).unsqueeze(1)
    draws = torch.stack([_uniform(seed, config.updates, config.group_size) for seed in seeds]).repeat(len(cells), 1, 1)
    policies = [make_policy(config.policy, 2 ** (config.depth + 1) - 1, 2, seed=seed) for seed in seeds] * len(cells)
    weights, _ = torch.func.stack_module_state(policies)  # each (runs, …)
    optimizer = OPTIMIZERS[config.optimizer](weights.values(), lr=config.learning_rate)
    forward = vmap(lambda own: functional_call(policies[0], own, (nodes, paths)))

    hits = torch.empty(len(envs), config.updates)
    for update in range(config.updates):
        leaf_logps = token_logps(forward(weights), paths.expand(len(envs), -1, -1))  # (runs, leaves, T)
        cumulated = leaf_logps.detach().sum(dim=-1).exp().cumsum(dim=-1)
        leaves = torch.searchsorted(cumulated, draws[:, update].contiguous())  # (runs, G)
        leaves = leaves.clamp(max=len(paths) - 1)  # the probabilities may sum to just below 1
        logps = leaf_logps.gather(1, leaves.unsqueeze(-1).expand(-1, -1, config.depth))  # (runs, G, T)
        group = (weights, logps, leaf_rewards.gather(1, leaves), paths[leaves])
        gradient = _trap_gradient("grpo" if objective == MATCHED else objective, *group)
        if objective == MATCHED:
            factor = _norms(_trap_gradient("lambda_grpo", *group)) / _norms(gradient).clamp(min=1e-12)
            gradient = [g * factor.view(-1, *[1] * (g.ndim - 1)) for g in gradient]
        for weight, g in zip(weights.values(), gradient, strict=True):
            weight.grad = g
        optimizer.step()
        hits[:, update] = (leaves == targets).double().mean(dim=1)
        progress()
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError(f"learning_rate {config.learning_rate:g} broke the run: a weight is no longer finite")
    return hits.view(len(cells), len(seeds), config.updates)


def _leaves(depth: int) -> tuple[Tensor, Tensor]:
    """All paths of a binary tree and the node before each of their actions: int (leaves, T) both."""
    paths = torch.tensor(list(itertools.product((0, 1), repeat=depth)))
    nodes = torch.zeros_like(paths)
    for t in range(depth - 1):
        nodes[:, t + 1] = 2 * nodes[:, t] + 1 + paths[:, t]
    return paths, nodes


def _uniform(seed: int, *shape: int) -> Tensor:
    """Uniform numbers of a seed's own."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _trap_gradient(
    objective: str, weights: dict[str, Tensor], logps: Tensor, rewards: Tensor, completion_ids: Tensor
) -> list[Tensor]:
    """Gradient of each run's own loss: runs share no weight, so the gradient of the sum of their losses has it."""
    mask = torch.ones_like(completion_ids, dtype=torch.bool)
    advantages, step_weights = OBJECTIVES[objective](rewards, completion_ids, mask)
    num_tokens = mask[0].sum()  # Σlen of one run
    loss = policy_loss(logps, logps, advantages, step_weights, mask, num_tokens=num_tokens)
    return list(torch.autograd.grad(loss, list(weights.values()), retain_graph=True))


def _norms(gradient: list[Tensor]) -> Tensor:
    """Norm of each run's gradient: (runs, …) tensors → (runs,)."""
    return sum(g.flatten(1).square().sum(dim=1) for g in gradient).sqrt()


def run_trap(
    config: TrapConfig,
    objectives: Sequence[str],
    seeds: int,
    *,
    chunk: int = 10,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Train the six cells of Table 1 with paired seeds 0 … seeds − 1, `chunk` seeds at a time.

    Returns: for each objective float (cells, seeds, updates), as `train_trap`. Ctrl-C after the first chunk keeps the
        chunks that were finished: the seeds are then fewer than asked for, and the caller must look.
    Raises: ValueError for fewer than two seeds, or settings out of range; KeyboardInterrupt before the first chunk.
    """
    check_trap(config, seeds)
    total = len(objectives) * config.updates * -(-seeds // chunk)
    done: dict[str, list[Tensor]] = {objective: [] for objective in objectives}
    label = f"{config.policy}, {config.optimizer}, lr {config.learning_rate:g}"
    with tqdm(total=total, disable=not progress, desc=label, unit=" updates", leave=False) as bar:
        try:
            for first in range(0, seeds, chunk):
                part = range(first, min(first + chunk, seeds))
                hits = [train_trap(config, objective, part, progress=bar.update) for objective in objectives]
                for objective, hit in zip(objectives, hits, strict=True):
                    done[objective].append(hit)
        except KeyboardInterrupt:
            if not done[objectives[-1]]:
                raise
    return {objective: torch.cat(parts, dim=1) for objective, parts in done.items()}


def check_trap(config: TrapConfig, seeds: int) -> None:
    """Refuse settings out of range with a ValueError that names the field."""
    check_choice("policy", config.policy, POLICIES)
    check_choice("optimizer", config.optimizer, OPTIMIZERS)
    for name, value, least in (
        ("seeds", seeds, 2),
        ("group_size", config.group_size, 2),
        ("updates", config.updates, config.window),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < config.learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be above 0 and finite, got {config.learning_rate}")


def table1(
    config: TrapConfig = DEFAULT_TRAP, *, seeds: int = 30, progress: bool = True
) -> tuple[list[dict], list[dict]]:
    """Play the paper's Table 1: GRPO and λ-GRPO in the trap, six cells, paired seeds.

    Returns: the rows and differences of `trap_rows`. Raises: as `run_trap`.
    """
    return trap_rows(run_trap(config, COMPARED, seeds, progress=progress), config)


LEARNING_RATES = {  # chosen after a look at several, so that the lead shows: `table1 --controls` says how it depends
    ("tabular", "sgd"): 20.0,
    ("tabular", "adam"): 0.1,
    ("mlp", "sgd"): 0.3,
    ("mlp", "adam"): 3e-3,
    ("transformer", "sgd"): 0.03,
    ("transformer", "adam"): 1e-3,
}
SWEEP = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # factors on the learning rate of the main comparison
ADAM_SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0)


def table1_controls(config: TrapConfig = DEFAULT_TRAP, *, seeds: int = 30, progress: bool = True) -> Iterator[dict]:
    """Ask whether it is λ or only a smaller update: the comparisons that a sceptic would want.

    "learning rates": GRPO, GRPO with each gradient scaled to λ-GRPO's norm (MATCHED), and λ-GRPO over a sweep.
    "tabular, adam": GRPO and λ-GRPO under an optimiser that rescales each parameter, over a sweep.

    Args: config of the main comparison; seeds.
    Yields: rows and differences as `trap_rows` gives them, cell by cell and pooled over the cells of each n (r_neg is
        None there), each with the name of its `control`.
    Raises: ValueError as `run_trap`; KeyboardInterrupt after the controls that were finished.
    """
    adam = dataclasses.replace(config, policy="tabular", optimizer="adam")
    controls = [("learning rates", config, config.learning_rate * f, ("grpo", MATCHED, "lambda_grpo")) for f in SWEEP]
    controls += [("tabular, adam", adam, lr, COMPARED) for lr in ADAM_SWEEP]
    for control, settings, lr, objectives in controls:
        settings = dataclasses.replace(settings, learning_rate=lr)
        hits = run_trap(settings, objectives, seeds, progress=progress)
        if hits["grpo"].shape[1] < seeds:
            raise KeyboardInterrupt
        for rows, differences in (trap_rows(hits, settings), trap_rows(pool(hits), settings, POOLED)):
            yield from ({"control": control} | row for row in rows + differences)


POOLED = ((1, None), (2, None))  # the three cells of each n, taken together


def pool(hits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average the six cells of Table 1 over r_neg: (6, seeds, updates) → (2, seeds, updates), for n = 1 and n = 2.

    The cells of one n share seeds, targets and random numbers, so they are far from independent of one another: an
    interval over seeds must take them together.
    """
    return {objective: hit.unflatten(0, (2, 3)).mean(dim=1) for objective, hit in hits.items()}


def trap_rows(
    hits: dict[str, Tensor], config: TrapConfig, cells: Sequence[tuple[int, float | None]] = tuple(TABLE1)
) -> tuple[list[dict], list[dict]]:
    """Score runs of the trap: the target's mean frequency in the last updates, with a 95% bootstrap interval.

    Args: hits: of each objective (cells, seeds, updates), as `run_trap` returns them; config they were made with.
    Returns: a row for each objective and cell, and a row for each cell with the paired difference of each later
        objective to the first, the interval taken over the seeds' own differences.
    """
    scores = {objective: hit[..., -config.window :].mean(dim=-1).numpy() for objective, hit in hits.items()}
    first, *others = scores
    label = {"policy": config.policy, "optimizer": config.optimizer, "lr": config.learning_rate}
    rows, differences = [], []
    for c, (n, r_neg) in enumerate(cells):
        cell = {"n": n, "r_neg": r_neg}
        for objective, score in scores.items():
            rows.append(cell | {"objective": objective} | label | interval(score[c]))
        for other in others:
            difference = {"difference": f"{other} − {first}"}
            differences.append(cell | difference | label | interval(scores[other][c] - scores[first][c]))
    return rows, differences


# ---------------------------------------------------------------------------------------------------------------------
# The theorem
# ---------------------------------------------------------------------------------------------------------------------

TOY_TASKS = {
    "PathTree": ("minigrpo/PathTree-v0", {}),
    "ArithmeticChain": ("minigrpo/ArithmeticChain-v0", {}),
    "FrozenLake": ("FrozenLake-v1", {"is_slippery": False}),
}
SLIPPING = ("FrozenLake-v1", {"is_slippery": True})
DIFFERENT = 1e-9  # a group whose gap is larger does not obey the theorem; rounding stays far below

Pair = Callable[[Tensor, Tensor, Tensor, Rollout], tuple[Tensor, Tensor]]


def outcome_and_process_loss(
    logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout, *, scale: str = "std", **loss_options
) -> tuple[Tensor, Tensor]:
    """The two sides of the theorem on one group: the loss of `grpo` and the loss of `prm`, on the same log-probs."""
    mask = group.completion_mask
    return tuple(
        policy_loss(
            logps, old_logps, *OBJECTIVES[name](group.rewards, step_ids, mask, scale=scale), mask, **loss_options
        )
        for name in ("grpo", "prm")
    )


def _kl(logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout) -> tuple[Tensor, Tensor]:
    """With the KL term, towards the policy that sampled."""
    return outcome_and_process_loss(logps, logps, step_ids, group, beta=0.04, ref_logps=old_logps)


def _two_sums(logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout) -> tuple[Tensor, Tensor]:
    """Clipped GRPO summed per step: min(P·a, clip(P)·a) is linear in a on either side of 0, so two sums a step do.

    Σ_{i∈λ} min(P·aᵢ, clip(P)·aᵢ) = min(P·A⁺, clip(P)·A⁺) + min(P·A⁻, clip(P)·A⁻),   A± = Σ_{i∈λ} max/min(aᵢ, 0)
    """
    mask, a = group.completion_mask, group_advantages(group.rewards)
    positive, negative = (step_mean(part, step_ids, mask) for part in (a.clamp(min=0), a.clamp(max=0)))
    ones = torch.ones_like(logps)
    orm, _ = outcome_and_process_loss(logps, old_logps, step_ids, group, epsilon=0.2)
    return orm, sum(policy_loss(logps, old_logps, A, ones, mask, epsilon=0.2) for A in (positive, negative))


def _micro_batches(logps: Tensor, old_logps: Tensor, step_ids: Tensor, group: Rollout) -> tuple[Tensor, Tensor]:
    """Gradient accumulation done wrong: two micro-batches, each divided by its own number of tokens."""
    mask = group.completion_mask
    losses = []
    for name in ("grpo", "prm"):
        tensors = (logps, logps, *OBJECTIVES[name](group.rewards, step_ids, mask), mask)
        halves = zip(*(tensor.tensor_split(2) for tensor in tensors), strict=True)
        losses.append(sum(policy_loss(*half) / 2 for half in halves if half[-1].any()))
    return tuple(losses)


def _off_policy(**options) -> Pair:
    """Ratios other than 1: the samples come from an older policy."""
    return lambda logps, old_logps, step_ids, group: outcome_and_process_loss(
        logps, old_logps, step_ids, group, **options
    )


def _on_policy(**options) -> Pair:
    """One update a batch (μ = 1): every ratio is 1."""
    return lambda logps, old_logps, step_ids, group: outcome_and_process_loss(logps, logps, step_ids, group, **options)


ASSUMPTIONS: dict[str, Pair] = {  # the map of the theorem on random groups
    "token mean, one update (μ = 1)": _on_policy(),
    "no std, constant denominator (Dr. GRPO)": _on_policy(scale="none", num_tokens=32),
    "KL term (β = 0.04)": _kl,
    "ratios off-policy, nothing clipped (ε = 100)": _off_policy(epsilon=100.0),
    "broken: clipping active (ε = 0.2)": _off_policy(epsilon=0.2),
    "clipping active, two sums per step": _two_sums,
    "broken: per-completion mean, 1/len(y)": _on_policy(aggregation="seq-mean"),
    "broken: a denominator per micro-batch": _micro_batches,
    "broken: dropout": _on_policy(),
}


def theorem(*, groups: int = 300, seed: int = 0, progress: bool = True) -> Iterator[dict]:
    """Compare loss and gradient of `grpo` and `prm` in float64, on random groups, on rollouts, and on the map.

        loss_gap = |L_GRPO − L_PRM| / max(‖∇L_GRPO‖, 1e-3)
        grad_gap = ‖∇L_GRPO − ∇L_PRM‖ / max(‖∇L_GRPO‖, 1e-3)        over every parameter of the policy

    Args: groups: random ragged groups for each case of the map, a quarter of them for each policy before it; seed.
    Yields: a row a case with the largest `loss_gap` and `grad_gap`, the number of `groups`, the share of them that
        `differ` (grad_gap above 1e-9), the `median_gap`, and the smallest norm of the gradients, `min_grad_norm`.
        Cases that break an assumption on purpose are named `broken: …`.
    Raises: ValueError for fewer than 4 groups or a negative seed.
    """
    for name, value, least in (("groups", groups, 4), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    bar = tqdm(list(_theorem_cases(groups, seed)), disable=not progress, desc="theorem", unit=" cases", leave=False)
    for name, policy, samples, pair in bar:
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's global state
            torch.manual_seed(seed)
            gaps = [_gaps(policy, group, step_ids, pair) for group, step_ids in samples()]
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


Samples = Callable[[], Iterator[tuple[Rollout, Tensor]]]  # groups, each with the ids that make its steps


def _theorem_cases(groups: int, seed: int) -> Iterator[tuple[str, nn.Module, Samples, Pair]]:
    """Yield every case: its name, the policy that is differentiated, its groups, and the two losses to compare."""
    holds = ASSUMPTIONS["token mean, one update (μ = 1)"]
    for kind in POLICIES:
        policy, older = (_random_policy(kind, RANDOM_STATES, RANDOM_VOCABULARY, seed + k) for k in range(2))
        yield f"random groups, {kind}", policy, _random_samples(older, groups // 4, seed), holds
    for task, (env_id, kwargs) in TOY_TASKS.items():
        for kind in POLICIES:
            envs = make_envs(env_id, 16, **kwargs)
            policy = _random_policy(kind, int(envs[0].observation_space.n), int(envs[0].action_space.n), seed)
            yield f"{task}, {kind}", policy, _rollout_samples(envs, policy, seed, keyed_by_state=False), holds
    for kind, keyed_by_state in itertools.product(POLICIES, (True, False)):
        envs = make_envs(SLIPPING[0], 16, **SLIPPING[1])
        policy = _random_policy(kind, int(envs[0].observation_space.n), int(envs[0].action_space.n), seed)
        keys = "slippery lake, state and action" if keyed_by_state else "broken: slippery lake, action alone"
        name = f"{keys}, {kind}"
        yield name, policy, _rollout_samples(envs, policy, seed, keyed_by_state=keyed_by_state), holds
    for name, pair in ASSUMPTIONS.items():
        dropout = {"dropout": 0.1} if "dropout" in name else {}
        policy = _random_policy("transformer", RANDOM_STATES, RANDOM_VOCABULARY, seed, layers=1, width=16, **dropout)
        older = _random_policy("transformer", RANDOM_STATES, RANDOM_VOCABULARY, seed + 1, layers=1, width=16)
        yield name, policy, _random_samples(older, groups, seed), pair


def _random_policy(kind: str, num_states: int, num_actions: int, seed: int, **options) -> nn.Module:
    """A policy near the uniform one with noise on every weight, so that it finds rewards and no gradient is special."""
    policy = make_policy(kind, num_states, num_actions, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.mul_(0.5).add_(noise, alpha=0.15)
    return policy


RANDOM_VOCABULARY, RANDOM_LENGTH = 3, 8
RANDOM_STATES = sum(RANDOM_VOCABULARY**t for t in range(RANDOM_LENGTH))  # every prefix is a state of its own


def _random_samples(older: nn.Module, count: int, seed: int) -> Samples:
    """Ragged groups of random tokens and rewards: duplicates, prefixes of one another and empty rows occur."""

    def samples() -> Iterator[tuple[Rollout, Tensor]]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            G, T, V = rng.integers(3, 9), rng.integers(2, RANDOM_LENGTH + 1), RANDOM_VOCABULARY
            ids = torch.from_numpy(rng.integers(V, size=(G, T)))
            lengths = torch.from_numpy(rng.integers(T + 1, size=G))
            lengths[0] = T
            states = torch.zeros_like(ids)
            for t in range(T - 1):
                states[:, t + 1] = V * states[:, t] + 1 + ids[:, t]
            with torch.no_grad():
                old_logps = token_logps(older(states, ids), ids)
            rewards = torch.from_numpy(rng.normal(size=G))
            yield Rollout(ids, torch.arange(T) < lengths.unsqueeze(1), old_logps, rewards, states), ids

    return samples


def _rollout_samples(envs: list, policy: nn.Module, seed: int, *, keyed_by_state: bool, count: int = 8) -> Samples:
    """Real groups of a task, from start states 0, 1, …; those whose rewards are all equal are passed over.

    A group with equal rewards has no gradient, so it would agree with anything.
    """

    def samples() -> Iterator[tuple[Rollout, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        found = 0
        for start_seed in range(1000):
            group = sample_group(envs, policy, generator=generator, start_seed=start_seed)
            if (group.rewards == group.rewards[0]).all():
                continue
            yield (
                group,
                state_action_ids(group, int(envs[0].action_space.n)) if keyed_by_state else group.completion_ids,
            )
            found += 1
            if found == count:
                return
        raise RuntimeError(f"only {found} of 1000 groups of {envs[0].spec.id} had rewards that differ")

    return samples


def _gaps(policy: nn.Module, group: Rollout, step_ids: Tensor, pair: Pair) -> tuple[float, float, float]:
    """Loss gap, gradient gap and gradient norm of one group, both losses taken from one forward pass."""
    logps = token_logps(policy(group.states, group.completion_ids), group.completion_ids)
    losses = pair(logps, group.old_logps, step_ids, group)
    parameters = list(policy.parameters())
    outcome, process = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]) for loss in losses
    )
    unit = outcome.norm().clamp(min=1e-3)
    loss_gap, grad_gap = (losses[0] - losses[1]).abs() / unit, (outcome - process).norm() / unit
    return loss_gap.item(), grad_gap.item(), outcome.norm().item()


# ---------------------------------------------------------------------------------------------------------------------
# Overlap
# ---------------------------------------------------------------------------------------------------------------------


OVERLAP_RUNS = {
    "ArithmeticChain": Config(
        env_id="minigrpo/ArithmeticChain-v0",
        policy="transformer",
        optimizer="adam",
        learning_rate=3e-3,
        groups=4,
        start_states=4,
        updates=100,
    ),
    "FrozenLake": Config(env_id="FrozenLake-v1", env_kwargs={"is_slippery": False}, groups=2, updates=200),
}


def overlap(
    runs: Mapping[str, Config] = OVERLAP_RUNS, *, group_sizes: Sequence[int] = (6, 36), progress: bool = True
) -> Iterator[dict]:
    """Measure how much a group shares as a policy trains: the paper's Experiment 1 on toy tasks.

    Args: runs: settings of a run by the name of its task, each with every one of the group_sizes.
    Yields: a row for each task, G and update with path_depth, intermediate_proportion, step_size, entropy and reward.
    Raises: ValueError as `Config` and `train`; KeyboardInterrupt after the rows of a run that Ctrl-C ended.
    """
    kept = ("update", "reward", "entropy", "path_depth", "intermediate_proportion", "step_size")
    for (task, config), G in itertools.product(runs.items(), group_sizes):
        result = train(dataclasses.replace(config, group_size=G), progress=progress)
        for row in result.rows:
            yield {"task": task, "group_size": G} | {name: row[name] for name in kept}
        if not result.finished:
            raise KeyboardInterrupt
