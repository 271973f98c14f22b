"""The toy training loop: sample groups, ask an objective for its tensors, minimise one loss.

It reads top to bottom as the algorithm does; the three objectives differ in one look-up.
Departures from the paper's setting are options, all off by default: several iterations a batch, clipping, a KL term.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from minigrpo.checks import AGGREGATIONS, check_loss_options, check_number
from minigrpo.files import METRICS, check_writable, write_json, write_text
from minigrpo.losses import kl_k3, policy_loss, token_logps
from minigrpo.objectives import OBJECTIVES, SCALES
from minigrpo.policies import POLICIES, make_policy
from minigrpo.rollout import Rollout, make_envs, sample_group, stack_groups, state_action_ids
from minigrpo.settings import check_choices, setting
from minigrpo.steps import intermediate_proportion, path_depth, step_sizes

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
STEP_KEYS = ("actions", "states")


@dataclass(frozen=True)
class Config:
    """Settings of one toy run."""

    env_id: str = setting("minigrpo/PathTree-v0", "a Gymnasium id with Discrete spaces")
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)  # its arguments
    policy: str = setting("tabular", "what is trained", choices=POLICIES)
    objective: str = setting("grpo", "what gives advantages and step weights", choices=OBJECTIVES)
    group_size: int = setting(16, "G, completions of a group")
    groups: int = setting(1, "P, groups sampled for an update, each from one start state")
    start_states: int = setting(
        1, "how many start states the groups take in turn, by the reset seeds 0, 1, …"
    )
    updates: int = setting(250, "rounds of sampling")
    iterations: int = setting(1, "μ, optimiser updates on one sampled batch")
    optimizer: str = setting("sgd", "what trains it", choices=OPTIMIZERS)
    learning_rate: float = setting(5.0, "of the optimiser")
    epsilon: float | None = setting(None, "clip range of the ratio; None: no clip")
    beta: float = setting(0.0, "weight of the KL term towards the initial policy")
    scale: str = setting("std", "what divides the advantages", choices=SCALES)
    aggregation: str = setting("token-mean", "the loss's denominator", choices=AGGREGATIONS)
    step_key: str = setting(
        "actions", "what makes tokens equal: the action, or state and action", choices=STEP_KEYS
    )
    seed: int = setting(0, "of weights and samples")

    def __post_init__(self) -> None:
        """Refuse settings out of range with a ValueError that names the field."""
        check_choices(self)
        for name, least in (
            ("group_size", 2),
            ("groups", 1),
            ("start_states", 1),
            ("updates", 1),
            ("iterations", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
        check_number("learning_rate", self.learning_rate)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        check_loss_options(self.epsilon, self.beta, self.aggregation, None, has_reference=True)


@dataclass(frozen=True)
class TrainResult:
    """What `train` leaves: the policy, one row of metrics an update, and whether it ran to its end."""

    policy: nn.Module
    rows: list[dict[str, float]]
    finished: bool


def train(config: Config, *, out: str | Path | None = None, progress: bool = True) -> TrainResult:
    """Train a policy on a toy task; the same config gives the same rows.

    Args:
        config: of the run.
        out: a folder for `config.json` and `metrics.jsonl` (one line an update, written as it goes).
        progress: show a bar.

    Returns:
        TrainResult, with a row of `metrics_of` for each update. Ctrl-C ends the run with the rows of the updates that
        were finished.

    Raises:
        ValueError: for a task that can't be made, and where a weight or metric is no longer finite.
        OSError: where `out` can't be written.
        FileExistsError: where it holds a run.
    """
    envs = make_envs(config.env_id, config.group_size, **config.env_kwargs)
    S, A = int(envs[0].observation_space.n), int(envs[0].action_space.n)
    policy = make_policy(config.policy, S, A, seed=config.seed)
    reference = make_policy(config.policy, S, A, seed=config.seed).requires_grad_(False)
    optimizer = OPTIMIZERS[config.optimizer](policy.parameters(), lr=config.learning_rate)
    objective = OBJECTIVES[config.objective]
    generator = torch.Generator().manual_seed(config.seed)
    log = None if out is None else _new_log(Path(out), config)
    rows: list[dict[str, float]] = []
    bar = tqdm(range(config.updates), disable=not progress, desc=config.objective, unit=" updates")
    try:
        for update in bar:
            # 1. Sample P groups of G completions, each group from one start state.
            starts = [
                (update * config.groups + p) % config.start_states for p in range(config.groups)
            ]
            batch = stack_groups(
                [sample_group(envs, policy, generator=generator, start_seed=s) for s in starts]
            )
            ids, mask = batch.completion_ids, batch.completion_mask  # (P, G, T)
            step_ids = state_action_ids(batch, A) if config.step_key == "states" else ids
            ref_logps = token_logps(reference(batch.states, ids), ids)

            # 2. The objective turns rewards and shared prefixes into advantages and step weights.
            advantages, step_weights = objective(batch.rewards, step_ids, mask, scale=config.scale)

            # 3. Descend on the loss, μ times on these samples.
            for _ in range(config.iterations):
                logits = policy(batch.states, ids)  # (P, G, T, V)
                loss = policy_loss(
                    token_logps(logits, ids),
                    batch.old_logps,
                    advantages,
                    step_weights,
                    mask,
                    epsilon=config.epsilon,
                    beta=config.beta,
                    ref_logps=ref_logps,
                    aggregation=config.aggregation,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            # 4. Note what happened, as the last of these updates saw it.
            row = metrics_of(
                update, batch, step_ids, policy, logits.detach(), loss.detach(), ref_logps
            )
            _check_finite(row, policy, config)
            rows.append(row)
            bar.set_postfix(reward=f"{row['reward']:.2f}", refresh=False)
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    except KeyboardInterrupt:
        bar.close()
        if log is not None:  # it may have come between a row and its line
            write_text(log, "".join(json.dumps(row) + "\n" for row in rows))
        return TrainResult(policy, rows, finished=False)
    return TrainResult(policy, rows, finished=True)


def metrics_of(
    update: int,
    batch: Rollout,
    step_ids: Tensor,
    policy: nn.Module,
    logits: Tensor,
    loss: Tensor,
    ref_logps: Tensor,
) -> dict[str, float]:
    """The row of an update.

    Args:
        update: its number, from 0.
        batch: its samples, (P, G, T).
        step_ids: int (P, G, T), what makes tokens equal.
        policy: with the gradients of the last pass.
        logits: float (P, G, T, V), of that pass.
        loss: of that pass, a scalar.
        ref_logps: float (P, G, T), ln π_ref in nats.

    Returns:
        update; reward: mean outcome reward; loss, in the unit of the advantages; grad_norm; entropy: of the policy,
        mean over tokens in nats; kl: k3 towards the initial policy, mean over tokens in nats; ratio: mean π_θ/π_old;
        length: tokens of a completion; zero_variance: share of groups whose rewards are all equal; path_depth,
        intermediate_proportion and step_size, |λ|: how much a group shares.
    """
    mask = batch.completion_mask
    logps = token_logps(logits, batch.completion_ids)
    # (P, G, T)
    entropy = torch.distributions.Categorical(logits=logits, validate_args=False).entropy()
    row = {
        "update": update,
        "reward": batch.rewards.mean(),
        "loss": loss,
        "grad_norm": nn.utils.get_total_norm([p.grad for p in policy.parameters()]),
        "entropy": _token_mean(entropy, mask),
        "kl": _token_mean(kl_k3(logps, ref_logps), mask),
        "ratio": _token_mean((logps - batch.old_logps).exp(), mask),
        "length": mask.sum(dim=-1).double().mean(),
        "zero_variance": (batch.rewards == batch.rewards[..., :1]).all(dim=-1).double().mean(),
        "path_depth": path_depth(step_ids, mask).double().mean(),
        "intermediate_proportion": intermediate_proportion(step_ids, mask).mean(),
        "step_size": _token_mean(step_sizes(step_ids, mask).double(), mask),
    }
    return {name: float(value) for name, value in row.items()} | {"update": update}


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average (P, G, T) over the unmasked tokens."""
    return values[mask].mean()


def _check_finite(row: dict[str, float], policy: nn.Module, config: Config) -> None:
    """Refuse to go on with a metric or weight that is no number. Raises: ValueError that names them."""
    broken = [name for name, value in row.items() if not math.isfinite(value)]
    broken += [name for name, weight in policy.named_parameters() if not weight.isfinite().all()]
    if broken:
        rate = f"learning_rate {config.learning_rate:g}"
        few = ", ".join(broken[:3])
        raise ValueError(
            f"{rate} broke the run at update {row['update']}: {few} no longer finite; lower it"
        )


def _new_log(out: Path, config: Config) -> Path:
    """Begin a run's folder with its settings, and return where its metrics go."""
    log = out / METRICS
    check_writable(log)
    if log.exists():
        raise FileExistsError(f"{out} holds a run already: name another folder")
    write_json(out / "config.json", dataclasses.asdict(config))
    return log
