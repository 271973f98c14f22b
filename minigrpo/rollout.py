"""Groups of episodes from one start state, and Monte-Carlo values from any prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.checks import check_group
from minigrpo.losses import token_logps

# (states, completion_ids), int (…, T) each → logits (…, T, A)
Policy = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rollout:
    """A group of G episodes (or, stacked, P groups of them), padded on the right.

    completion_ids: int (…, G, T), the actions; completion_mask: bool (…, G, T), True where an action was taken;
    old_logps: float (…, G, T), ln π_old of each action, in nats; rewards: float (…, G), summed over the episode;
    states: int (…, G, T), the observation before each action.
    """

    completion_ids: Tensor
    completion_mask: Tensor
    old_logps: Tensor
    rewards: Tensor
    states: Tensor


def make_envs(env_id: str, group_size: int, **kwargs) -> list[gym.Env]:
    """Make one copy of a Gymnasium task for each completion of a group.

    Args: env_id and its kwargs as for `gymnasium.make`; group_size G.
    Raises: ValueError where the task is unknown, refuses its arguments, or has spaces other than Discrete from 0.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    try:
        envs = [gym.make(env_id, disable_env_checker=True, **kwargs) for _ in range(group_size)]
    except (gym.error.Error, TypeError, LookupError, ImportError) as error:
        raise ValueError(
            f"env {env_id!r} can't be made with {kwargs}: {type(error).__name__}: {error}"
        ) from error
    for name in ("observation_space", "action_space"):
        space = getattr(envs[0], name)
        if not isinstance(space, gym.spaces.Discrete) or space.start != 0:
            raise ValueError(f"env {env_id!r} must have Discrete(n) as its {name}, got {space}")
    return envs


@torch.no_grad()
def sample_group(
    envs: Sequence[gym.Env],
    policy: Policy,
    *,
    generator: torch.Generator,
    start_seed: int = 0,
    prefix: Sequence[int] = (),
    max_tokens: int = 1000,
) -> Rollout:
    """Sample one episode from each env with the policy, all from the start state that `start_seed` gives.

    Every env is reset with the same seed and then gets a random stream of its own, so that groups share their start
    and transitions stay independent where the task has random ones. The actions of `prefix` are taken first.

    Args:
        envs: G copies of one task.
        policy: that acts.
        generator: the only source of randomness.
        start_seed: of the reset: all copies start alike.
        prefix: actions that are taken first, the same in all.
        max_tokens: where an episode that does not end is cut, with the rewards so far.

    Returns: Rollout with (G, T); old_logps in the dtype of the policy, as are the rewards.

    Raises: ValueError for logits that are not finite.
    """
    G = len(envs)
    state = torch.tensor([env.reset(seed=start_seed)[0] for env in envs])  # (G,)
    streams = torch.randint(2**62, (G,), generator=generator).tolist()
    for env, seed in zip(envs, streams, strict=True):
        env.unwrapped.np_random = np.random.default_rng(seed)
    alive = torch.ones(G, dtype=torch.bool)
    rewards = [0.0] * G
    states, actions, masks, logps = [], [], [], []  # of each token, (G,)
    while alive.any() and len(actions) < max_tokens:
        # 1. Ask the policy. The action that is still to come is a place that it does not see.
        t = len(actions)
        states.append(state)
        taken = torch.stack([*actions, torch.zeros(G, dtype=torch.long)], dim=1)  # (G, t + 1)
        logits = policy(torch.stack(states, dim=1), taken)[:, -1]  # (G, A)
        if not logits.isfinite().all():
            raise ValueError(
                "policy must give finite logits, got nan or infinity: was its learning_rate too large?"
            )

        # 2. Take the prefix's action, or draw one.
        if t < len(prefix):
            action = torch.full((G,), prefix[t])
        else:
            action = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
        actions.append(action)
        masks.append(alive.clone())
        logps.append(token_logps(logits, action))

        # 3. Step the tasks that go on.
        state = state.clone()
        for i in alive.nonzero().squeeze(1).tolist():
            state[i], reward, terminated, truncated, _ = envs[i].step(int(action[i]))
            rewards[i] += float(reward)
            alive[i] = not (terminated or truncated)
    mask = torch.stack(masks, dim=1)
    old_logps = torch.where(mask, torch.stack(logps, dim=1), 0)
    ids = torch.stack(actions, dim=1).masked_fill(~mask, 0)
    return Rollout(
        ids,
        mask,
        old_logps,
        torch.tensor(rewards, dtype=old_logps.dtype),
        torch.stack(states, dim=1),
    )


def stack_groups(rollouts: Sequence[Rollout]) -> Rollout:
    """Stack P groups of one size G into one batch (P, G, T), padded to the longest."""
    longest = max(rollout.completion_ids.shape[-1] for rollout in rollouts)

    def stack(name: str) -> Tensor:
        parts = [getattr(rollout, name) for rollout in rollouts]
        return torch.stack([F.pad(part, (0, longest - part.shape[-1])) for part in parts])

    return Rollout(
        *(stack(name) for name in ("completion_ids", "completion_mask", "old_logps")),
        torch.stack([rollout.rewards for rollout in rollouts]),
        stack("states"),
    )


def state_action_ids(rollout: Rollout, num_actions: int) -> Tensor:
    """Name each token by its state and its action, s·A + a: what steps must be keyed by where transitions are random.

    Returns: int (…, G, T).
    """
    return rollout.states * num_actions + rollout.completion_ids


def fresh_process_rewards(
    envs: Sequence[gym.Env],
    policy: Policy,
    rollout: Rollout,
    *,
    generator: torch.Generator,
    start_seed: int = 0,
    samples: int | None = None,
) -> Tensor:
    """Estimate each token's value from new episodes that take its prefix: the explicit MC-PRM, paid in extra rollouts.

        Q̂_{i,t} = 1/n · Σₖ r( y⁽ⁱ⁾₀…ₜ followed by a fresh continuation k )

    `minigrpo.process_rewards` estimates the same expectation from the group itself, for free, with n = |λ^(i,t)|.
    Where transitions are random the value is that of the actions alone.

    Args:
        envs: copies of the task.
        policy: that goes on.
        rollout: the group, (G, T).
        generator: of the random numbers.
        start_seed: that of the rollout's reset.
        samples: n, fresh continuations of each prefix, a multiple of len(envs), which is the default.

    Returns: (G, T) in the dtype of the rewards; 0 where masked.

    Raises: ValueError for more than one group, or samples that are no multiple of len(envs).
    """
    check_group(rollout.completion_ids, rollout.completion_mask)
    if rollout.completion_ids.ndim != 2:
        raise ValueError(
            f"rollout must be one group (G, T), got {tuple(rollout.completion_ids.shape)}"
        )
    samples = len(envs) if samples is None else samples
    if samples < 1 or samples % len(envs):
        raise ValueError(
            f"samples must be a multiple of the number of envs ({len(envs)}), got {samples}"
        )
    values: dict[tuple[int, ...], Tensor] = {}
    result = torch.zeros_like(rollout.old_logps, dtype=rollout.rewards.dtype)
    for i, t in rollout.completion_mask.nonzero().tolist():
        prefix = tuple(rollout.completion_ids[i, : t + 1].tolist())
        if prefix not in values:
            outcomes = [
                sample_group(
                    envs, policy, generator=generator, start_seed=start_seed, prefix=prefix
                ).rewards
                for _ in range(samples // len(envs))
            ]
            values[prefix] = torch.cat(outcomes).mean()
        result[i, t] = values[prefix]
    return result
