"""Learning curves of language-model runs, from their metrics.jsonl or from the CSV that `llm compare` writes."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from minigrpo.llm.experiments import curve
from minigrpo.llm.runs import has_manifest, has_metrics, read_metrics, read_settings, run_folders
from minigrpo.stats import interval
from minigrpo.viz import LINES, MARKERS, NAMES, PALETTE
from minigrpo.viz.style import label_axes

COLUMNS = {"eval_accuracy": "held-out greedy accuracy", "reward": "mean reward of the samples"}
HEADER = ("objective", "learning_rate", "seed", "update", *COLUMNS)


def curves_csv(runs: Sequence[dict]) -> str:
    """The curves of `compare` as CSV, a line an evaluation of a run: the columns of HEADER."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for run in runs:
        same = [run["objective"], f"{run['learning_rate']:g}", run["seed"]]
        for point in run["curve"]:
            writer.writerow(
                [*same, point["update"], *(f"{point[column]:.4f}" for column in COLUMNS)]
            )
    return file.getvalue()


def read_curves(paths: Sequence[str | Path]) -> list[dict]:
    """Read curves for `plot_curves`: {settings, curve}, a row a run.

    Args: paths: each a run's folder, a folder of such folders (what of it is no run yet is left out), or a CSV of
        `curves_csv`. A run without a manifest.json goes by its folder's name.
    Raises: ValueError for a path that is none of these, or a CSV with other columns.
    """
    runs: list[dict] = []
    for path in map(Path, paths):
        inside = run_folders(path)
        if path.suffix == ".csv":
            runs += _read_csv(path)
        elif has_metrics(path) or not inside:
            runs.append(_read_run(path))
        else:
            runs += map(_read_run, inside)
    return runs


def _read_run(run: Path) -> dict:
    """The curve of a run, and its settings."""
    points = curve(read_metrics(run))
    if not has_manifest(run):
        return {"settings": {"objective": run.resolve().name}, "curve": points}
    return {"settings": dataclasses.asdict(read_settings(run)), "curve": points}


def _read_csv(path: Path) -> list[dict]:
    """The curves of a CSV."""
    lines = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    if tuple(lines.fieldnames or ()) != HEADER:
        raise ValueError(
            f"{path} must have the columns {', '.join(HEADER)}, got {', '.join(lines.fieldnames or ())}"
        )
    runs: dict[tuple, dict] = {}
    for line in lines:
        objective, rate, seed, update, *values = line.values()
        settings = {"objective": objective, "learning_rate": float(rate), "seed": int(seed)}
        run = runs.setdefault((objective, rate, seed), {"settings": settings, "curve": []})
        run["curve"].append(
            {"update": int(update)} | dict(zip(COLUMNS, map(float, values), strict=True))
        )
    return list(runs.values())


def plot_curves(runs: Sequence[dict]) -> Figure:
    """Draw held-out accuracy (above) and reward (below) over updates, a line an objective: the mean of its seeds.

    Runs that differ in more than objective and seed stand side by side, with what differs in the title. The band is the
    95% bootstrap interval of the mean. Where runs were evaluated at different updates, those that all have are drawn.

    Args: runs: rows of `read_curves`, or the like.
    Raises: ValueError for no run.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    panels = _panels(runs)
    figure = Figure(figsize=(max(5.0, 1.2 + 2.3 * len(panels)), 5.2), layout="constrained")
    grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
    lines: dict[str, Line2D] = {}
    for (above, below), (_, title) in zip(grid.T, sorted(panels), strict=True):
        above.set_title(title, fontsize=10)
        below.set_xlabel("update")
    for pair, panel in zip(grid.T, sorted(panels), strict=True):
        for axes, column in zip(pair, COLUMNS, strict=True):
            axes.grid(color=PALETTE["grid"])
            for objective, curves in sorted(panels[panel].items()):
                seeds = f"{len(curves)} seed{'s' * (len(curves) > 1)}"
                label = f"{NAMES.get(objective, objective)}, {seeds}"
                lines[label] = _draw(axes, objective, curves, column)
    for axes, label in zip(grid[:, 0], COLUMNS.values(), strict=True):
        axes.set_ylabel(label)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, frameon=False)
    return figure


Panel = tuple[float, str]  # its learning rate, to sort by, and its title


def _panels(runs: Sequence[dict]) -> dict[Panel, dict[str, list[list[dict]]]]:
    """The curves of each objective, panel by panel. A title says what differs between the runs.

    A run whose settings are not known has the rate 0 and no title.
    """
    settings = [run["settings"] for run in runs]
    names = dict.fromkeys(name for own in settings for name in own)
    differing = [name for name in names if _is_title(name, settings)]
    panels: dict[Panel, dict[str, list[list[dict]]]] = {}
    for run in runs:
        own = run["settings"]
        parts = [f"{name.replace('_', ' ')} {own[name]}" for name in differing if name in own]
        panel = (own.get("learning_rate", 0.0), "\n".join(parts))
        panels.setdefault(panel, {}).setdefault(own["objective"], []).append(run["curve"])
    return panels


def _is_title(name: str, settings: Sequence[dict]) -> bool:
    """Whether a setting stands in the titles: the learning rate always, others where runs differ in them."""
    if name in ("objective", "seed"):
        return False
    values = {own[name] for own in settings if name in own}
    return name == "learning_rate" or len(values) > 1


def _draw(axes: Axes, objective: str, curves: list[list[dict]], column: str) -> Line2D:
    """The mean of some runs, with its interval where they are several."""
    runs = [{point["update"]: point[column] for point in curve} for curve in curves]
    updates = sorted(set.intersection(*map(set, runs)))
    means = [interval(np.array([run[update] for run in runs])) for update in updates]
    style = {"color": PALETTE.get(objective), "linestyle": LINES.get(objective, "-")}
    marker = {"marker": MARKERS.get(objective, "."), "markersize": 4, "markevery": 0.12}
    (line,) = axes.plot(updates, [row["mean"] for row in means], **style, **marker)
    if len(runs) > 1:
        low = [row["ci_low"] for row in means]
        high = [row["ci_high"] for row in means]
        axes.fill_between(updates, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    return line


def plot_language_trap(curves: Sequence[dict], updates: int = 250) -> Figure:
    """Draw the target's probability over the updates of every run of `language_trap`, and the mean of each objective.

    Rows are n, the cells' number of shared actions; columns are learning rates. A run that ended early keeps its value.

    Args:
        curves: rows of `language_trap`.
        updates: of a whole run.

    Raises:
        ValueError: for no row.
    """
    if not curves:
        raise ValueError("curves must hold at least one row, got none")
    panels: dict[tuple[int, float], dict[str, dict[tuple, list[float]]]] = {}
    for row in curves:
        own = panels.setdefault((row["n"], row["learning_rate"]), {})
        runs = own.setdefault(row["objective"], {})
        runs.setdefault((row["r_neg"], row["seed"]), []).append(row["p_target"])
    ns, rates = (sorted({key[k] for key in panels}) for k in (0, 1))
    size = (1.0 + 3.1 * len(rates), 0.9 + 2.3 * len(ns))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(ns), len(rates), sharex=True, sharey=True, squeeze=False)
    for row_of_axes, n in zip(grid, ns, strict=True):
        for axes, rate in zip(row_of_axes, rates, strict=True):
            label_axes(axes, title=f"n = {n}, learning rate {rate:g}")
            for objective, runs in panels.get((n, rate), {}).items():
                _draw_runs(axes, objective, [*runs.values()], updates)
            axes.set(ylim=(-0.03, 1.03))
    for axes in grid[:, 0]:
        axes.set_ylabel("P(target)")
    for axes in grid[-1]:
        axes.set_xlabel("update")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_runs(axes: Axes, objective: str, runs: Sequence[list[float]], updates: int) -> None:
    """Each run as a thin line as far as it went, and their mean over all updates as a thick one."""
    style = {"color": PALETTE[objective], "linestyle": LINES[objective]}
    for run in runs:
        axes.plot(range(len(run)), run, linewidth=0.6, alpha=0.4, **style)
    whole = [run + run[-1:] * (updates + 1 - len(run)) for run in runs]
    mean = np.mean(whole, axis=0)
    axes.plot(mean, linewidth=2.4, label=f"{NAMES[objective]}, mean of all runs", **style)
