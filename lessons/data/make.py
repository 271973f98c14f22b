"""Make the data of lesson 07: groups sampled from SmolLM2-135M, and what its training runs wrote.

    python lessons/data/make.py samples           samples and writes lessons/data/smollm2_samples.json (5 minutes)
    python lessons/data/make.py runs DIR …        gathers run folders into lessons/data/runs.json (at once)

The run folders are those of `python -m minigrpo llm compare` and `llm train`; lesson 07 names the commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from minigrpo.files import write_text
from minigrpo.llm.models import load_model
from minigrpo.llm.runs import read_groups, read_metrics, read_settings
from minigrpo.llm.scoring import score_groups
from minigrpo.llm.tasks import load_task

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
GROUP_SIZE = 36  # the paper's larger group; its smaller one, 6, is the first six of these
TEMPERATURES = (0.4, 0.7, 1.0, 1.3)
PROMPTS = {"sums": 6, "sums-steps": 2}  # train problems of each task
COLUMNS = ("reward", "entropy", "length", "zero_variance", "path_depth", "intermediate_proportion", "step_size")
SETTINGS = ("model", "task", "objective", "group_size", "temperature", "learning_rate", "seed")


def samples() -> dict:
    """Groups of GROUP_SIZE completions at each temperature, with the text of every token that occurs in them."""
    loaded = load_model(MODEL)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    groups = []
    plan = [(task, k, tau) for task, count in PROMPTS.items() for k in range(count) for tau in TEMPERATURES]
    tasks = {name: load_task(name) for name in PROMPTS}
    for name, k, temperature in tqdm(plan, unit=" groups"):
        task, problem = tasks[name], tasks[name].train[k]
        scored = score_groups(
            model,
            tokenizer,
            task,
            tasks[name].train[k : k + 1],
            group_size=GROUP_SIZE,
            max_new_tokens=task.max_new_tokens,
            temperature=temperature,
            generator=torch.Generator().manual_seed(k),
        )
        ids, mask = scored.samples.completion_ids, scored.samples.completion_mask
        rows = zip(ids[0].tolist(), mask[0].sum(dim=1).tolist(), strict=True)
        groups.append(
            {
                "task": name,
                "prompt": problem["prompt"],
                "answer": problem["answer"],
                "temperature": temperature,
                "entropy": round(-scored.samples.old_logps[mask].mean().item(), 4),  # nats per token, an estimate
                "rewards": scored.rewards[0].tolist(),
                "completion_ids": [row[:length] for row, length in rows],
            }
        )
    about = {"model": MODEL, "weights": loaded.source, "note": loaded.note, "group_size": GROUP_SIZE}
    return about | {"tokens": _texts(tokenizer, groups), "groups": groups}


def runs(folders: list[str]) -> dict:
    """Settings and metrics of each run, and the groups that it logged at its first and its last update."""
    gathered, logged = [], []
    for folder in map(Path, folders):
        settings = read_settings(folder)
        wanted = ("update", "eval_accuracy", *COLUMNS)
        rows = [{name: _short(row[name]) for name in wanted if name in row} for row in read_metrics(folder)]
        logged_groups = read_groups(folder)
        groups = [logged_groups[0], logged_groups[-1]]
        groups = [{name: group[name] for name in ("update", "prompt", "rewards", "completion_ids")} for group in groups]
        gathered.append({name: getattr(settings, name) for name in SETTINGS} | {"rows": rows, "groups": groups})
        logged += groups
    return {"tokens": _texts(load_model(MODEL).tokenizer, logged), "runs": gathered}


def _texts(tokenizer: PreTrainedTokenizerBase, groups: list[dict]) -> dict[int, str]:
    """The text of each token that occurs in some groups."""
    tokens = {token for group in groups for row in group["completion_ids"] for token in row}
    return {token: tokenizer.decode([token]) for token in sorted(tokens)}


def _short(number: float) -> float:
    """Four digits after the point."""
    return number if isinstance(number, int) else round(number, 4)


def main(arguments: list[str]) -> int:
    """Write one of the two files; return 2 for a user's mistake."""
    if arguments == ["samples"]:
        name, found = "smollm2_samples.json", samples()
    elif arguments[:1] == ["runs"] and len(arguments) > 1:
        name, found = "runs.json", runs(arguments[1:])
    else:
        print(f"arguments must be `samples` or `runs DIR …`, got {' '.join(arguments) or 'none'}", file=sys.stderr)
        return 2
    print(write_text(HERE / name, json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
