"""Toy tasks on Gymnasium, registered on `import minigrpo`: small enough that every process step can be seen.

Both are deterministic, start from the same state within a group and give one reward, at the end: what a completion is
for a language model, an episode is here, and an action is a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np


class PathTreeEnv(gym.Env):
    """The paper's trap: a binary tree with one best leaf whose siblings below the n-th branching are the worst.

    ## Description
    Walk from the root of a binary tree to a leaf. One path is the target. Paths that share its first `n` actions but
    miss it get `r_neg`, all others a comfortable 0.7: to find the target, a policy must keep walking where most
    who walked before it lost.

    ## Action Space
    `Discrete(2)`: 0 goes left (L), 1 goes right (R).

    ## Observation Space
    `Discrete(2^(depth+1) − 1)`: the node's number, level by level from the root 0; children of k are 2k+1 and 2k+2.

    ## Rewards
    0 before the leaf; there +1.0 on the target, `r_neg` on another path that shares its first `n` actions, else +0.7.

    ## Starting State
    The root. Nothing is random but the target, drawn once from `target_seed` where `target` is not given.

    ## Episode End
    Terminates at the leaf, after `depth` actions.

    ## Arguments
    depth in [1, 30]; n in [0, depth); r_neg finite; target: `depth` actions, or None to draw it; target_seed ≥ 0.

    ## Source
    Sullivan & Koller (ICML 2026, arXiv 2509.21154), the toy experiment of Table 1: depth 4, n ∈ {1, 2}, r_neg
    ∈ {−0.5, −1.0, −1.5}.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}
    action_names = ("L", "R")
    r_target, r_other = 1.0, 0.7

    def __init__(
        self,
        depth: int = 4,
        n: int = 1,
        r_neg: float = -0.5,
        target: Sequence[int] | None = None,
        target_seed: int = 0,
        render_mode: str | None = None,
    ) -> None:
        if depth not in range(1, 31):
            raise ValueError(f"depth must be a whole number from 1 to 30, got {depth}")
        if n not in range(depth):
            raise ValueError(
                f"n must be a whole number from 0 to {depth - 1}, below depth, got {n}"
            )
        if not np.isfinite(r_neg):
            raise ValueError(f"r_neg must be finite, got {r_neg}")
        if target_seed < 0:
            raise ValueError(f"target_seed must be at least 0, got {target_seed}")
        if target is None:
            target = np.random.default_rng(target_seed).integers(2, size=depth).tolist()
        if len(target) != depth or not set(target) <= {0, 1}:
            raise ValueError(f"target must hold {depth} actions of 0 and 1, got {target!r}")
        self.depth, self.n, self.r_neg, self.target = depth, n, float(r_neg), tuple(target)
        self.render_mode = render_mode
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Discrete(2 ** (depth + 1) - 1)

    def outcome(self, path: Sequence[int]) -> float:
        """The reward of a whole path of `depth` actions."""
        if tuple(path) == self.target:
            return self.r_target
        return self.r_neg if tuple(path[: self.n]) == self.target[: self.n] else self.r_other

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.path: list[int] = []
        self.node = 0
        return self.node, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        self.path.append(int(action))
        self.node = 2 * self.node + 1 + int(action)
        done = len(self.path) == self.depth
        return self.node, self.outcome(self.path) if done else 0.0, done, False, {}

    def render(self) -> str:
        return " ".join(self.action_names[action] for action in self.path) or "(root)"


class ArithmeticChainEnv(gym.Env):
    """Reach a number by a chain of small operations and say when you are there.

    ## Description
    From `start`, apply operations one after the other, then end the chain. A shared prefix of two chains is a shared
    intermediate result, so a process step can be read: "2 +3 ×2" is worth what its continuations are worth.

    ## Action Space
    `Discrete(4)`: +1, +3, ×2, and = (the end of the chain, its EOS).

    ## Observation Space
    `Discrete((limit + 1)²)`: target · (limit + 1) + value, both numbers the policy needs.

    ## Rewards
    0 before the end; there 1 if the value is the target, else 0: an outcome that anyone can verify.

    ## Starting State
    Where they are not given, start in [1, 3] and then target in [start + 4, start + 9] are drawn from the reset's seed.

    ## Episode End
    Terminates on = or after `max_length` actions (a chain that was never ended earns 0). A value above `limit` stays
    at `limit`.

    ## Arguments
    start in [1, limit], at most limit − 9 where the target is drawn, or None; target in [1, limit] or None;
    max_length ≥ 1; limit ≥ 12.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}
    action_names = ("+1", "+3", "×2", "=")
    operations = (lambda x: x + 1, lambda x: x + 3, lambda x: 2 * x)

    def __init__(
        self,
        start: int | None = None,
        target: int | None = None,
        max_length: int = 6,
        limit: int = 24,
        render_mode: str | None = None,
    ) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        if limit < 12:
            raise ValueError(f"limit must be at least 12, got {limit}")
        for name, value, most in (
            ("start", start, limit - 9 * (target is None)),
            ("target", target, limit),
        ):
            if value is not None and not 1 <= value <= most:
                raise ValueError(
                    f"{name} must be from 1 to {most} with limit {limit}, or None to draw it, got {value}"
                )
        self.start, self.target, self.max_length, self.limit = start, target, max_length, limit
        self.render_mode = render_mode
        self.action_space = gym.spaces.Discrete(4)
        self.observation_space = gym.spaces.Discrete((limit + 1) ** 2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.value = int(self.np_random.integers(1, 4)) if self.start is None else self.start
        self.goal = (
            self.value + int(self.np_random.integers(4, 10)) if self.target is None else self.target
        )
        self.text, self.length = f"{self.value}", 0
        return self._observation(), {"target": self.goal}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        self.length += 1
        ended = int(action) == len(self.operations)
        if not ended:
            self.value = min(self.operations[int(action)](self.value), self.limit)
        self.text += f" {self.action_names[int(action)]}" + ("" if ended else f" → {self.value}")
        reward = float(ended and self.value == self.goal)
        return (
            self._observation(),
            reward,
            ended or self.length == self.max_length,
            False,
            {"target": self.goal},
        )

    def render(self) -> str:
        return f"{self.text}   (target {self.goal})"

    def _observation(self) -> int:
        return self.goal * (self.limit + 1) + self.value


gym.register("minigrpo/PathTree-v0", entry_point="minigrpo.envs:PathTreeEnv")
gym.register("minigrpo/ArithmeticChain-v0", entry_point="minigrpo.envs:ArithmeticChainEnv")
