"""What does λ-GRPO add to the cost of one toy update?

First part: the update of `minigrpo.trainer`, phase by phase (sampling, objective, forward and loss, backward,
optimiser) in CPU time of one thread, under `grpo` and `lambda_grpo` in turns, on the same samples: every pair starts
from the same seed and, as the learning rate is next to nothing, from the same policy. The trainer's metrics and
reference policy are left out, which makes the share larger. Added: the paired difference of the objective's own time,
over the `grpo` update.

Second part: the trap of Table 1, where one update trains all 180 runs at once and no environment has to be stepped, so
that the objective is a larger part of less work.
"""

from __future__ import annotations

import itertools
import statistics

import torch
from _common import CPU_TIME, alternate, main, markdown, span, spread

from minigrpo import OBJECTIVES, policy_loss, token_logps
from minigrpo.experiments import TrapConfig, train_trap
from minigrpo.paper import TABLE1
from minigrpo.policies import make_policy
from minigrpo.rollout import make_envs, sample_group, stack_groups
from minigrpo.trainer import OPTIMIZERS, Config

COMPARED = ("grpo", "lambda_grpo")
PHASES = ("sample", "objective", "loss", "backward", "optimizer")
TASKS = [
    Config(env_id=env_id, policy=policy, optimizer=optimizer, groups=groups)
    for env_id, groups in (("minigrpo/PathTree-v0", 1), ("minigrpo/ArithmeticChain-v0", 4))
    for policy, optimizer in (("tabular", "sgd"), ("transformer", "adam"))
]
STILL = 1e-12  # a learning rate that leaves the policy, and so the samples, as they are


class Update:
    """One task, its policy and its optimiser, ready for updates that tell how long each phase took."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.envs = make_envs(config.env_id, config.group_size, **config.env_kwargs)
        S, A = int(self.envs[0].observation_space.n), int(self.envs[0].action_space.n)
        self.policy = make_policy(config.policy, S, A, seed=config.seed)
        self.optimizer = OPTIMIZERS[config.optimizer](self.policy.parameters(), lr=STILL)

    def __call__(self, objective: str, seed: int) -> tuple[dict[str, float], torch.Tensor]:
        """Seconds of each phase, and the ids that were sampled. The phases stand as in `minigrpo.trainer.train`."""
        generator = torch.Generator().manual_seed(seed)
        clock = [CPU_TIME()]
        groups = [sample_group(self.envs, self.policy, generator=generator) for _ in range(self.config.groups)]
        batch = stack_groups(groups)
        ids, mask = batch.completion_ids, batch.completion_mask  # (P, G, T)
        clock.append(CPU_TIME())
        advantages, step_weights = OBJECTIVES[objective](batch.rewards, ids, mask)
        clock.append(CPU_TIME())
        logps = token_logps(self.policy(batch.states, ids), ids)
        loss = policy_loss(logps, batch.old_logps, advantages, step_weights, mask)
        clock.append(CPU_TIME())
        self.optimizer.zero_grad()
        loss.backward()
        clock.append(CPU_TIME())
        self.optimizer.step()
        clock.append(CPU_TIME())
        return {name: b - a for name, a, b in zip(PHASES, clock, clock[1:], strict=False)}, ids


def toy_row(config: Config, pairs: int) -> dict:
    """Both objectives in turns on the same samples."""
    update = Update(config)
    for objective in COMPARED * 2:
        update(objective, 0)
    phases: dict[str, list[dict[str, float]]] = {objective: [] for objective in COMPARED}
    for seed in range(pairs):
        sampled = []
        for objective in COMPARED[:: 1 if seed % 2 else -1]:
            seconds, ids = update(objective, seed)
            phases[objective].append(seconds)
            sampled.append(ids)
        if not torch.equal(*sampled):
            raise RuntimeError(f"{config.env_id}: the two objectives did not see the same samples")
    return {
        "task": config.env_id.partition("/")[2],
        "policy": config.policy,
        "P": config.groups,
        "G": config.group_size,
        "T": ids.shape[-1],
        "phases": {
            objective: {name: spread([seconds[name] for seconds in sample]) for name in PHASES}
            for objective, sample in phases.items()
        },
        **shares(
            *([seconds["objective"] for seconds in phases[name]] for name in COMPARED),
            *([sum(seconds.values()) for seconds in phases[name]] for name in COMPARED),
        ),
    }


def trap_row(policy: str, seeds: int, updates: int, rounds: int) -> dict:
    """The vectorised trap: the objective alone on a batch of its shape, and the update it is part of."""
    config = TrapConfig(policy=policy, learning_rate=STILL, updates=updates)
    runs, G, T = seeds * len(TABLE1), config.group_size, config.depth
    generator = torch.Generator().manual_seed(0)
    paths = torch.tensor(list(itertools.product((0, 1), repeat=T)))
    ids = paths[torch.randint(len(paths), (runs, G), generator=generator)]  # as the untrained policy samples
    mask, rewards = torch.ones_like(ids, dtype=torch.bool), torch.rand(runs, G, generator=generator).double()
    alone = alternate(
        {name: lambda name=name: OBJECTIVES[name](rewards, ids, mask) for name in COMPARED}, rounds, budget=1
    )

    whole: dict[str, list[float]] = {name: [] for name in COMPARED}
    for turn in range(rounds):
        for name in COMPARED[:: 1 if turn % 2 else -1]:
            clock: list[float] = []  # the end of each update: the set-up before the first one is not counted
            train_trap(config, name, range(seeds), progress=lambda clock=clock: clock.append(CPU_TIME()))
            whole[name].append(statistics.median(b - a for a, b in itertools.pairwise(clock)))
    label = {"task": f"trap, {runs} runs at once", "policy": policy, "P": runs, "G": G, "T": T}
    return label | shares(*(alone[name] for name in COMPARED), *(whole[name] for name in COMPARED))


def shares(grpo: list[float], lambda_grpo: list[float], grpo_update: list[float], lambda_update: list[float]) -> dict:
    """Spreads of the objective's and the update's seconds, and of what λ adds as a share of the `grpo` update."""
    update = statistics.median(grpo_update)
    return {
        "objective": {"grpo": spread(grpo), "lambda_grpo": spread(lambda_grpo)},
        "update": {"grpo": spread(grpo_update), "lambda_grpo": spread(lambda_update)},
        "added_share": spread([(b - a) / update for a, b in zip(grpo, lambda_grpo, strict=True)]),
        "whole_update_share": spread([(b - a) / update for a, b in zip(grpo_update, lambda_update, strict=True)]),
    }


def measure(quick: bool) -> dict:
    pairs, seeds, updates, rounds = (3, 2, 4, 2) if quick else (150, 30, 6, 7)
    rows = [toy_row(config, pairs) for config in TASKS]
    rows += [trap_row(policy, seeds, updates, rounds) for policy in ("tabular", "transformer")]
    return {"rows": rows}


def table(result: dict) -> str:
    header = ["task", "policy", "P×G×T", "update ms", "sampling", "`grpo` ms", "`lambda_grpo` ms"]
    header += ["λ adds, % of the update", "both updates whole, %"]
    lines = [
        [
            row["task"],
            row["policy"],
            "×".join(str(row[axis]) for axis in "PGT"),
            f"{row['update']['grpo']['median'] * 1e3:.2f}",
            f"{row['phases']['grpo']['sample']['median'] / row['update']['grpo']['median']:.0%}"
            if "phases" in row
            else "–",
            *(f"{row['objective'][name]['median'] * 1e3:.2f}" for name in COMPARED),
            span(row["added_share"], scale=100),
            span(row["whole_update_share"], scale=100),
        ]
        for row in result["rows"]
    ]
    return markdown(header, lines)


if __name__ == "__main__":
    main("objective_cost", __doc__, measure, table)
