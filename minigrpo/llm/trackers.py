"""A run's rows for TensorBoard, trackio or Weights & Biases, by the names that TRL gives the same numbers.

metrics.jsonl is written in any case, and nothing here is read again. A tracker is a function and an entry of TRACKERS:
called with the run's folder, its settings and its first update, it gives a function that takes numbers by name with
their update, and one that ends it. A run that goes on is one run there too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Generator, Mapping
from hashlib import sha256
from importlib import import_module, util
from pathlib import Path
from typing import Any

from minigrpo.llm.settings import Settings

# columns that TRL has too; what has no name of TRL's stands under minigrpo/
NAMES = {
    "reward": "train/reward",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "entropy": "train/entropy",
    "kl": "train/kl",
    "length": "train/completions/mean_length",
    "capped": "train/completions/clipped_ratio",
    "zero_variance": "train/frac_reward_zero_std",
    "seconds": "train/step_time",
    "eval_accuracy": "eval/accuracy",
    "eval_ci_low": "eval/accuracy_ci_low",
    "eval_ci_high": "eval/accuracy_ci_high",
}
LEFT_OUT = ("update", "eval_problems")  # the axis, and what does not change

Log = Callable[[Mapping[str, float], int], None]
Tracker = Callable[[Path, Settings, int], tuple[Log, Callable[[], None]]]


def named(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics by the names of trackers."""
    numbers = {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and name not in LEFT_OUT
    }
    return {NAMES.get(name, f"minigrpo/{name}"): value for name, value in numbers.items()}


def tensorboard(run: Path, settings: Settings, first: int) -> tuple[Log, Callable[[], None]]:
    """Event files in the run's folder: `tensorboard --logdir` finds those of all runs below a folder.

    Args:
        run: the folder.
        settings: not used, as manifest.json has them.
        first: what was written of it and of later updates is made again.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=first)

    def log(numbers: Mapping[str, float], update: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, update)
        writer.flush()  # a run that is killed has shown what it did

    return log, writer.close


def by_wandb(module: str) -> Tracker:
    """A tracker with wandb's functions, which trackio has too; its project is minigrpo, a run has its folder's name."""

    def start(run: Path, settings: Settings, first: int) -> tuple[Log, Callable[[], None]]:
        tracker = import_module(module)
        config = dataclasses.asdict(settings)
        name = run.resolve().name
        # the folder's path tells runs of one name apart
        more = (
            {"id": sha256(str(run.resolve()).encode()).hexdigest()[:16]}
            if module == "wandb"
            else {}
        )
        tracker.init(project="minigrpo", name=name, config=config, resume="allow", **more)
        return lambda numbers, update: tracker.log(dict(numbers), step=update), tracker.finish

    return start


TRACKERS: dict[str, Tracker] = {
    "tensorboard": tensorboard,
    "trackio": by_wandb("trackio"),
    "wandb": by_wandb("wandb"),
}


def start_trackers(
    names: Collection[str], run: Path, settings: Settings
) -> Callable[[int], contextlib.AbstractContextManager[Callable[[Mapping[str, Any]], None]]]:
    """Refuse what is unknown or not installed.

    Args:
        names: of TRACKERS.
        run: the folder.
        settings: the run's.

    Returns: what is called with the first update; inside of what it gives, rows are reported.

    Raises: ValueError for a name that is none, or a package that is missing.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"report_to must be of {', '.join(TRACKERS)}, got {name!r}")
        if util.find_spec(name) is None:
            raise ValueError(f"report_to {name} needs a package: pip install {name}")

    @contextlib.contextmanager
    def started(first: int) -> Generator[Callable[[Mapping[str, Any]], None]]:
        with contextlib.ExitStack() as stack:
            logs = []
            for name in names:
                log, end = TRACKERS[name](run, settings, first)
                stack.callback(end)
                logs.append(log)

            def report(row: Mapping[str, Any]) -> None:
                for log in logs:
                    log(named(row), row["update"])

            yield report

    return started
