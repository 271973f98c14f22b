"""How much a group shares while a policy trains: the paper's Experiment 1 on toy tasks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Mapping, Sequence

from minigrpo.trainer import Config, train

COLUMNS = ("update", "reward", "entropy", "path_depth", "intermediate_proportion", "step_size")
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
    "FrozenLake": Config(
        env_id="FrozenLake-v1", env_kwargs={"is_slippery": False}, groups=2, updates=200
    ),
}


def overlap(
    runs: Mapping[str, Config] = OVERLAP_RUNS,
    *,
    group_sizes: Sequence[int] = (6, 36),
    progress: bool = True,
) -> Generator[dict, None, bool]:
    """Measure how much a group shares as a policy trains.

    Args:
        runs: settings of a run by the name of its task.
        group_sizes: G, each with every run.
        progress: show bars.

    Yields:
        A row for each task, G and update: {task, group_size} and the COLUMNS of `trainer.train`.

    Returns:
        Whether all runs reached their end; False after the rows of a run that Ctrl-C ended.

    Raises:
        ValueError: as `Config` and `train`.
    """
    for (task, config), G in itertools.product(runs.items(), group_sizes):
        result = train(dataclasses.replace(config, group_size=G), progress=progress)
        for row in result.rows:
            yield {"task": task, "group_size": G} | {name: row[name] for name in COLUMNS}
        if not result.finished:
            return False
    return True
