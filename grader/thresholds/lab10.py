"""How far honest runs are from the limits of lab 10, over many seeds: behind OWN, DEVIATIONS and COPY of `bundles`.

`python -m grader.thresholds.lab10 --seeds 32` adds pairs of runs to grader/thresholds/lab10.json, with the settings of
the lab and interrupted every second, more often than there; what is there already is kept. Ten minutes.
tests/test_lab10.py reads it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from grader import bundles
from grader.adapters import deviation
from minigrpo.files import write_json
from minigrpo.llm.runs import can_resume
from minigrpo.llm.settings import Settings
from minigrpo.llm.training import train

RESULT = Path(__file__).with_suffix(".json")
# what the lab tells students to start from
RECIPE: dict[str, Any] = {
    "updates": 60,
    "learning_rate": 1e-4,
    "max_new_tokens": 16,
    "eval_size": 200,
}
MINUTES = 0.02  # of each call
NAMES = ("own", "deviation", "copy", "difference", "resumed")


def one_run(settings: Settings, folder: Path) -> None:
    """Make a run, interrupted again and again."""
    done = False
    while not done:
        done = train(
            settings, folder, resume=can_resume(folder), max_minutes=MINUTES, progress=False
        )


def one_pair(seed: int) -> dict:
    """Make the two runs of a seed, pack them, and measure them as the grader does."""
    with tempfile.TemporaryDirectory() as folder:
        for objective in bundles.OBJECTIVES:
            settings = Settings(objective=objective, seed=seed, **RECIPE)
            one_run(settings, Path(folder) / f"{objective}-{seed}")
        contents, said = bundles.pack_runs(Path(folder))
    assert not said
    names = [f"{objective}-{seed}" for objective in bundles.OBJECTIVES]
    found = json.loads(contents[bundles.RUNS])
    weights = bundles.read_weights(contents[bundles.WEIGHTS], names)
    runs = [bundles.read_run(name, found[name], weights[name]) for name in names]
    size = RECIPE["eval_size"]
    tasks = [bundles.own_problems(size), bundles.fresh_problems(1000 + seed % 4)]
    row: dict[str, Any] = {"seed": seed, "own": 0.0, "deviation": 0.0}
    for run in runs:
        own, fresh = bundles.accuracies(run.weights, RECIPE["max_new_tokens"], tasks)
        row["own"] = max(row["own"], abs(own - run.claims[1]))
        gap = deviation(run.claims[1], size, fresh, bundles.FRESH)
        row["deviation"] = max(row["deviation"], gap)
    first = {name: weight.half().float() for name, weight in bundles.first_weights().items()}
    shorter = min(bundles.distance(run.weights, first) for run in runs)
    row["copy"] = bundles.distance(runs[0].weights, runs[1].weights) / shorter
    row["difference"] = runs[1].claims[1] - runs[0].claims[1]
    row["resumed"] = min(len(run.resumed) for run in runs)
    return row


def main() -> None:
    """Make the pairs of so many seeds; what the file holds of them already is kept."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["pairs"] if RESULT.exists() else []
    done = {row["seed"] for row in rows}
    for seed in range(options.seeds):
        if seed not in done:
            rows.append(one_pair(seed))
            write_json(RESULT, {"recipe": RECIPE, "summary": summary(rows), "pairs": rows})


def summary(rows: list[dict]) -> dict:
    """Smallest and largest value of each number."""
    ends = {
        name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in NAMES
    }
    return {"seeds": len(rows)} | ends


if __name__ == "__main__":
    main()
