"""Results as text for the terminal: tables with aligned columns, and curves of block characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from minigrpo.experiments.expectation import WEIGHTS, failed_expectations, harmonic_utility
from minigrpo.experiments.theorem import TOLERANCE, failures, is_broken
from minigrpo.paper import TABLE1
from minigrpo.stats import interval


def text_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Align a header and lines of cells in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    first, *rest = widths

    def line(cells: Sequence[str]) -> str:
        right = (f"{cell:>{width}}" for cell, width in zip(cells[1:], rest, strict=True))
        return "  ".join([f"{cells[0]:<{first}}", *right])

    return "\n".join([line(header), "  ".join("─" * width for width in widths), *map(line, lines)])


def sparkline(values: Sequence[float], width: int = 50) -> str:
    """Draw values between 0 and 1 as a line of blocks, each the mean of its share of the values."""
    blocks = "▁▂▃▄▅▆▇█"
    parts = [
        values[k * len(values) // width : (k + 1) * len(values) // width] for k in range(width)
    ]
    means = [sum(part) / len(part) for part in parts if len(part)]
    return "".join(blocks[min(int(mean * len(blocks)), len(blocks) - 1)] for mean in means)


def theorem_text(rows: Sequence[dict]) -> str:
    """The rows of `theorem` as a table, and what they say together."""
    header = ("case", "groups", "loss gap", "grad gap", "median", "differ")
    lines = []
    for row in rows:
        gaps = [f"{row[name]:.1e}" for name in ("loss_gap", "grad_gap", "median_gap")]
        lines.append((row["case"], f"{row['groups']}", *gaps, f"{row['differ']:.0%}"))
    held = [max(row["loss_gap"], row["grad_gap"]) for row in rows if not is_broken(row)]
    largest = max(held, default=0)
    verdict = (
        f"GRPO = PRM in {len(held)} cases: the largest gap is {largest:.0e}, below {TOLERANCE:.0e}."
    )
    if failed := failures(rows):
        verdict = f"NOT as the theorem says: {'; '.join(failed)}."
    return f"{text_table(header, lines)}\n\n{verdict}"


def expectation_text(rows: Sequence[dict]) -> str:
    """The rows of `expectation` as tables, and what they say together.

    Cases that hold are summed up: a line for the shapes of an objective, with the largest gaps.
    """
    header = ("case", "groups of", "loss gap", "grad gap", "constant")
    held = [row for row in rows if not is_broken(row)]
    summed: dict[str, list[dict]] = {}
    for row in held:
        shape = row["case"].partition(", G = ")[0]
        summed.setdefault(f"{row['objective']}, {shape}", []).append(row)
    lines: list[tuple[str, ...]] = []
    for name, cases in summed.items():
        sizes = ", ".join(row["case"].partition(", G = ")[2] for row in cases)
        gaps = [f"{max(row[gap] for row in cases):.1e}" for gap in ("loss_gap", "grad_gap")]
        lines.append((name, sizes, *gaps, "1.00"))
    for row in filter(is_broken, rows):
        gaps = [f"{row[gap]:.1e}" for gap in ("loss_gap", "grad_gap")]
        name = f"{row['case']}, {row['objective']}"
        lines.append((name, "4", *gaps, f"{row['constant']:.2f}"))

    largest = max((max(row["loss_gap"], row["grad_gap"]) for row in held), default=0)
    verdict = (
        "GRPO weighs a step by the expected visits of the others, λ-GRPO by the probability of a visit:\n"
        f"{len(held)} cases, the largest gap is {largest:.0e}, below {TOLERANCE:.0e}."
    )
    if failed := failed_expectations(rows):
        verdict = f"NOT as the statement says: {'; '.join(failed)}."
    return f"{text_table(header, lines)}\n\n{verdict}"


def utility_text(group_size: int = 16) -> str:
    """One decision: how the objectives weigh an action of probability p, and what λ-GRPO maximises.

    Args: group_size: G.
    """
    G = group_size
    p = torch.tensor([0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    harmonic = sum(1 / k for k in range(1, G + 1))  # F(1)
    columns = {
        "p = pass@1": p,
        "GRPO's weight": WEIGHTS["grpo"](p, G),
        "λ-GRPO's": WEIGHTS["lambda_grpo"](p, G),
        f"pass@{G}": 1 - (1 - p) ** G,
        "F(p)": harmonic_utility(p, G),
        "ln p + F(1)": p.log() + harmonic,
    }
    lines = [[f"{value:.2f}" for value in row] for row in zip(*columns.values(), strict=True)]
    title = f"One decision, groups of {G}: F(p) = Σ (1 − (1 − p)^k)/k over k = 1 … {G}"
    return f"{title}\n{text_table(tuple(columns), lines)}"


def table1_text(rows: Sequence[dict], differences: Sequence[dict]) -> str:
    """Table 1: the paper's frequencies beside ours, and the paired difference with its 95% interval."""
    seeds = rows[0]["seeds"]
    title = f"Target frequency in the last 50 updates, {seeds} paired seeds: {_settings(rows[0])}"
    header = (
        "n",
        "r_neg",
        "paper: GRPO",
        "λ-GRPO",
        "here: GRPO",
        "λ-GRPO",
        "difference (95% interval)",
    )
    lines = []
    for row in differences:
        cell = row["n"], row["r_neg"]
        ours = [own["mean"] for own in rows if (own["n"], own["r_neg"]) == cell]
        frequencies = [f"{frequency:.2f}" for frequency in (*TABLE1[cell], *ours)]
        lines.append((f"{row['n']}", f"{row['r_neg']:+.1f}", *frequencies, _difference(row)))
    note = "\nFewer than 10 seeds: such intervals are too narrow." if seeds < 10 else ""
    return f"{title}\n{text_table(header, lines)}{note}"


def language_table1_text(rows: Sequence[dict], differences: Sequence[dict]) -> str:
    """Table 1 with a language model, a table for each learning rate: the target's probability, and who found it."""
    tables = []
    for lr in dict.fromkeys(row["lr"] for row in rows):
        own = [row for row in rows if row["lr"] == lr]
        title = f"Target probability over the last 50 updates: {_settings(own[0])}"
        header = ("n", "r_neg", "prior", "seeds", "GRPO", "found", "λ-GRPO", "found", "difference")
        lines = []
        for difference in differences:
            cell = difference["n"], difference["r_neg"]
            both = [row for row in own if (row["n"], row["r_neg"]) == cell]
            if difference["lr"] != lr:
                continue
            scores = [
                text
                for row in both
                for text in (f"{row['mean']:.2f}", f"{row['found'] * row['seeds']:.0f}")
            ]
            prior, seeds = f"{both[0]['prior']:.3f}", f"{both[0]['seeds']}"
            lines.append(
                (f"{cell[0]}", f"{cell[1]:+.1f}", prior, seeds, *scores, _difference(difference))
            )
        tables.append(f"{title}\n{text_table(header, lines)}")
    note = "prior: the target's probability before the first update; found: runs that end above 0.5"
    return "\n\n".join([*tables, note])


def controls_text(controls: Sequence[dict]) -> str:
    """The controls of Table 1, a setting a line, pooled over the three cells of each n.

    A difference is paired with GRPO; its interval is taken over seeds, so that the cells of one n, which share their
    seeds, count as one.
    """
    header = ("control", "n", "GRPO", "matched", "λ-GRPO", "matched − GRPO", "λ-GRPO − GRPO")
    # Control, learning rate and n → objective or difference → row.
    settings: dict[tuple[str, int], dict[str, dict]] = {}
    for row in controls:
        if row["r_neg"] is None:  # pooled
            key = (f"{row['control']}: {row['lr']:g}", row["n"])
            settings.setdefault(key, {})[row.get("objective") or row["difference"]] = row
    lines = []
    for (name, n), found in sorted(settings.items(), key=lambda item: item[0][1]):
        means = [_mean(found.get(key)) for key in ("grpo", "grpo_matched", "lambda_grpo")]
        others = ("grpo_matched − grpo", "lambda_grpo − grpo")
        lines.append((name, f"{n}", *means, *(_difference(found.get(key)) for key in others)))
    head = (
        "Controls: target frequency, mean of the three cells of each n, and paired differences with "
        "95% intervals"
    )
    return f"{head}\n{text_table(header, lines)}"


def _mean(row: dict | None) -> str:
    """A mean, "" where there is none."""
    return f"{row['mean']:.2f}" if row else ""


def _difference(row: dict | None) -> str:
    """A mean with its interval, "" where there is none."""
    return f"{row['mean']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]" if row else ""


def compare_text(rows: Sequence[dict]) -> str:
    """The rows of `llm compare`, a setting a line: means over seeds, and the paired difference of the last accuracy.

    The difference is to the first objective at its own best learning rate, seed by seed, with its 95% interval.
    """
    # Objective and learning rate → seed → row.
    settings: dict[tuple[str, float], dict[int, dict]] = {}
    for row in rows:
        settings.setdefault((row["objective"], row["learning_rate"]), {})[row["seed"]] = row

    def mean(key: tuple[str, float], column: str) -> float:
        runs = settings[key].values()
        return sum(row[column] for row in runs) / len(runs)

    first = rows[0]["objective"]
    base = max((key for key in settings if key[0] == first), key=lambda key: mean(key, "last"))
    header = (
        "objective",
        "learning rate",
        "seeds",
        "start",
        "end",
        "best",
        "updates to 90%",
        f"end − {first} {base[1]:g}",
    )
    lines = []
    for key, runs in sorted(settings.items()):
        objective, lr = key
        accuracies = [f"{mean(key, column):.3f}" for column in ("first", "last", "best")]
        updates = f"{mean(key, 'updates_to_90'):.0f}"
        compared = "" if key == base else _paired_ends(runs, settings[base])
        lines.append((objective, f"{lr:g}", f"{len(runs)}", *accuracies, updates, compared))
    return text_table(header, lines)


def _paired_ends(runs: dict[int, dict], base: dict[int, dict]) -> str:
    """The difference of two settings' last accuracies, over the seeds that both have."""
    paired = [run["last"] - base[seed]["last"] for seed, run in runs.items() if seed in base]
    return _difference(interval(np.array(paired)))


def differences_text(rows: Sequence[dict]) -> str:
    """The paired differences of `llm compare`, a pair of settings a line; "" where there is none."""
    # Difference, where it is taken, and both learning rates → measure → row.
    pairs: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        key = (row["difference"], row["at"], *row["learning_rates"])
        pairs.setdefault(key, {})[row["measure"]] = row
    if not pairs:
        return ""
    lines = []
    for (name, at, ours, theirs), found in pairs.items():
        rates = f"{ours:g}" if at == "each rate" else f"best: {ours:g}, {theirs:g}"
        accuracies = [_difference(found[measure]) for measure in ("last", "best")]
        row = found["updates_to_90"]
        updates = f"{row['mean']:+.0f} [{row['ci_low']:+.0f}, {row['ci_high']:+.0f}]"
        lines.append((name, rates, *accuracies, updates))
    header = ("difference", "learning rate", "end", "best", "updates to 90%")
    return f"Paired differences, with 95% intervals\n{text_table(header, lines)}"


def overlap_text(rows: Sequence[dict], bins: int = 5) -> str:
    """The rows of `overlap` as a table, averaged over a few stretches of each run."""
    columns = ("reward", "entropy", "path_depth", "intermediate_proportion", "step_size")
    header = (
        "task",
        "G",
        "updates",
        "reward",
        "entropy",
        "path depth",
        "proportion",
        "step size",
    )
    lines = []
    for task, G in dict.fromkeys((row["task"], row["group_size"]) for row in rows):
        run = [row for row in rows if (row["task"], row["group_size"]) == (task, G)]
        stretches = min(bins, len(run))
        for k in range(stretches):
            part = run[k * len(run) // stretches : (k + 1) * len(run) // stretches]
            means = [sum(row[name] for row in part) / len(part) for name in columns]
            updates = f"{part[0]['update']}–{part[-1]['update']}"
            lines.append((task, f"{G}", updates, *(f"{mean:.2f}" for mean in means)))
    return text_table(header, lines)


def _settings(row: dict) -> str:
    """Policy, optimiser and learning rate of a row, and the power of |λ| where it is not λ-GRPO's own."""
    power = f", λ-GRPO with |λ|^{-row['power']:g}" if "power" in row else ""
    return f"{row['policy']}, {row['optimizer']}, learning rate {row['lr']:g}{power}"


# columns that say which runs a row of pass@k is of
PASS_SETTING = ("task", "G", "temperature", "updates", "rate")


def passes_text(rows: Sequence[dict], differences: Sequence[dict]) -> str:
    """pass@k of each objective, means over seeds, and the paired differences with their 95% intervals."""
    names = [name for name in rows[0] if name.startswith("pass@")]
    grouped: dict[tuple[str, ...], list[dict]] = {}
    for row in rows:
        grouped.setdefault((*_pass_setting(row), row["objective"]), []).append(row)
    means = [
        (*key, f"{len(own)}", *(f"{np.mean([row[name] for row in own]):.3f}" for name in names))
        for key, own in grouped.items()
    ]
    above = text_table((*PASS_SETTING, "objective", "seeds", *names), means)
    gaps = [
        (
            *_pass_setting(row),
            row["difference"],
            f"{row['k']}",
            f"{row['mean']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]",
        )
        for row in differences
    ]
    if not gaps:
        return above
    return f"{above}\n\n{text_table((*PASS_SETTING, 'difference', 'k', 'pass@k (95%)'), gaps)}"


def _pass_setting(row: dict) -> tuple[str, ...]:
    """The PASS_SETTING of a row."""
    return (
        row["task"],
        f"{row['group_size']}",
        f"{row['temperature']:g}",
        f"{row['updates']}",
        f"{row['learning_rate']:g}",
    )
