"""The command line: `python -m minigrpo demo | theorem | expectation | table1 | …`, each with `--json FILE`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import webbrowser
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from minigrpo import __version__
from minigrpo.commands import INTERRUPTED, collect, run
from minigrpo.experiments import (
    LANGUAGE_POLICIES,
    LEARNING_RATES,
    TrapConfig,
    expectation,
    failed_expectations,
    failures,
    overlap,
    table1,
    table1_controls,
    theorem,
)
from minigrpo.files import check_writable, write_json, write_text
from minigrpo.paper import WORKED_EXAMPLE, WORKED_REWARDS
from minigrpo.policies import POLICIES
from minigrpo.settings import add_options, given
from minigrpo.text import (
    controls_text,
    expectation_text,
    language_table1_text,
    overlap_text,
    sparkline,
    table1_text,
    theorem_text,
    utility_text,
)
from minigrpo.trainer import Config, train
from minigrpo.tree import ProcessTree


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for a theorem that failed, 2 for a user's mistake (one sentence), 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["llm"]:
        # transformers is heavy: only where it is asked for
        from minigrpo.llm.cli import main as llm

        return llm(argv[1:])
    arguments = build_parser().parse_args(argv)
    return run(arguments, _prepared, "minigrpo", "interrupted before a result was finished")


def _prepared(arguments: argparse.Namespace) -> int:
    if arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.json:
        check_writable(arguments.json)
    torch.set_num_threads(arguments.threads)
    arguments.progress = sys.stderr.isatty() and not arguments.quiet
    return arguments.run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(
        prog="python -m minigrpo", description="GRPO is secretly a process reward model."
    )
    parser.add_argument("--version", action="version", version=f"minigrpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, call: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=call)
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
        sub.add_argument(
            "--quiet", action="store_true", help="no progress bar, not even in a terminal"
        )
        sub.add_argument(
            "--threads",
            type=int,
            default=1,
            help="torch's; these tensors are too small for more [1]",
        )
        return sub

    sub = command(
        "demo", _demo, "the tour in half a minute: tree, theorem, trap, learning curves, a report"
    )
    sub.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of report.html [%(default)s]"
    )
    sub.add_argument("--seeds", type=int, default=30, help="paired seeds of the trap [30]")

    sub = command(
        "theorem",
        _theorem,
        "loss and gradient of grpo and prm compared, then each assumption broken",
    )
    sub.add_argument(
        "--groups", type=int, default=300, help="random groups for each assumption [300]"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the groups and the policies [0]")

    text = "what GRPO and λ-GRPO do on average: every group of small trees, against the closed form"
    sub = command("expectation", _expectation, text)
    sub.add_argument("--seed", type=int, default=0, help="of policies and rewards [0]")

    sub = command(
        "table1", _table1, "the paper's trap: GRPO and λ-GRPO in six cells with paired seeds"
    )
    sub.add_argument("--seeds", type=int, help="paired seeds a cell [30; 6 of a language model]")
    text = "what is trained; language models, by AdamW, take hours for a learning rate [tabular]"
    sub.add_argument("--policy", choices=[*POLICIES, *LANGUAGE_POLICIES], help=text)
    add_options(sub, TrapConfig, only=("optimizer", "power", "updates", "group_size"))
    sub.add_argument(
        "--lr",
        type=float,
        nargs="+",
        help="learning rates; default: one chosen for policy and optimizer",
    )
    sub.add_argument(
        "--controls",
        action="store_true",
        help="learning-rate sweep, matched gradient norm, tabular Adam, other powers of |λ|",
    )
    text = "keep a language model's runs there, and go on from those that it holds"
    sub.add_argument("--csv", type=Path, metavar="FILE", help=text)

    sub = command(
        "overlap", _overlap, "how much of a completion its group shares while a policy trains"
    )
    text = "completions of a group [6 36]"
    sub.add_argument("--group-sizes", type=int, nargs="+", default=[6, 36], metavar="G", help=text)

    sub = command("train", _train, "train one policy on one Gymnasium task")
    add_options(sub, Config)
    sub.add_argument(
        "--env-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the task, as is_slippery=False",
    )
    sub.add_argument("--out", type=Path, help="folder of config.json and metrics.jsonl")

    sub = command(
        "explore", _explore, "a group as a page on which rewards and objective can be changed"
    )
    sub.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="rollouts.jsonl of a run, or the run's folder; without it the paper's worked example",
    )
    sub.add_argument(
        "--group",
        type=int,
        metavar="N",
        help="line of FILE, from 1; default: the first to see a push in",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("runs/explorer.html"), help="the page [%(default)s]"
    )
    sub.add_argument("--open", action="store_true", help="show it in a browser")

    commands.add_parser(
        "llm", help="on language models: llm train | eval | theorem | overlap | compare | plot"
    )
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from minigrpo.demo import demo  # matplotlib is heavy, and an extra

    return demo(
        arguments.out, seeds=arguments.seeds, json_file=arguments.json, progress=arguments.progress
    )


def _theorem(arguments: argparse.Namespace) -> int:
    rows, finished = collect(
        theorem(groups=arguments.groups, seed=arguments.seed, progress=arguments.progress)
    )
    print(theorem_text(rows))
    code = _finish(arguments, {"rows": rows}, finished)
    return 1 if failures(rows) else code


def _expectation(arguments: argparse.Namespace) -> int:
    rows, finished = collect(expectation(seed=arguments.seed))
    print(f"{expectation_text(rows)}\n\n{utility_text()}")
    code = _finish(arguments, {"rows": rows}, finished)
    return 1 if failed_expectations(rows) else code


def _table1(arguments: argparse.Namespace) -> int:
    if arguments.policy in LANGUAGE_POLICIES:
        return _language_table1(arguments)
    if arguments.csv:
        raise ValueError(f"--csv is for the policies {', '.join(LANGUAGE_POLICIES)}")
    arguments.seeds = 30 if arguments.seeds is None else arguments.seeds
    result: dict[str, list[dict]] = {"rows": [], "differences": [], "controls": []}
    try:
        _, finished = collect(_table1_parts(arguments, result))
    except ValueError:
        if result["rows"]:  # a learning rate broke its runs: those before it are kept
            _finish(arguments, result, False)
        raise
    return _finish(arguments, result, finished)


def _table1_parts(
    arguments: argparse.Namespace, result: dict[str, list[dict]]
) -> Generator[str, None, bool]:
    """Play Table 1, and its controls, at each learning rate; add to the result and say what was found.

    Yields: what was printed. Returns: whether all was played.
    """
    config = TrapConfig(**given(arguments, TrapConfig))
    options = {"seeds": arguments.seeds, "progress": arguments.progress}
    for lr in arguments.lr or [LEARNING_RATES[config.policy, config.optimizer]]:
        config = dataclasses.replace(config, learning_rate=lr)
        rows, differences = table1(config, **options)
        result["rows"] += rows
        result["differences"] += differences
        yield _say(table1_text(rows, differences))
        if rows[0]["seeds"] < arguments.seeds:
            return False
        if arguments.controls:
            controls, whole = collect(table1_controls(config, **options))
            result["controls"] += controls
            yield _say(f"\n{controls_text(controls)}")
            if not whole:
                return False
    return True


def _language_table1(arguments: argparse.Namespace) -> int:
    """Table 1 with a language model: a run after another, each kept when it is finished."""
    from minigrpo.llm.trap import LanguageTrap, language_trap, language_trap_rows  # heavy

    if arguments.controls or arguments.optimizer or arguments.power is not None:
        raise ValueError(
            f"--controls, --optimizer and --power are for the policies {', '.join(POLICIES)}"
        )
    if arguments.csv:
        check_writable(arguments.csv)
    config = LanguageTrap(**given(arguments, LanguageTrap))
    rates = arguments.lr or [config.learning_rate]
    seeds = 6 if arguments.seeds is None else arguments.seeds

    def tell(told: str) -> None:
        if not arguments.quiet:
            print(told, file=sys.stderr, flush=True)

    curves, finished = collect(language_trap(config, rates, seeds, arguments.csv, progress=tell))
    rows, differences = language_trap_rows(curves, config)
    print(language_table1_text(rows, differences))
    return _finish(arguments, {"rows": rows, "differences": differences}, finished)


def _say(text: str) -> str:
    """Print at once, also into a file."""
    print(text, flush=True)
    return text


def _overlap(arguments: argparse.Namespace) -> int:
    rows, finished = collect(
        overlap(group_sizes=arguments.group_sizes, progress=arguments.progress)
    )
    print(overlap_text(rows))
    return _finish(arguments, {"rows": rows}, finished)


def _train(arguments: argparse.Namespace) -> int:
    config = Config(
        **given(arguments, Config), env_kwargs=dict(map(_env_argument, arguments.env_arg))
    )
    result = train(config, out=arguments.out, progress=arguments.progress)
    rewards = [row["reward"] for row in result.rows]
    if rewards:
        last = rewards[-50:]
        print(
            f"reward {sparkline(_unit(rewards))} mean of the last {len(last)} updates: {sum(last) / len(last):.3f}"
        )
    return _finish(
        arguments, {"config": dataclasses.asdict(config), "rows": result.rows}, result.finished
    )


def _explore(arguments: argparse.Namespace) -> int:
    check_writable(arguments.out)
    if arguments.file:
        from minigrpo.llm.runs import read_group

        group, number, groups = read_group(arguments.file, arguments.group)
        texts = _token_texts(arguments.file, group["completion_ids"])
        tree = ProcessTree(group["completion_ids"], group["rewards"])
        told = {name: group.get(name, "unknown") for name in ("update", "prompt")}
        caption = f"Group {number} of {groups} in {arguments.file}, update {told['update']}. Prompt: {told['prompt']}"
    elif arguments.group is not None:
        raise ValueError(f"--group {arguments.group} needs FILE, the rollouts.jsonl of a run")
    else:
        tree = ProcessTree([completion.split() for completion in WORKED_EXAMPLE], WORKED_REWARDS)
        texts, caption = None, "This is the worked example of the paper."
    page = write_text(arguments.out, tree.to_html(texts=texts, caption=caption)).as_uri()
    print(f"{tree if texts is None else caption}\n\nThe page: {page}")
    if arguments.open and not webbrowser.open(page):
        print("minigrpo explore: no browser was found; open the page by hand", file=sys.stderr)
    rows = [dataclasses.asdict(node) | {"children": len(node.children)} for node in tree.nodes]
    return _finish(arguments, {"rows": rows, "rewards": tree.rewards}, True)


def _token_texts(file: Path, completion_ids: list[list[int]]) -> list[list[str]] | None:
    """The texts of a run's tokens; None, with the reason on stderr, where its tokenizer can't be had."""
    try:
        from minigrpo.llm.tokens import run_tokenizer, token_texts

        return token_texts(run_tokenizer(file if file.is_dir() else file.parent), completion_ids)
    except (ModuleNotFoundError, ValueError, OSError) as error:
        print(f"minigrpo explore: tokens are shown as ids: {error}", file=sys.stderr)
        return None


def _env_argument(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, the value as Python's or JSON's True, None, 3, [0, 1], and as text where it is neither."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--env-arg must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(
            {"True": "true", "False": "false", "None": "null"}.get(value, value)
        )
    except json.JSONDecodeError:
        return name, value


def _unit(values: Sequence[float]) -> list[float]:
    """Stretch values to the range from 0 to 1."""
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1) for value in values]


def _finish(arguments: argparse.Namespace, result: dict, finished: bool) -> int:
    """Write the result where `--json` says, whole or not, and say which."""
    if arguments.json:
        print(f"\nWritten: {write_json(arguments.json, {**result, 'finished': finished})}")
    if finished:
        return 0
    print(
        f"minigrpo {arguments.command}: interrupted; the above is what was finished",
        file=sys.stderr,
    )
    return INTERRUPTED
