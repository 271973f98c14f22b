"""`python -m minigrpo llm COMMAND`: on runs (train, eval, compare, passk, plan, board) and on the idea (all others)."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minigrpo.commands import INTERRUPTED, collect, run
from minigrpo.files import check_writable, write_json, write_text
from minigrpo.llm import table2
from minigrpo.llm.gpu import CARDS, PROMPT
from minigrpo.llm.settings import PRESETS, Settings
from minigrpo.objectives import OBJECTIVES
from minigrpo.settings import add_options, given


def main(argv: Sequence[str]) -> int:
    """Run one command; return 0, 1 for a theorem that failed, 2 for a user's mistake (one sentence), 130 for Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    return run(arguments, _checked, "minigrpo llm", "interrupted; finished runs are kept")


def _checked(arguments: argparse.Namespace) -> int:
    if arguments.json:
        check_writable(arguments.json)
    return arguments.run(arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(
        prog="python -m minigrpo llm", description="The objectives on language models."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_runs(commands)
    _add_looks(commands)
    _add_class(commands)
    return parser


def _command(
    commands: Any,
    name: str,
    call: Callable[[argparse.Namespace], int] | None,
    text: str,
    json: bool = True,
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: where it is added.
        name: of it.
        call: what runs it.
        text: what it does.
        json: whether it takes --json.
    """
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(run=call, json=None)
    if json:
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    sub.add_argument(
        "--quiet", action="store_true", help="no progress bar, no word on what was found"
    )
    return sub


def _add_runs(commands: Any) -> None:
    """Commands that train and evaluate."""
    sub = _command(commands, "train", _train, "fine-tune a model with a verifiable reward")
    _add_settings(sub)
    sub.add_argument("--out", type=Path, required=True, help="the run's folder")
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    text = "go on where the folder has a checkpoint, else start; for jobs that may be started again"
    how.add_argument("--auto-resume", action="store_true", help=text)
    text = "stop in time with a checkpoint, as at Ctrl-C (exit code 130)"
    sub.add_argument("--max-minutes", type=float, help=text)
    text = "report rows to: tensorboard, trackio, wandb, where installed (default: none)"
    sub.add_argument("--report-to", nargs="+", default=[], metavar="TRACKER", help=text)

    sub = _command(
        commands,
        "eval",
        _eval,
        "accuracy of a run's last checkpoint, or of a model, on held-out problems",
    )
    sub.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        metavar="DIR",
        help="a run's folder: its settings and weights",
    )
    _add_settings(
        sub, only=("model", "task", "max_new_tokens", "eval_size", "train_size", "device", "seed")
    )
    sub.add_argument(
        "--samples",
        type=int,
        default=1,
        help="n completions a problem, for pass@k up to n (default 1)",
    )
    # Not the setting of that name: its default is greedy.
    text = "0 is greedy (default: 0 for one sample, that of the settings for more)"
    sub.add_argument("--temperature", dest="eval_temperature", type=float, help=text)

    sub = _command(
        commands,
        "compare",
        _compare,
        "train objectives with paired seeds; finished runs are skipped",
    )
    _add_settings(sub, without=("objective", "learning_rate", "seed"))
    sub.add_argument("--out", type=Path, required=True, help="the folder of the runs' folders")
    sub.add_argument(
        "--objectives",
        nargs="+",
        choices=OBJECTIVES,
        default=["grpo", "lambda_grpo"],
        help="to compare",
    )
    sub.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        help="each with every objective; default: the preset's",
    )
    sub.add_argument("--seeds", type=int, default=5, help="paired seeds (default 5)")
    sub.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write the curves there: a line an evaluation of a run",
    )

    sub = _command(
        commands,
        "passk",
        _passk,
        "pass@1, pass@2, … of every run of comparisons, and paired differences",
    )
    sub.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="compare's --out")
    sub.add_argument("--samples", type=int, default=64, help="n, of each problem (default 64)")
    sub.add_argument("--threads", type=int, default=1, help="torch's (default 1)")


def _add_looks(commands: Any) -> None:
    """Commands that measure and draw."""
    sub = _command(
        commands,
        "theorem",
        _theorem,
        "grpo and prm give one gradient on the whole model, on its own samples",
    )
    _add_settings(
        sub, only=("model", "task", "group_size", "max_new_tokens", "temperature", "device", "seed")
    )

    sub = _command(
        commands,
        "overlap",
        _overlap,
        "how much the completions of a run's groups shared as it trained",
    )
    sub.add_argument("run_folder", type=Path, help="a run's folder")
    sub.add_argument("--out", type=Path, help="draw it there too: a .png or .svg file")
    sub.formatter_class = argparse.RawDescriptionHelpFormatter
    sub.epilog = (
        "path depth: distinct sets λ along a completion, minus one; proportion: share of its tokens outside its last\n"
        "step, which are those it shares on the way; step size: the mean of |λ|, from 1 (nothing shared) to G"
    )

    text = "time a few passes, and say what the cost model makes of them on this machine"
    sub = _command(commands, "calibrate", _calibrate, text)
    only = (
        "model",
        "lora_rank",
        "forward",
        "attention",
        "gradient_checkpointing",
        "dtype",
        "device",
    )
    _add_settings(sub, only=only)
    sub.add_argument(
        "--seconds", type=float, default=2.0, help="that it may take, once loaded (default 2)"
    )

    text = "draw accuracy and reward of runs over updates, with the mean and interval of seeds"
    sub = _command(commands, "plot", _plot, text, json=False)
    sub.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="folders of runs, folders of such folders, or compare's --csv",
    )
    sub.add_argument("--out", type=Path, required=True, help="a .png or .svg file")

    sub = _command(
        commands, "table2", None, "the paper's Table 2: five benchmarks of mathematics", json=False
    )
    table2.add_commands(sub)


def _add_class(commands: Any) -> None:
    """Commands for many runs on shared machines."""
    text = "memory, hours and price of a class's runs on its cards, computed"
    sub = _command(commands, "plan", _plan, text)
    _add_settings(sub)
    sub.add_argument(
        "--recipe", type=Path, metavar="FILE", help="of labs/gpu, in place of a preset"
    )
    sub.add_argument("--card", default="a10", help=f"one of {', '.join(CARDS)} (default a10)")
    sub.add_argument("--cards", type=int, default=1, help="that the class shares (default 1)")
    text = "over which a run of a recipe is spread (default 1)"
    sub.add_argument("--cards-a-run", type=int, help=text)
    sub.add_argument("--students", type=int, default=30, help="of the class (default 30)")
    sub.add_argument("--runs-each", type=int, default=1, help="of a student (default 1)")
    text = f"of a prompt, with template and system prompt (default {PROMPT})"
    sub.add_argument("--prompt-tokens", type=int, help=text)

    text = "all runs in and below some folders: how far, how well, what they warn of"
    sub = _command(commands, "board", _board, text)
    sub.add_argument("runs", type=Path, nargs="+", help="folders of runs, or folders above such")
    sub.add_argument("--page", type=Path, metavar="FILE", help="write it as one HTML page too")
    text = "show it again every so many seconds (default 10), until Ctrl-C"
    sub.add_argument("--watch", type=int, nargs="?", const=10, metavar="SECONDS", help=text)


def _add_settings(
    parser: argparse.ArgumentParser, only: Sequence[str] = (), without: Sequence[str] = ()
) -> None:
    """An option for each setting; those that are not given come from the preset."""
    lines = [f"  {name:<13}{preset.needs}" for name, preset in PRESETS.items()]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        ["presets, with what they need; the defaults in brackets are those of cpu:", *lines]
    )
    parser.add_argument(
        "--threads", type=int, help="torch's threads; default: 1 for tiny, else torch's own number"
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="where settings that are not given come from (default cpu)",
    )
    add_options(parser, Settings, only=only, without=without)
    if not only or "forward" in only:  # its name before it was --forward
        parser.add_argument("--update", dest="forward", help=argparse.SUPPRESS)


def _set_threads(arguments: argparse.Namespace, settings: Settings) -> None:
    """Take the threads that were asked for, else one for tiny; larger models are quicker with all of torch's own."""
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.threads is not None or settings.model == "tiny":
        torch.set_num_threads(arguments.threads or 1)


def _settings(arguments: argparse.Namespace, preset: Settings | None = None) -> Settings:
    """The preset, or the settings that stand for it, with the options that were given."""
    preset = preset or PRESETS[arguments.preset or "cpu"].settings
    return dataclasses.replace(preset, **given(arguments, Settings))


def _progress(arguments: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not arguments.quiet


# ---------------------------------------------------------------------------------------------------------------------
# Commands; what is heavy is imported by the one that needs it
# ---------------------------------------------------------------------------------------------------------------------


def _train(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.experiments import summary
    from minigrpo.llm.runs import METRICS, read_metrics
    from minigrpo.llm.training import train

    settings = _settings(arguments)
    _set_threads(arguments, settings)
    finished = train(
        settings,
        arguments.out,
        resume="auto" if arguments.auto_resume else arguments.resume,
        max_minutes=arguments.max_minutes,
        report_to=arguments.report_to,
        progress=_progress(arguments),
        tell=not arguments.quiet,
    )
    rows = read_metrics(arguments.out)
    result = summary(rows)
    print(
        f"held-out greedy accuracy: {result['first']:.2f} at the start, {result['last']:.2f} at the end "
        f"({result['best']:.2f} at best); {arguments.out}/{METRICS}"
    )
    if arguments.json:
        write_json(arguments.json, result | {"rows": rows, "finished": finished})
    if not finished:
        more = "" if arguments.auto_resume else " and --resume"
        print(f"stopped early: go on with the same command{more}", file=sys.stderr)
    return 0 if finished else INTERRUPTED


def _eval(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.evaluation import evaluate
    from minigrpo.llm.found import found, found_lines
    from minigrpo.llm.models import load_model
    from minigrpo.llm.prompts import fix_date, longest_prompt
    from minigrpo.llm.runs import load_run, read_settings
    from minigrpo.llm.tasks import load_task

    folder = arguments.run_folder
    if folder and (arguments.model or arguments.preset):
        raise ValueError(
            f"--run {folder} has a model and settings of its own: leave out --model and --preset"
        )
    settings = _settings(arguments, read_settings(folder) if folder else None)
    _set_threads(arguments, settings)
    task = load_task(settings.task, train_size=settings.train_size, heldout_size=settings.eval_size)
    if folder:
        loaded, update = load_run(folder, settings)
        name = f"{settings.model} after {update} updates ({folder})"
    else:
        name = settings.model
        loaded = fix_date(load_model(name, device=settings.device), datetime.date.today())
    if not arguments.quiet:
        longest = longest_prompt(loaded, task, settings.max_new_tokens, train=False)
        print(*found_lines(found(loaded, task, settings, longest)), sep="\n", file=sys.stderr)

    temperature = arguments.eval_temperature
    if temperature is None:
        temperature = 0.0 if arguments.samples == 1 else settings.temperature
    result = evaluate(
        loaded.model,
        loaded.tokenizer,
        task,
        max_new_tokens=settings.max_new_tokens,
        samples=arguments.samples,
        temperature=temperature,
        seed=settings.seed,
    )
    how = (
        f"at temperature {temperature:g}, {arguments.samples} a problem"
        if temperature
        else "greedy"
    )
    print(
        f"{name} on {settings.task}, {how}: accuracy {result['accuracy']:.3f} "
        f"[{result['ci_low']:.3f}, {result['ci_high']:.3f}] over {result['problems']} held-out problems"
    )
    for k in (2**e for e in range(1, arguments.samples.bit_length())):
        low = result[f"pass@{k}_ci_low"]
        high = result[f"pass@{k}_ci_high"]
        print(f"pass@{k}: {result[f'pass@{k}']:.3f} [{low:.3f}, {high:.3f}]")
    if loaded.note:
        print(loaded.note)
    if arguments.json:
        write_json(arguments.json, result)
    return 0


def _theorem(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.experiments import TOLERANCE, theorem

    settings = _settings(arguments)
    _set_threads(arguments, settings)
    rows, other, tree = theorem(settings)
    print(f"{tree}\n")
    (row,) = rows
    holds = max(row["loss_gap"], row["grad_gap"]) < TOLERANCE
    print(
        f"grpo and prm: gradient gap {row['grad_gap']:.1e}, loss gap {row['loss_gap']:.1e} over every weight of "
        f"{settings.model} (float32, limit {TOLERANCE:.0e}): {'equal' if holds else 'NOT equal'}\n"
        f"grpo and lambda_grpo: gradient gap {other['grad_gap']:.2f}, another objective"
    )
    if arguments.json:
        write_json(arguments.json, {"rows": rows, "lambda_grpo": other, "finished": True})
    return 0 if holds else 1


def _overlap(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.experiments import overlap
    from minigrpo.text import overlap_text

    rows = overlap(arguments.run_folder)
    print(overlap_text(rows))
    if arguments.out:
        from minigrpo.report import save  # matplotlib is heavy, and only some ask for a figure
        from minigrpo.viz import plot_overlap

        print(save(plot_overlap(rows), arguments.out))
    if arguments.json:
        write_json(arguments.json, {"rows": rows})
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.experiments import compare, differences
    from minigrpo.llm.plots import curves_csv
    from minigrpo.text import compare_text, differences_text

    settings = _settings(arguments)
    _set_threads(arguments, settings)
    if arguments.csv:
        check_writable(arguments.csv)
    rates = arguments.learning_rates or [settings.learning_rate]
    total = len(arguments.objectives) * len(rates) * arguments.seeds
    done = 0

    def tell(row: dict) -> None:
        nonlocal done
        done += 1
        if not arguments.quiet:
            print(
                f"run {done} of {total}: {row['objective']}, learning rate {row['learning_rate']:g}, seed "
                f"{row['seed']}: accuracy {row['first']:.2f} at the start, {row['last']:.2f} at the end",
                file=sys.stderr,
            )

    work = compare(
        settings,
        arguments.out,
        objectives=arguments.objectives,
        seeds=arguments.seeds,
        learning_rates=rates,
        progress=_progress(arguments),
    )
    runs, finished = collect(work, tell)
    if runs:
        compared = differences(runs)
        print("\n\n".join(filter(None, (compare_text(runs), differences_text(compared)))))
        if arguments.csv:
            write_text(arguments.csv, curves_csv(runs))
        if arguments.json:
            rows = [{name: value for name, value in row.items() if name != "curve"} for row in runs]
            write_json(
                arguments.json, {"rows": rows, "differences": compared, "finished": finished}
            )
    if not finished:
        print("stopped early: go on with the same command", file=sys.stderr)
    return 0 if finished else INTERRUPTED


def _passk(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.experiments import pass_at_k, pass_differences
    from minigrpo.text import passes_text

    if arguments.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {arguments.samples}")
    torch.set_num_threads(max(1, arguments.threads))
    known: list[dict] = []
    if arguments.json and arguments.json.exists():  # what it holds is kept and gone on from
        known = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    found: list[dict] = []

    def keep(row: dict) -> None:
        found.append(row)
        if arguments.json:
            rest = [row for row in known if row not in found]
            write_json(arguments.json, {"rows": [*found, *rest], "finished": False})

    work = pass_at_k(arguments.folders, known, samples=arguments.samples)
    rows, finished = collect(work, keep)
    compared = pass_differences(rows)
    print(passes_text(rows, compared))
    if arguments.json:
        result = {"rows": rows, "differences": compared, "finished": finished}
        write_json(arguments.json, result)
    return 0 if finished else INTERRUPTED


def _calibrate(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.calibrate import calibrate, calibration_text
    from minigrpo.llm.forward import FORWARDS, forward_costs
    from minigrpo.llm.models import load_model
    from minigrpo.llm.update import autocast, new_learner

    if not arguments.seconds > 0:
        raise ValueError(f"--seconds must be above 0, got {arguments.seconds:g}")
    settings = _settings(arguments)
    _set_threads(arguments, settings)
    loaded = load_model(settings.model, device=settings.device)
    known = forward_costs(loaded.model)
    learner, reason = new_learner(loaded.model, settings, known)
    with autocast(settings):
        costs, timed = calibrate(learner.causal, learner.forwards, seconds=arguments.seconds)
    print(calibration_text(known, costs, timed))
    if len(learner.forwards) < len(FORWARDS) and not arguments.quiet:
        print(f"updates are computed {' or '.join(learner.forwards)}: {reason}", file=sys.stderr)
    if arguments.json:
        rows = [dataclasses.asdict(row) for row in timed]
        found = {"costs": dataclasses.asdict(costs), "known": dataclasses.asdict(known)}
        write_json(arguments.json, found | {"rows": rows, "finished": True})
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.plots import plot_curves, read_curves
    from minigrpo.report import save

    print(save(plot_curves(read_curves(arguments.runs)), arguments.out))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.plan import card_of, plan_recipe, plan_row, plan_settings, plan_text

    people = {
        "card": card_of(arguments.card),
        "cards": arguments.cards,
        "students": arguments.students,
        "runs_each": arguments.runs_each,
    }
    if arguments.recipe:
        if arguments.preset or arguments.prompt_tokens is not None or given(arguments, Settings):
            raise ValueError("--recipe has a model and settings of its own: leave out the others")
        spread = 1 if arguments.cards_a_run is None else arguments.cards_a_run
        found = plan_recipe(arguments.recipe, cards_a_run=spread, **people)
    else:
        if arguments.cards_a_run is not None:
            raise ValueError("--cards-a-run is for a --recipe: a run of a preset takes one card")
        name = arguments.preset or "class"
        settings = _settings(arguments, PRESETS[name].settings)
        prompt = PROMPT if arguments.prompt_tokens is None else arguments.prompt_tokens
        found = plan_settings(name, settings, prompt, **people)
    print(plan_text(found))
    if arguments.json:
        write_json(arguments.json, plan_row(found))
    return 0


def _board(arguments: argparse.Namespace) -> int:
    from minigrpo.llm.board import board_text, read_board, write_page

    if arguments.watch is not None and arguments.watch < 1:
        raise ValueError(f"--watch must be at least 1 second, got {arguments.watch}")
    while True:
        lines = read_board(arguments.runs)
        if not lines and not arguments.watch:
            places = ", ".join(map(str, arguments.runs))
            raise ValueError(
                f"no run in {places}: no folder there has a manifest.json or metrics.jsonl"
            )
        clear = "\x1b[2J\x1b[H" if arguments.watch and sys.stdout.isatty() else ""
        print(f"{clear}{board_text(lines)}", flush=True)
        if arguments.page:
            write_page(arguments.page, lines, arguments.runs, arguments.watch)
        if arguments.json:
            write_json(arguments.json, {"rows": [dataclasses.asdict(line) for line in lines]})
        if not arguments.watch:
            return 0
        try:
            time.sleep(arguments.watch)
        except KeyboardInterrupt:  # the way to end it
            return 0
