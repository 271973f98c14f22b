"""Table 1, the trap: a tree on which GRPO is pushed away from the best path, and λ-GRPO is not.

Departures: the paper's Table 1 trains GPT-2 small with five seeds and does not tell its learning rate; here the policy
is tiny, the seeds are many and paired, and the learning rate is swept. Whole paths are sampled from the exact
probabilities of the 16 leaves, which is the same distribution as token after token.
Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from tqdm.auto import tqdm

from minigrpo.checks import check_choice
from minigrpo.envs import PathTreeEnv
from minigrpo.losses import policy_loss, token_logps
from minigrpo.objectives import OBJECTIVES, lambda_grpo
from minigrpo.paper import TABLE1
from minigrpo.policies import POLICIES, make_policy
from minigrpo.settings import check_choices, setting
from minigrpo.stats import interval
from minigrpo.trainer import OPTIMIZERS

COMPARED = ("grpo", "lambda_grpo")
# GRPO with each gradient scaled to the norm that λ-GRPO's has on the same samples
MATCHED = "grpo_matched"
CELLS = tuple(TABLE1)  # (n, r_neg)
POOLED = ((1, None), (2, None))  # the three cells of each n, taken together

# of `minigrpo.llm.trap`, a run after another; the second is GPT-2 small, drawn from its config
LANGUAGE_POLICIES = ("smollm2-135m", "gpt2-random")

# chosen after a look at several, so that the lead shows: `table1 --controls` says how it depends
LEARNING_RATES = {
    ("tabular", "sgd"): 20.0,
    ("tabular", "adam"): 0.1,
    ("mlp", "sgd"): 0.3,
    ("mlp", "adam"): 3e-3,
    ("transformer", "sgd"): 0.03,
    ("transformer", "adam"): 1e-3,
}
# factors on the learning rate of the main comparison
SWEEP = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ADAM_SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0)
# powers of λ-GRPO's |λ| beside its own, 1, and GRPO's, 0
DIAL = (-0.5, 0.25, 0.5, 0.75, 1.5, 2.0)


@dataclass(frozen=True)
class TrapConfig:
    """Settings of the trap; every run (cell × seed) of one objective trains at once."""

    policy: str = setting("tabular", "what is trained", choices=POLICIES)
    optimizer: str = setting("sgd", "what trains it", choices=OPTIMIZERS)
    learning_rate: float = setting(20.0, "of the optimiser")
    power: float = setting(1.0, "of λ-GRPO's |λ|, between GRPO at 0 and the paper's 1")
    group_size: int = setting(16, "G, completions of a group")
    depth: int = setting(4, "of the tree, T")
    updates: int = setting(250, "rounds of sampling, at least 50")
    window: int = setting(
        50, "the score is the target's frequency in the samples of this many last updates"
    )


DEFAULT_TRAP = TrapConfig()


def check_trap(config: TrapConfig, seeds: int) -> None:
    """Refuse settings out of range with a ValueError that names the field."""
    check_choices(config)
    for name, value, least in (
        ("seeds", seeds, 2),
        ("group_size", config.group_size, 2),
        ("updates", config.updates, config.window),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < config.learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be above 0 and finite, got {config.learning_rate}")
    if not abs(config.power) < float("inf"):
        raise ValueError(f"power must be finite, got {config.power}")


# ---------------------------------------------------------------------------------------------------------------------
# Training, all runs at once
# ---------------------------------------------------------------------------------------------------------------------


def train_trap(
    config: TrapConfig,
    objective: str,
    seeds: Sequence[int],
    cells: Sequence[tuple[int, float]] = CELLS,
    *,
    seen: Callable[[Tensor], object] = lambda leaf_logps: None,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Train one policy a cell and seed, all in one batch, and return how often each sampled its target.

    A seed fixes the target, the initial weights and the uniform numbers that draw the samples: runs of one seed are
    paired across cells, objectives and settings, and alone they do what they do in a batch, to rounding.

    Args:
        config: of the runs.
        objective: of OBJECTIVES, or MATCHED.
        seeds: a run each.
        cells: (n, r_neg), a run each: how many actions the loss-making paths share with the target, and their reward.
        seen: called with ln π of each action of each leaf's path, float (runs, leaves, T), before each update.
        progress: called after each update.

    Returns:
        float (cells, seeds, updates): the share of the G samples that are the target.

    Raises:
        ValueError: for an unknown objective or policy, or weights that are no longer finite.
    """
    check_choice("objective", objective, [*OBJECTIVES, MATCHED])
    paths, nodes = all_paths(config.depth)  # (leaves, T)
    envs = [
        PathTreeEnv(config.depth, n, r_neg, target_seed=seed)
        for n, r_neg in cells
        for seed in seeds
    ]
    runs = len(envs)
    leaf_rewards = torch.tensor(
        [[env.outcome(path) for path in paths.tolist()] for env in envs], dtype=torch.float64
    )
    # (runs, 1)
    targets = torch.tensor([paths.tolist().index(list(env.target)) for env in envs]).unsqueeze(1)
    draws = torch.stack(
        [uniform_numbers(seed, config.updates, config.group_size) for seed in seeds]
    )
    draws = draws.repeat(len(cells), 1, 1)  # (runs, updates, G)

    # One policy a run, its weights stacked: each weight is (runs, …).
    policies = [
        make_policy(config.policy, 2 ** (config.depth + 1) - 1, 2, seed=seed) for seed in seeds
    ] * len(cells)
    weights, _ = torch.func.stack_module_state(policies)
    optimizer = OPTIMIZERS[config.optimizer](weights.values(), lr=config.learning_rate)
    forward = vmap(lambda own: functional_call(policies[0], own, (nodes, paths)))

    hits = torch.empty(runs, config.updates)
    for update in range(config.updates):
        # 1. Sample G leaves a run, by the exact probabilities of all of them.
        leaf_logps = token_logps(forward(weights), paths.expand(runs, -1, -1))  # (runs, leaves, T)
        seen(leaf_logps.detach())
        leaves = draw_leaves(leaf_logps.detach(), draws[:, update])  # (runs, G)
        # (runs, G, T)
        logps = leaf_logps.gather(1, leaves.unsqueeze(-1).expand(-1, -1, config.depth))
        rewards = leaf_rewards.gather(1, leaves)  # (runs, G)

        # 2. The gradient of each run's own loss; 3. one step of all of them.
        gradient = _gradient(config, objective, weights, logps, rewards, paths[leaves])
        for weight, g in zip(weights.values(), gradient, strict=True):
            weight.grad = g
        optimizer.step()
        hits[:, update] = (leaves == targets).double().mean(dim=1)
        progress()
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError(
            f"learning_rate {config.learning_rate:g} broke the run: a weight is no longer finite"
        )
    return hits.view(len(cells), len(seeds), config.updates)


def all_paths(depth: int) -> tuple[Tensor, Tensor]:
    """All paths of a binary tree and the node before each of their actions: int (leaves, T) both."""
    paths = torch.tensor(list(itertools.product((0, 1), repeat=depth)))
    nodes = torch.zeros_like(paths)
    for t in range(depth - 1):
        nodes[:, t + 1] = 2 * nodes[:, t] + 1 + paths[:, t]
    return paths, nodes


def uniform_numbers(seed: int, *shape: int) -> Tensor:
    """Uniform numbers of a seed's own."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_leaves(leaf_logps: Tensor, draws: Tensor) -> Tensor:
    """Draw leaves by uniform numbers: log-probs (runs, leaves, T) and draws (runs, G) → int (runs, G)."""
    cumulated = leaf_logps.sum(dim=-1).exp().cumsum(dim=-1)  # (runs, leaves)
    leaves = torch.searchsorted(cumulated, draws.contiguous())
    return leaves.clamp(max=leaf_logps.shape[1] - 1)  # the probabilities may sum to just below 1


def _gradient(
    config: TrapConfig,
    objective: str,
    weights: dict[str, Tensor],
    logps: Tensor,
    rewards: Tensor,
    completion_ids: Tensor,
) -> list[Tensor]:
    """The gradient of each run's own loss, for each weight (runs, …)."""
    if objective != MATCHED:
        return _loss_gradient(config, objective, weights, logps, rewards, completion_ids)
    gradient = _loss_gradient(config, "grpo", weights, logps, rewards, completion_ids)
    other = _loss_gradient(config, "lambda_grpo", weights, logps, rewards, completion_ids)
    factor = _norms(other) / _norms(gradient).clamp(min=1e-12)  # (runs,)
    return [g * factor.view(-1, *[1] * (g.ndim - 1)) for g in gradient]


def _loss_gradient(
    config: TrapConfig,
    objective: str,
    weights: dict[str, Tensor],
    logps: Tensor,
    rewards: Tensor,
    completion_ids: Tensor,
) -> list[Tensor]:
    """Runs share no weight, so the gradient of the sum of their losses is that of each."""
    mask = torch.ones_like(completion_ids, dtype=torch.bool)
    weigh = OBJECTIVES[objective]
    if objective == "lambda_grpo":
        weigh = partial(lambda_grpo, power=config.power)
    advantages, step_weights = weigh(rewards, completion_ids, mask)
    num_tokens = mask[0].sum()  # Σlen of one run
    loss = policy_loss(logps, logps, advantages, step_weights, mask, num_tokens=num_tokens)
    return list(torch.autograd.grad(loss, list(weights.values()), retain_graph=True))


def _norms(gradient: list[Tensor]) -> Tensor:
    """Norm of each run's gradient: (runs, …) tensors → (runs,)."""
    return torch.stack([g.flatten(1).square().sum(dim=1) for g in gradient]).sum(dim=0).sqrt()


def run_trap(
    config: TrapConfig,
    objectives: Sequence[str],
    seeds: int,
    *,
    chunk: int = 10,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Train the six cells of Table 1 with paired seeds 0 … seeds − 1.

    Args:
        config: of the runs.
        objectives: of OBJECTIVES, or MATCHED.
        seeds: how many.
        chunk: seeds at a time.
        progress: show a bar.

    Returns:
        For each objective float (cells, seeds, updates), as `train_trap`. Ctrl-C keeps the chunks that were finished:
        there are fewer seeds than asked for then, which `is_whole` tells.

    Raises:
        ValueError: for fewer than two seeds, or settings out of range.
        KeyboardInterrupt: after Ctrl-C in the first chunk.
    """
    check_trap(config, seeds)
    total = len(objectives) * config.updates * -(-seeds // chunk)
    done: dict[str, list[Tensor]] = {objective: [] for objective in objectives}
    label = f"{config.policy}, {config.optimizer}, lr {config.learning_rate:g}"
    with tqdm(total=total, disable=not progress, desc=label, unit=" updates", leave=False) as bar:
        try:
            for first in range(0, seeds, chunk):
                part = range(first, min(first + chunk, seeds))
                hits = [
                    train_trap(config, objective, part, progress=bar.update)
                    for objective in objectives
                ]
                for objective, hit in zip(objectives, hits, strict=True):
                    done[objective].append(hit)
        except KeyboardInterrupt:
            if not done[objectives[-1]]:
                raise
    return {objective: torch.cat(parts, dim=1) for objective, parts in done.items()}


def is_whole(hits: dict[str, Tensor], seeds: int) -> bool:
    """Whether `run_trap` has trained all the seeds that were asked for."""
    return all(hit.shape[1] == seeds for hit in hits.values())


# ---------------------------------------------------------------------------------------------------------------------
# The race: does the branch become good before its root is abandoned?
# ---------------------------------------------------------------------------------------------------------------------

RACE_CELL = (1, -0.5)
RACE = TrapConfig(learning_rate=5.0, updates=120)


def run_race(
    config: TrapConfig = RACE, *, seeds: int = 30, cell: tuple[int, float] = RACE_CELL
) -> dict[str, Tensor]:
    """Train GRPO and λ-GRPO in one cell of the trap, and look at the exact probabilities on the target's way.

    Args:
        config: of the runs.
        seeds: paired, 0 … seeds − 1.
        cell: n, and r_neg.

    Returns:
        For each objective float (seeds, updates, 2): the probability of the target's first n actions, and that of the
        rest after them.

    Raises:
        ValueError: for fewer than two seeds, or settings out of range.
    """
    check_trap(config, seeds)
    paths, _ = all_paths(config.depth)
    n, r_neg = cell
    envs = [PathTreeEnv(config.depth, n, r_neg, target_seed=seed) for seed in range(seeds)]
    targets = torch.tensor([paths.tolist().index(list(env.target)) for env in envs])
    run = torch.arange(seeds)
    races = {}
    for objective in COMPARED:
        seen: list[Tensor] = []

        def look(leaf_logps: Tensor, seen: list[Tensor] = seen) -> None:
            own = leaf_logps[run, targets]  # (seeds, T)
            seen.append(torch.stack([own[:, :n].sum(dim=1), own[:, n:].sum(dim=1)], dim=1).exp())

        train_trap(config, objective, range(seeds), [cell], seen=look)
        races[objective] = torch.stack(seen, dim=1)
    return races


def race_threshold(cell: tuple[int, float] = RACE_CELL) -> float:
    """The probability of the rest at which the first actions are worth as much as the others.

        q·1 + (1 − q)·r_neg = 0.7

    Above it the first actions' advantage is positive.
    """
    _, r_neg = cell
    return (PathTreeEnv.r_other - r_neg) / (PathTreeEnv.r_target - r_neg)


# ---------------------------------------------------------------------------------------------------------------------
# Table 1 and its controls
# ---------------------------------------------------------------------------------------------------------------------


def table1(
    config: TrapConfig = DEFAULT_TRAP, *, seeds: int = 30, progress: bool = True
) -> tuple[list[dict], list[dict]]:
    """Play the paper's Table 1: GRPO and λ-GRPO in the trap, six cells, paired seeds.

    Args:
        config: of the runs.
        seeds: how many.
        progress: show a bar.

    Returns:
        The rows and differences of `trap_rows`.

    Raises:
        As `run_trap`.
    """
    return trap_rows(run_trap(config, COMPARED, seeds, progress=progress), config)


def table1_controls(
    config: TrapConfig = DEFAULT_TRAP, *, seeds: int = 30, progress: bool = True
) -> Generator[dict, None, bool]:
    """Ask whether it is λ or only a smaller update: the comparisons that a sceptic would want.

    "learning rates": GRPO, GRPO with each gradient scaled to λ-GRPO's norm (MATCHED), and λ-GRPO over a sweep.
    "tabular, adam": GRPO and λ-GRPO under an optimiser that rescales each parameter, over a sweep.
    "dial, |λ|^−power": GRPO and λ-GRPO with other powers of |λ|, at the main learning rate.

    Args:
        config: of the main comparison.
        seeds: how many.
        progress: show bars.

    Yields:
        Rows and differences as `trap_rows` gives them, cell by cell and pooled over the cells of each n (r_neg is None
        there), each with the name of its `control`.

    Returns:
        Whether all controls were finished; False after Ctrl-C.

    Raises:
        ValueError: as `run_trap`.
    """
    adam = dataclasses.replace(config, policy="tabular", optimizer="adam")
    swept = [
        ("learning rates", config, config.learning_rate * f, ("grpo", MATCHED, "lambda_grpo"))
        for f in SWEEP
    ]
    under_adam = [("tabular, adam", adam, lr, COMPARED) for lr in ADAM_SWEEP]
    dial = [
        (
            f"dial, |λ|^{-power:+g}",
            dataclasses.replace(config, power=power),
            config.learning_rate,
            COMPARED,
        )
        for power in DIAL
    ]
    for control, settings, lr, objectives in (*swept, *under_adam, *dial):
        settings = dataclasses.replace(settings, learning_rate=lr)
        hits = run_trap(settings, objectives, seeds, progress=progress)
        if not is_whole(hits, seeds):
            return False
        for rows, differences in (
            trap_rows(hits, settings),
            trap_rows(pool(hits), settings, POOLED),
        ):
            yield from ({"control": control} | row for row in rows + differences)
    return True


def pool(hits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average the six cells of Table 1 over r_neg: (6, seeds, updates) → (2, seeds, updates), for n = 1 and n = 2.

    The cells of one n share seeds, targets and random numbers, so they are far from independent of one another: an
    interval over seeds must take them together.
    """
    return {objective: hit.unflatten(0, (2, 3)).mean(dim=1) for objective, hit in hits.items()}


def trap_rows(
    hits: dict[str, Tensor], config: TrapConfig, cells: Sequence[tuple[int, float | None]] = CELLS
) -> tuple[list[dict], list[dict]]:
    """Score runs of the trap: the target's mean frequency in the last updates, with a 95% bootstrap interval.

    Args:
        hits: of each objective (cells, seeds, updates), as `run_trap` returns them.
        config: that they were made with.
        cells: (n, r_neg), in order.

    Returns:
        Rows, one for each objective and cell: {n, r_neg, objective, policy, optimizer, lr, seeds, mean, ci_low,
        ci_high}, and power where it is not the paper's. And differences, one for each cell and later objective, paired
        with the first: the same keys, but `difference` for `objective`; the interval is taken over the seeds' own
        differences.
    """
    scores = {
        objective: hit[..., -config.window :].mean(dim=-1).numpy()
        for objective, hit in hits.items()
    }
    first, *others = scores
    label = {"policy": config.policy, "optimizer": config.optimizer, "lr": config.learning_rate}
    if config.power != 1:
        label["power"] = config.power
    rows, differences = [], []
    for c, (n, r_neg) in enumerate(cells):
        cell = {"n": n, "r_neg": r_neg}
        for objective, score in scores.items():
            rows.append(cell | {"objective": objective} | label | interval(score[c]))
        for other in others:
            paired = scores[other][c] - scores[first][c]  # (seeds,)
            differences.append(
                cell | {"difference": f"{other} − {first}"} | label | interval(paired)
            )
    return rows, differences
