"""The paper's Table 2: exact match on five benchmarks of mathematics, with intervals and the paper's averages.

    python -m minigrpo llm table2 eval --setting qwen-lambda_grpo-0.04 --adapter runs/qwen --json FILE
    python -m minigrpo llm table2 show FILE…

Source: Sullivan & Koller, arXiv 2509.21154, Table 2; of its cells we have the averages only. How it sampled, and how
long completions could be, is not known to us: here greedy, up to --max-new-tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from minigrpo.checks import check_choice
from minigrpo.files import write_json
from minigrpo.llm.rewards import boxed, math_equal
from minigrpo.llm.tasks import Row, Task, check_golds, hub_rows, json_lines, texts_of
from minigrpo.paper import TABLE2, TABLE2_AVERAGES
from minigrpo.text import text_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# the reference code's
SYSTEM_PROMPT = "Let's think step by step and output the final answer within \\boxed{}."


@dataclass(frozen=True)
class Benchmark:
    """Where the problems are on the Hub, and in which fields."""

    hub_id: str
    split: str
    problem: str
    answer: str


BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    "amc23": Benchmark("knoveleng/AMC-23", "train", "problem", "answer"),
    "minerva": Benchmark("knoveleng/Minerva-Math", "train", "problem", "solution"),
    "olympiadbench": Benchmark("knoveleng/OlympiadBench", "train", "question", "answer"),
}
MODELS = {
    "qwen": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "llama": "meta-llama/Llama-3.2-1B-Instruct",
}


def load_benchmark(name: str, folder: str | Path | None = None) -> list[Row]:
    """Read a benchmark's (problem, answer) pairs, from `folder`/name.jsonl where a folder is given, else from the Hub.

    A line of the file is one JSON object with the fields of the Hub's data set. Of an answer with a \\boxed{…} only
    what is in the last box counts.

    Raises: ValueError for an unknown name, another column or a line that is wrong (file, line, field); OSError for a
    file or data set that can't be read.
    """
    check_choice("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    fields = benchmark.problem, benchmark.answer
    if folder is None:
        advice = "give a folder of local files with --data"
        rows = hub_rows(benchmark.hub_id, None, fields=fields, split=benchmark.split, advice=advice)
    else:
        lines = json_lines(Path(folder) / f"{name}.jsonl", f"as in {benchmark.hub_id}")
        rows = [texts_of(row, where, fields[:1], fields[1]) for where, row in lines]
    return [(problem, last_box(answer).strip()) for problem, answer in rows]


def last_box(text: str) -> str:
    """What is in the last \\boxed{…} of a text, braces matched; the text itself where there is none."""
    before, found, rest = text.rpartition("\\boxed{")
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0 and found:
            return rest[:place]
    return text


def evaluate_benchmarks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    names: Sequence[str] = tuple(BENCHMARKS),
    folder: str | Path | None = None,
    system_prompt: str | None = SYSTEM_PROMPT,
    **options: Any,
) -> list[dict[str, Any]]:
    """Solve benchmarks.

    Args:
        model: the policy.
        tokenizer: its own, with a chat template.
        names: of BENCHMARKS.
        folder: with a NAME.jsonl of each; None: they come from the Hub.
        system_prompt: None for none.
        options: those of `minigrpo.llm.evaluation.evaluate`, max_new_tokens at least.

    Returns:
        A row each with benchmark, accuracy, its 95% Wilson interval (ci_low, ci_high) and problems.

    Raises:
        As `load_benchmark`, and as `check_golds` of tasks, before the first completion is sampled.
    """
    from minigrpo.llm.evaluation import evaluate

    tasks = {
        name: _task_of(name, folder, options["max_new_tokens"], system_prompt) for name in names
    }
    rows = []
    for name, task in tasks.items():
        result = evaluate(model, tokenizer, task, **options)
        columns = ("accuracy", "ci_low", "ci_high", "problems")
        rows.append({"benchmark": name} | {column: result[column] for column in columns})
        print(f"{name}: {_cell(rows[-1])}", file=sys.stderr)
    return rows


def _task_of(
    name: str, folder: str | Path | None, max_new_tokens: int, system_prompt: str | None
) -> Task:
    """A benchmark as a task that has held-out problems alone."""
    from datasets import Dataset

    problems, answers = zip(*load_benchmark(name, folder), strict=True)
    heldout = Dataset.from_dict({"prompt": problems, "answer": answers})
    golds = check_golds(f"benchmark {name!r}", answers, math_equal, boxed)
    return Task(
        name, heldout.select([]), heldout, math_equal, max_new_tokens, system_prompt, *golds
    )


def average(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of K benchmarks' accuracies, each counting the same, and its 95% interval over problems.

    mean p̂ₖ ± 1.96 · √( Σₖ p̂ₖ(1 − p̂ₖ)/nₖ ) / K
    """
    mean = sum(row["accuracy"] for row in rows) / len(rows)
    variance = sum(row["accuracy"] * (1 - row["accuracy"]) / row["problems"] for row in rows)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(variance) / len(rows)
    return {"accuracy": mean, "ci_low": mean - half, "ci_high": mean + half}


def table2_text(runs: Sequence[dict[str, Any]]) -> str:
    """Table 2: our accuracies with 95% intervals, empty where not run, above the paper's ± one standard error."""
    found = {run["setting"]: run["rows"] for run in runs}
    header = ("setting", *BENCHMARKS, "average")
    lines = []
    for setting, paper in TABLE2_AVERAGES.items():
        rows = {row["benchmark"]: row for row in found.get(setting, [])}
        whole = _cell(average([*rows.values()])) if set(rows) == set(BENCHMARKS) else ""
        cells = [_cell(rows[name]) if name in rows else "" for name in BENCHMARKS]
        lines.append((setting, *cells, whole))
        printed = (f"{accuracy:.4f} ± {error:.4f}" for accuracy, error in TABLE2[setting])
        lines.append(("  the paper", *printed, f"{paper:.4f}"))
    return text_table(header, lines)


def _cell(row: dict[str, Any]) -> str:
    return f"{row['accuracy']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Describe `llm table2 eval` and `llm table2 show`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    sub = commands.add_parser("eval", help="evaluate one model on the benchmarks")
    sub.set_defaults(run=_eval)
    sub.add_argument("--setting", required=True, choices=TABLE2_AVERAGES, help="the table's line")
    sub.add_argument("--model", help="default: the setting's; a name, a Hub id or a folder")
    sub.add_argument(
        "--adapter", type=Path, help="a folder with LoRA adapters, as labs/gpu/train.py leaves them"
    )
    sub.add_argument(
        "--benchmarks",
        nargs="+",
        choices=BENCHMARKS,
        default=[*BENCHMARKS],
        help="default: all five",
    )
    sub.add_argument(
        "--data", type=Path, help="a folder of NAME.jsonl, where the Hub is out of reach"
    )
    sub.add_argument("--system-prompt", default=SYSTEM_PROMPT, help="'' for none")
    sub.add_argument(
        "--max-new-tokens", type=int, default=4096, help="OpenRS evaluates with 32768 [4096]"
    )
    sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy [0]")
    sub.add_argument("--batch", type=int, default=32, help="completions at a time [32]")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, … [cpu]")
    sub.add_argument("--json", type=Path, required=True, metavar="FILE", help="the result")

    sub = commands.add_parser("show", help="print Table 2 from results")
    sub.set_defaults(run=_show)
    sub.add_argument(
        "results",
        type=Path,
        nargs="*",
        help="files that eval wrote; without any: the paper's column",
    )


def _eval(arguments: argparse.Namespace) -> int:
    import torch

    from minigrpo.llm.models import load_model

    for name in arguments.benchmarks:
        load_benchmark(name, arguments.data)  # before the model: what is missing shows at once
    if arguments.adapter is not None and not (arguments.adapter / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"--adapter must be a folder with adapter_config.json, got {arguments.adapter}"
        )
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    name = arguments.model or MODELS[arguments.setting.partition("-")[0]]
    loaded = load_model(name, device=arguments.device, dtype=dtype)
    model = loaded.model
    if arguments.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, arguments.adapter).merge_and_unload()
    rows = evaluate_benchmarks(
        model,
        loaded.tokenizer,
        names=arguments.benchmarks,
        folder=arguments.data,
        system_prompt=arguments.system_prompt or None,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        batch=arguments.batch,
    )
    options = {"max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature}
    run = {
        "setting": arguments.setting,
        "model": name,
        "note": loaded.note,
        **options,
        "rows": rows,
        "finished": True,
    }
    write_json(arguments.json, run)
    print(table2_text([run]))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    print(table2_text([_result(path) for path in arguments.results]))
    return 0


def _result(path: Path) -> dict[str, Any]:
    """Read what eval wrote. Raises: ValueError, with the file, for anything else; OSError."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no result of eval: {error}") from error
    if not isinstance(run, dict) or not {"setting", "rows"} <= set(run):
        raise ValueError(f"{path} is no result of eval: it must hold a setting and rows")
    return run
