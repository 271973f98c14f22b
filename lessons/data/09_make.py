"""Make the logs that lesson 09 reads: `python lessons/data/09_make.py TINY LAPTOP OVERLAP FAILED`.

The four folders hold runs of the following commands; docs/results.md has the first three, and what came of them.

    TINY     python -m minigrpo llm compare --updates 400 --eval-every 10 --learning-rates 0.00005 --seeds 5 --out TINY
    LAPTOP   python -m minigrpo llm compare --preset laptop --updates 12 --max-new-tokens 16 --temperature 1
             --micro-batch 8 --eval-every 4 --seeds 5 --out LAPTOP
    OVERLAP  python -m minigrpo llm compare --preset laptop --updates 12 --max-new-tokens 16 --temperature 0.7
             --micro-batch 8 --eval-every 4 --seeds 5 --group-size 16 --out OVERLAP
    FAILED   python -m minigrpo llm train --eval-every 10 --out FAILED/healthy
             python -m minigrpo llm train --eval-every 10 --learning-rate 0.003 --out FAILED/rate
             python -m minigrpo llm train --eval-every 10 --temperature 0.1 --out FAILED/cold
             python -m minigrpo llm train --eval-every 10 --max-new-tokens 7 --out FAILED/short

Two cores, Python 3.11, torch 2.13; one to two minutes a run of `tiny`, two to four of SmolLM2.
"""

import csv
import sys
from pathlib import Path

import torch

from minigrpo.files import write_json
from minigrpo.llm.models import load_model
from minigrpo.llm.runs import load_run, read_metrics, read_settings
from minigrpo.llm.scoring import score_groups
from minigrpo.llm.tasks import load_task

DATA = Path(__file__).parent
COLUMNS = ("reward", "entropy", "length", "path_depth", "intermediate_proportion", "step_size")
TOLD = ("zero_variance", "capped")  # what gives a failed run away


def rows_of(run: Path, every: int, columns: tuple[str, ...]) -> list[dict]:
    """A run's metrics, each the mean over `every` updates, with the accuracy of the last of them where there is one."""
    metrics, rows = read_metrics(run), []
    for end in range(0, len(metrics), every):
        part = metrics[max(0, end - every + 1) : end + 1]
        row = {name: sum(one[name] for one in part) / len(part) for name in columns}
        rows.append({"update": metrics[end]["update"], "eval_accuracy": metrics[end].get("eval_accuracy", "")} | row)
    return rows


def write_csv(name: str, rows: list[dict]) -> None:
    """Write rows, numbers to four places."""
    with (DATA / name).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(rows[0])
        table.writerows([round(v, 4) if isinstance(v, float) else v for v in row.values()] for row in rows)


def compared(setting: str, folder: Path, every: int) -> list[dict]:
    """The runs of `llm compare` at learning rate 0.00005 (tiny) or 0.00002 (SmolLM2)."""
    runs = sorted(path for path in folder.glob("*-lr[25]e-05-seed?") if not path.name.startswith("prm"))
    rows = []
    for run in runs:
        settings = read_settings(run)
        same = {"setting": setting, "objective": settings.objective, "seed": settings.seed}
        rows += [same | row for row in rows_of(run, every, COLUMNS)]
    return rows


def samples(run: Path) -> list[dict]:
    """Groups of eight of SmolLM2, before and after the run, on held-out problems."""
    settings = read_settings(run)
    task = load_task(settings.task, heldout_size=settings.eval_size)
    problems = task.heldout[:4]
    rows = []
    for when in ("before", "after"):
        loaded = load_model(settings.model) if when == "before" else load_run(run, settings)[0]
        scored = score_groups(
            loaded.model,
            loaded.tokenizer,
            task,
            problems,
            group_size=settings.group_size,
            max_new_tokens=settings.max_new_tokens,
            generator=torch.Generator().manual_seed(0),
        )
        for p, prompt in enumerate(problems["prompt"]):
            completions = scored.texts[p * settings.group_size : (p + 1) * settings.group_size]
            row = {"when": when, "prompt": prompt, "completions": completions}
            rows.append(row | {"rewards": scored.rewards[p].tolist()})
    return rows


def main() -> None:
    """Write the files."""
    tiny, laptop, overlap, failed = map(Path, sys.argv[1:])
    write_csv("09_tiny.csv", compared("tiny", tiny, every=10))
    settings = {"G = 8, temperature 1": laptop, "G = 16, temperature 0.7": overlap}
    write_csv("09_smollm2.csv", [row for name, folder in settings.items() for row in compared(name, folder, every=1)])
    names = ("healthy", "rate", "cold", "short")
    rows = [{"run": name} | row for name in names for row in rows_of(failed / name, 1, (*COLUMNS, *TOLD))]
    write_csv("09_failed.csv", rows)
    write_json(DATA / "09_samples.json", samples(laptop / "grpo-lr2e-05-seed0"))


if __name__ == "__main__":
    main()
