"""What docs/trl.md claims, measured on a CPU: `python labs/gpu/measure.py --json docs/results/trl.json` (five minutes).

Two tables on SmolLM2-135M-Instruct. Overlap: how much of its groups is shared, by temperature and group size; groups of
4 and 8 are the first ones of the groups of 16. Cost: the seconds that `ProcessGRPOTrainer` adds to TRL's own update.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from minigrpo import step_sizes
from minigrpo.files import check_writable, write_json
from minigrpo.integrations.trl import ProcessGRPOTrainer
from minigrpo.llm.models import checkpointing_name, load_model
from minigrpo.llm.prompts import encode_prompts
from minigrpo.llm.sampling import sample_completions
from minigrpo.llm.tasks import load_task
from minigrpo.text import text_table

TEMPERATURES, GROUP_SIZES, PROMPTS, TOKENS = (0.5, 0.75, 1.0, 1.25), (4, 8, 16), 8, 64


def overlap(model: str) -> list[dict]:
    """The share of tokens whose prefix another completion has, and the mean of 1/|λ|."""
    task, loaded, rows = load_task("sums-steps", train_size=PROMPTS), load_model(model), []
    prompts = encode_prompts(loaded.tokenizer, task.train["prompt"], task.system_prompt)
    for temperature in TEMPERATURES:
        drawn = sample_completions(
            loaded.model,
            prompts,
            group_size=max(GROUP_SIZES),
            max_new_tokens=TOKENS,
            eos_ids=loaded.eos_ids,
            pad_id=loaded.tokenizer.pad_token_id,
            temperature=temperature,
            generator=torch.Generator().manual_seed(0),
        )
        for G in GROUP_SIZES:
            mask = drawn.completion_mask[:, :G]
            sizes = step_sizes(drawn.completion_ids[:, :G], mask)[mask]
            row = {"table": "overlap", "temperature": temperature, "group_size": G}
            rows.append(row | {"shared": (sizes > 1).double().mean().item(), "weight": (1 / sizes).mean().item()})
    return rows


def cost(model: str, updates: int) -> list[dict]:
    """Seconds of an update, and of them what the adapter adds: its methods' time less that of TRL's under them."""
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(kind: type, name: str) -> None:
        inner = getattr(kind, name)

        def call(self, *arguments):
            start = time.process_time()
            result = inner(self, *arguments)
            spent[f"{kind.__name__}.{name}"].append(time.process_time() - start)
            return result

        setattr(kind, name, call)

    names = ("_generate_and_score_completions", "_compute_loss")
    for name in names:
        timed(GRPOTrainer, name)
        timed(ProcessGRPOTrainer, name)
    timed(GRPOTrainer, "training_step")
    task, loaded = load_task("sums-steps", train_size=PROMPTS), load_model(model)
    chats = [[{"role": "user", "content": prompt}] for prompt in task.train["prompt"]]
    with tempfile.TemporaryDirectory() as out:
        args = GRPOConfig(
            out,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=TOKENS,
            max_steps=updates,
            **{checkpointing_name(GRPOConfig): False},
        )
        trainer = ProcessGRPOTrainer(
            loaded.model,
            lambda completions, **columns: [float(len(c[0]["content"]) % 2) for c in completions],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": chats}),
            processing_class=loaded.tokenizer,
            pack=False,  # TRL's own update, to which the objective adds
        )
        trainer.train()
    outer, inner = (spent[f"{kind}.{names[0]}"] for kind in ("ProcessGRPOTrainer", "GRPOTrainer"))
    scoring = median(whole - part for whole, part in zip(outer, inner, strict=True))
    outer, inner = (spent[f"{kind}.{names[1]}"] for kind in ("ProcessGRPOTrainer", "GRPOTrainer"))
    metrics = median(
        whole - part for whole, part in zip(outer, inner[::2], strict=True)
    )  # the second pass has no forward
    update = median(spent["GRPOTrainer.training_step"])  # sampling, loss and backward pass
    seconds = {"update_seconds": update, "scoring_seconds": scoring, "metrics_seconds": metrics}
    return [{"table": "cost", "updates": updates, **seconds}]


def tables(rows: list[dict]) -> str:
    """Both tables as text."""
    shared = [row for row in rows if row["table"] == "overlap"]
    header = ("temperature", *(text for G in GROUP_SIZES for text in (f"G = {G}: shared", "mean 1/|λ|")))
    lines = []
    for temperature in TEMPERATURES:
        found = [row for row in shared if row["temperature"] == temperature]
        cells = [text for row in found for text in (f"{row['shared']:.0%}", f"{row['weight']:.2f}")]
        lines.append((f"{temperature:g}", *cells))
    (row,) = [row for row in rows if row["table"] == "cost"]
    added = (row["scoring_seconds"] + row["metrics_seconds"]) / row["update_seconds"]
    seconds = [f"{row[f'{name}_seconds']:.4f}" for name in ("update", "scoring", "metrics")]
    header2 = ("an update, s", "added by steps and weights, s", "added by the metrics, s", "added together")
    return f"{text_table(header, lines)}\n\n{text_table(header2, [(*seconds, f'{added:.2%}')])}"


def main(argv: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure what docs/trl.md claims.")
    parser.add_argument("--model", default="smollm2-135m", help="default smollm2-135m")
    parser.add_argument("--updates", type=int, default=4, help="timed updates (default 4)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the result")
    arguments = parser.parse_args(argv)
    check_writable(arguments.json)
    rows = overlap(arguments.model) + cost(arguments.model, arguments.updates)
    print(tables(rows))
    result = {"model": arguments.model, "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(arguments.json, result | {"rows": rows, "finished": True})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
