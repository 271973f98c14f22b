"""Results as text for the terminal: tables with aligned columns, and curves of block characters."""

from __future__ import annotations

from collections.abc import Sequence

from minigrpo.experiments import PAPER_TABLE1

TOLERANCE = 1e-12  # what the theorem's gaps in float64 stay below


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
    parts = [values[k * len(values) // width : (k + 1) * len(values) // width] for k in range(width)]
    means = [sum(part) / len(part) for part in parts if len(part)]
    return "".join(blocks[min(int(mean * len(blocks)), len(blocks) - 1)] for mean in means)


def is_broken(row: dict) -> bool:
    """Whether a row of `theorem` breaks an assumption on purpose."""
    return row["case"].startswith("broken:")


def failures(rows: Sequence[dict]) -> list[str]:
    """Cases of `theorem` that came out as they should not: a gap where it holds, none where it is broken."""
    return [
        row["case"]
        for row in rows
        if (row["differ"] == 0 if is_broken(row) else not max(row["loss_gap"], row["grad_gap"]) < TOLERANCE)
    ]


def theorem_text(rows: Sequence[dict]) -> str:
    """The rows of `theorem` as a table, and what they say together."""
    header = ("case", "groups", "loss gap", "grad gap", "median", "differ")
    lines = [
        (
            row["case"],
            f"{row['groups']}",
            *(f"{row[name]:.1e}" for name in ("loss_gap", "grad_gap", "median_gap")),
            f"{row['differ']:.0%}",
        )
        for row in rows
    ]
    held = [max(row["loss_gap"], row["grad_gap"]) for row in rows if not is_broken(row)]
    verdict = f"GRPO = PRM in {len(held)} cases: the largest gap is {max(held, default=0):.0e}, below {TOLERANCE:.0e}."
    if failed := failures(rows):
        verdict = f"NOT as the theorem says: {'; '.join(failed)}."
    return f"{text_table(header, lines)}\n\n{verdict}"


def table1_text(rows: Sequence[dict], differences: Sequence[dict]) -> str:
    """Table 1: the paper's frequencies beside ours, and the paired difference with its 95% interval."""
    title = (
        f"How often the target is sampled in the last updates: {_settings(rows[0])}, {rows[0]['seeds']} paired seeds"
    )
    header = ("n", "r_neg", "paper: GRPO", "λ-GRPO", "here: GRPO", "λ-GRPO", "difference (95% interval)")
    lines = []
    for row in differences:
        paper = PAPER_TABLE1[row["n"], row["r_neg"]]
        ours = [r["mean"] for r in rows if (r["n"], r["r_neg"]) == (row["n"], row["r_neg"])]
        frequencies = (f"{x:.2f}" for x in (*paper, *ours))
        interval = f"{row['mean']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
        lines.append((f"{row['n']}", f"{row['r_neg']:+.1f}", *frequencies, interval))
    note = "\nFewer than 10 seeds: such intervals are too narrow." if rows[0]["seeds"] < 10 else ""
    return f"{title}\n{text_table(header, lines)}{note}"


def controls_text(rows: Sequence[dict], controls: Sequence[dict]) -> str:
    """The controls of Table 1, a setting a line, averaged over the six cells, with the main comparison first."""
    header = ("control", "GRPO", "λ-GRPO", "λ-GRPO leads", "GRPO leads")
    settings: dict[str, list[dict]] = {}
    for row in [{"control": "the comparison above"} | row for row in rows] + list(controls):
        settings.setdefault(f"{row['control']}: {_settings(row)}", []).append(row)
    lines = []
    for name, members in settings.items():
        means = {
            objective: [row["mean"] for row in members if row.get("objective") == objective]
            for objective in ("grpo", "lambda_grpo")
        }
        differences = [row for row in members if "difference" in row]
        lines.append(
            (
                name,
                *(f"{sum(mean) / len(mean):.2f}" for mean in means.values()),
                f"{sum(row['ci_low'] > 0 for row in differences)} of {len(differences)}",
                f"{sum(row['ci_high'] < 0 for row in differences)} of {len(differences)}",
            )
        )
    return (
        "Controls: target frequency, mean of the six cells, and in how many the 95% interval says who leads\n"
        f"{text_table(header, lines)}"
    )


def overlap_text(rows: Sequence[dict], bins: int = 5) -> str:
    """The rows of `overlap` as a table, averaged over a few stretches of each run."""
    columns = ("reward", "entropy", "path_depth", "intermediate_proportion", "step_size")
    header = ("G", "updates", "reward", "entropy (nats)", "path depth", "intermediate proportion", "step size")
    lines = []
    for G in dict.fromkeys(row["group_size"] for row in rows):
        run = [row for row in rows if row["group_size"] == G]
        for k in range(min(bins, len(run))):
            part = run[k * len(run) // min(bins, len(run)) : (k + 1) * len(run) // min(bins, len(run))]
            means = (sum(row[name] for row in part) / len(part) for name in columns)
            lines.append((f"{G}", f"{part[0]['update']}–{part[-1]['update']}", *(f"{mean:.2f}" for mean in means)))
    return text_table(header, lines)


def _settings(row: dict) -> str:
    """Policy, optimiser and learning rate of a row."""
    return f"{row['policy']}, {row['optimizer']}, learning rate {row['lr']:g}"
