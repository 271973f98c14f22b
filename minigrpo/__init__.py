"""minigrpo: GRPO is a process reward method, and λ-GRPO counts each step once. See the README for the way in."""

from minigrpo import envs  # registers the toy tasks with Gymnasium
from minigrpo.losses import clipped_surrogate, kl_k3, policy_loss, token_logps
from minigrpo.objectives import OBJECTIVES, group_advantages, grpo, lambda_grpo, prm
from minigrpo.steps import (
    intermediate_proportion,
    path_depth,
    process_rewards,
    same_prefix,
    step_mean,
    step_sizes,
)
from minigrpo.tree import ProcessTree

__version__ = "0.1.0"

__all__ = [
    "OBJECTIVES",
    "ProcessTree",
    "clipped_surrogate",
    "envs",
    "group_advantages",
    "grpo",
    "intermediate_proportion",
    "kl_k3",
    "lambda_grpo",
    "path_depth",
    "policy_loss",
    "prm",
    "process_rewards",
    "same_prefix",
    "step_mean",
    "step_sizes",
    "token_logps",
]
