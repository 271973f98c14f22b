"""What adapters that are trained as the lab says gain, over many seeds: behind GAIN and DEVIATIONS of lab 09.

`python -m grader.thresholds.lab09 --base tiny --seeds 32` adds runs to grader/thresholds/lab09.json, each graded as a
student's is; what is there already is kept. Hours for SmolLM2. tests/test_lab09.py reads it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from grader import adapters
from grader.labs.lab09 import RECIPES
from minigrpo.files import write_json
from minigrpo.llm.settings import Settings
from minigrpo.llm.training import train

RESULT = Path(__file__).with_suffix(".json")


def one_run(base: str, seed: int) -> dict:
    """Train an adapter as the lab says and evaluate it as the grader does."""
    torch.set_num_threads(1)
    recipe = RECIPES[base]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fixed: dict[str, Any] = {
            "max_new_tokens": 16,
            "lora_rank": 8,
            "lora_alpha": 16,
            "micro_batch": 16 if base != "tiny" else 64,
        }
        often: dict[str, Any] = {"eval_every": recipe["updates"], "save_every": recipe["updates"]}
        task = adapters.write_task(base, Path(folder))
        train(
            Settings(model=base, task=task, seed=seed, **fixed, **often, **recipe),
            run,
            progress=False,
        )
        adapters.save_adapter(run, Path(folder) / "adapter")
        contents = {name: (Path(folder) / "adapter" / name).read_bytes() for name in adapters.FILES}
    secret = 1000 + seed % 4  # few, so that the base is seldom evaluated
    config, claims = (
        adapters.read_config(contents[adapters.CONFIG]),
        adapters.read_claims(contents[adapters.METRICS]),
    )
    fresh, before = adapters.BASES[base].fresh, adapters.base_accuracy(base, secret)
    after = adapters.adapter_accuracy(config, contents[adapters.WEIGHTS], secret)
    pairs = ((claims.before, before), (claims.after, after))
    return {
        "base": base,
        "seed": seed,
        "gain": after - before,
        "accuracy": after,
        "deviation": max(adapters.deviation(p, claims.problems, q, fresh) for p, q in pairs),
    }


def main() -> None:
    """Run the seeds of one base; what the file holds of them already is kept."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--base", choices=RECIPES, default="tiny")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.exists() else []
    done = {(row["base"], row["seed"]) for row in rows}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        wanted = [seed for seed in range(options.seeds) if (options.base, seed) not in done]
        for future in as_completed([pool.submit(one_run, options.base, seed) for seed in wanted]):
            rows.append(future.result())
            rows.sort(key=lambda row: (row["base"], row["seed"]))
            write_json(RESULT, {"recipes": RECIPES, "summary": summary(rows), "runs": rows})


def summary(rows: list[dict]) -> dict:
    """Smallest, middle and largest value of each base."""
    bases = sorted({row["base"] for row in rows})
    return {
        base: {"seeds": sum(row["base"] == base for row in rows)} | _spread(rows, base)
        for base in bases
    }


def _spread(rows: list[dict], base: str) -> dict:
    values = {
        name: [row[name] for row in rows if row["base"] == base]
        for name in ("gain", "accuracy", "deviation")
    }
    return {
        name: [min(found), statistics.median(found), max(found)] for name, found in values.items()
    }


if __name__ == "__main__":
    main()
