"""How long are the updates of GRPO and λ-GRPO on a language model, at one learning rate?

λ-GRPO divides by numbers of at least 1, so its gradient is shorter. AdamW divides a gradient by its own running size,
so its updates need not be. This measures ‖θ after − θ before‖ of every optimiser step of `llm train` on `tiny`, over
paired seeds: `python docs/update_length.py --json docs/results/update_length.json` (minutes). The ratio
tells at which learning rate GRPO's updates would be as long as λ-GRPO's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from minigrpo.files import write_json
from minigrpo.llm.settings import Settings
from minigrpo.llm.training import train

OBJECTIVES = ("grpo", "lambda_grpo")


def lengths(settings: Settings) -> list[float]:
    """Train one run, and return the length of each of its updates."""
    before: list[torch.Tensor] = []
    found: list[float] = []

    def keep(optimizer: torch.optim.Optimizer, *_) -> None:
        before[:] = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def measure(optimizer: torch.optim.Optimizer, *_) -> None:
        after = (p.detach() for group in optimizer.param_groups for p in group["params"])
        squares = ((a - b).square().sum() for a, b in zip(after, before, strict=True))
        found.append(float(torch.stack([*squares]).sum().sqrt()))

    hooks = (register_optimizer_step_pre_hook(keep), register_optimizer_step_post_hook(measure))
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(settings, Path(folder) / "run", progress=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(arguments.seeds):
        for objective in OBJECTIVES:
            settings = Settings(
                objective=objective,
                updates=arguments.updates,
                learning_rate=arguments.learning_rate,
                seed=seed,
                eval_every=arguments.updates,
            )
            mean = statistics.fmean(lengths(settings))
            rows.append({"objective": objective, "seed": seed, "mean_length": mean})
            print(f"{objective}, seed {seed}: mean length of an update {mean:.5f}", flush=True)
    means = {
        objective: statistics.fmean(row["mean_length"] for row in rows if row["objective"] == objective)
        for objective in OBJECTIVES
    }
    ratio = means["lambda_grpo"] / means["grpo"]
    print(f"λ-GRPO's updates are {ratio:.3f} times as long as GRPO's")
    print(f"GRPO's are as long at learning rate {ratio * arguments.learning_rate:.3g}")
    if arguments.json:
        settings = {"updates": arguments.updates, "learning_rate": arguments.learning_rate}
        write_json(
            arguments.json,
            {"settings": settings, "rows": rows, "ratio": ratio, "finished": True},
        )


if __name__ == "__main__":
    main()
