"""Figures of language-model runs, from their metrics.jsonl alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from minigrpo.llm.experiments import read_metrics
from minigrpo.viz import LINES, MARKERS, NAMES, PALETTE

COLUMNS = {"reward": "mean reward of the samples", "eval_accuracy": "held-out greedy accuracy"}


def plot_runs(runs: Sequence[str | Path]) -> Figure:
    """Draw reward and held-out accuracy against updates, a line a setting: the mean of its seeds, with their range.

    Runs with one objective and learning rate are taken together.
    Raises: ValueError for no run, or a folder that is not one.
    """
    if not runs:
        raise ValueError("runs must name at least one run's folder, got none")
    groups: dict[tuple[str, float], list[list[dict]]] = {}
    for run in runs:
        rows = read_metrics(run)
        settings = json.loads((Path(run) / "manifest.json").read_text(encoding="utf-8"))["settings"]
        groups.setdefault((settings["objective"], settings["learning_rate"]), []).append(rows)
    figure = Figure(figsize=(9, 4), layout="constrained")
    rates = sorted({rate for _, rate in groups})
    for axes, (column, label) in zip(figure.subplots(1, 2), COLUMNS.items(), strict=True):
        for (objective, rate), members in sorted(groups.items()):
            curves = [{row["update"]: row[column] for row in rows if column in row} for rows in members]
            updates = sorted(set.intersection(*(set(curve) for curve in curves)))
            values = np.array([[curve[update] for update in updates] for curve in curves])
            style = {"color": PALETTE[objective], "linestyle": LINES[objective], "alpha": 1 - 0.25 * rates.index(rate)}
            name = f"{NAMES[objective]}, learning rate {rate:g} ({len(members)} seeds)"
            marker = MARKERS[objective] if column == "eval_accuracy" else None
            axes.plot(updates, values.mean(axis=0), label=name, marker=marker, markersize=4, **style)
            if len(members) > 1:
                axes.fill_between(updates, values.min(axis=0), values.max(axis=0), color=PALETTE[objective], alpha=0.12)
        axes.set_xlabel("update")
        axes.set_ylabel(label)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(color=PALETTE["grid"])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
