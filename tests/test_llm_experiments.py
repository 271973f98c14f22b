"""Comparisons of runs: what is paired with what, what is skipped, and the curves that are drawn."""

import dataclasses
import json

import pytest

from minigrpo.cli import main
from minigrpo.llm.experiments import compare, curve, differences
from minigrpo.llm.plots import HEADER, curves_csv, plot_curves, read_curves
from minigrpo.llm.runs import read_metrics
from minigrpo.llm.settings import Settings
from minigrpo.text import differences_text

QUICK = Settings(
    updates=2, prompts=2, group_size=4, max_new_tokens=10, eval_size=10, eval_every=1, save_every=2, train_size=20
)


def runs_of(lasts, **common):
    """Rows of `compare` from {(objective, rate): last accuracies by seed}."""
    return [
        {"objective": o, "learning_rate": lr, "seed": k, "first": 0.5, "best": last + 0.1, "last": last} | common
        for (o, lr), values in lasts.items()
        for k, last in enumerate(values)
    ]


def test_differences_by_hand():
    rows = runs_of(
        {
            ("grpo", 1e-4): (0.6, 0.7, 0.8),
            ("grpo", 2e-4): (0.5, 0.5, 0.5),
            ("lambda_grpo", 1e-4): (0.7, 0.8, 0.9),
            ("lambda_grpo", 2e-4): (0.8, 0.9, 1.0),
        },
        updates_to_90=10,
    )
    found = {(row["at"], *row["learning_rates"], row["measure"]): row for row in differences(rows)}
    assert len(found) == 3 * 3  # two rates and each one's best; three measures
    assert {row["difference"] for row in found.values()} == {"lambda_grpo − grpo"}
    assert found["each rate", 1e-4, 1e-4, "last"]["mean"] == pytest.approx(0.1)
    assert found["each rate", 2e-4, 2e-4, "best"]["mean"] == pytest.approx(0.4)
    best = found["best rates", 2e-4, 1e-4, "last"]
    assert (best["mean"], best["ci_low"], best["ci_high"], best["seeds"]) == (*[pytest.approx(0.2)] * 3, 3)
    assert found["best rates", 2e-4, 1e-4, "updates_to_90"]["mean"] == 0
    text = differences_text(differences(rows))
    assert "best: 0.0002, 0.0001  +0.20 [+0.20, +0.20]  +0.20 [+0.20, +0.20]" in text


def test_differences_are_paired_by_seed_whatever_the_order():
    rows = runs_of({("grpo", 1e-4): (0.2, 0.9), ("prm", 1e-4): (0.3, 1.0)}, updates_to_90=10)
    (last, *_) = differences([rows[k] for k in (1, 0, 2, 3)])
    assert (last["ci_low"], last["ci_high"]) == pytest.approx((0.1, 0.1))
    for missing in (1, 2):  # a seed of grpo, a seed of prm
        (last, *_) = differences([row for k, row in enumerate(rows) if k != missing])
        assert (last["seeds"], last["mean"]) == (1, pytest.approx(0.1))
    assert differences(rows[:2]) == []
    assert differences_text([]) == ""


def test_curve_by_hand():
    """The reward is the mean since the evaluation before, this update's included."""
    rows = [{"update": k, "reward": reward} for k, reward in enumerate((0.5, 0.1, 0.3, 0.8))]
    rows[0]["eval_accuracy"], rows[2]["eval_accuracy"], rows[3]["eval_accuracy"] = 0.4, 0.5, 0.6
    assert curve(rows) == [
        {"update": 0, "eval_accuracy": 0.4, "reward": 0.5},
        {"update": 2, "eval_accuracy": 0.5, "reward": pytest.approx(0.2)},
        {"update": 3, "eval_accuracy": 0.6, "reward": 0.8},
    ]


def compared(out, settings=QUICK, **options):
    given = {"objectives": ["grpo"], "seeds": 1, "learning_rates": [1e-4]} | options
    return list(compare(settings, out, **given, progress=False))


def test_a_comparison_refuses_runs_with_other_settings(tmp_path):
    compared(tmp_path)
    before = read_metrics(tmp_path / "grpo-lr0.0001-seed0")
    with pytest.raises(ValueError, match="was made with other settings: group_size 4, not 3"):
        compared(tmp_path, dataclasses.replace(QUICK, group_size=3))
    assert read_metrics(tmp_path / "grpo-lr0.0001-seed0") == before


def test_a_comparison_goes_on_after_a_run_that_was_killed(tmp_path):
    """Before its first checkpoint: the run begins anew, and gives the unbroken run's numbers."""
    (whole,) = compared(tmp_path / "whole")
    compared(tmp_path / "killed")
    run = tmp_path / "killed" / "grpo-lr0.0001-seed0"
    (run / "checkpoint.safetensors").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:1]) + lines[1][:20])
    assert compared(tmp_path / "killed") == [whole]


def row(objective, seed, values, **settings):
    points = [{"update": 10 * k, "eval_accuracy": value, "reward": value / 2} for k, value in enumerate(values)]
    return {"settings": {"objective": objective, "seed": seed, "learning_rate": 0.1} | settings, "curve": points}


def test_plot_draws_the_mean_and_its_interval():
    runs = [row("grpo", 0, (0.2, 0.4)), row("grpo", 1, (0.2, 0.8, 0.9)), row("prm", 0, (0.1, 0.3))]
    accuracy, reward = plot_curves(runs).axes
    lines = {tuple(line.get_xdata()): line.get_ydata() for line in accuracy.get_lines()}
    assert list(lines) == [(0, 10)]  # the updates that all runs of a line have
    assert [list(line.get_ydata()) for line in accuracy.get_lines()] == [pytest.approx([0.2, 0.6]), [0.1, 0.3]]
    (band,) = accuracy.collections  # none around a single run
    assert band.get_datalim(accuracy.transData).bounds == pytest.approx((0, 0.2, 10, 0.6))  # from 0.2 to 0.8
    assert list(reward.get_lines()[1].get_ydata()) == [0.05, 0.15]


def test_plot_sets_side_by_side_what_differs():
    runs = [row("grpo", k, (0.2, 0.4), learning_rate=lr, task=t) for k, (lr, t) in enumerate(((1, "b"), (0.5, "a")))]
    figure = plot_curves(runs)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["learning rate 0.5\ntask a", "learning rate 1\ntask b"]
    (label,) = (text.get_text() for text in figure.legends[0].get_texts())
    assert label == "GRPO, 1 seed"


def test_plot_needs_runs():
    with pytest.raises(ValueError, match="at least one run, got none"):
        plot_curves([])


def test_curves_are_read_from_folders_and_from_csv_alike(tmp_path):
    rows = compared(tmp_path / "runs", objectives=["grpo", "prm"])
    (tmp_path / "runs" / "not-yet").mkdir()
    (tmp_path / "curves.csv").write_text(curves_csv(rows))
    folders, table = read_curves([tmp_path / "runs"]), read_curves([tmp_path / "curves.csv"])
    assert [run["settings"]["objective"] for run in folders] == ["grpo", "prm"]
    for ours, theirs in zip(folders, table, strict=True):
        assert theirs["settings"].items() <= ours["settings"].items()
        for a, b in zip(ours["curve"], theirs["curve"], strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    assert read_curves([tmp_path / "runs" / "prm-lr0.0001-seed0"]) == folders[1:]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must have the columns objective, learning_rate, seed, update, "):
        read_curves([tmp_path / "other.csv"])


def test_plot_works_from_metrics_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    points = ({"update": k, "reward": 0.5, "eval_accuracy": 0.1 * k} for k in range(3))
    (tmp_path / "mine" / "metrics.jsonl").write_text("".join(f"{json.dumps(point)}\n" for point in points))
    assert main(["llm", "plot", str(tmp_path / "mine"), "--out", str(tmp_path / "mine.png")]) == 0
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    figure = plot_curves(read_curves([tmp_path / "mine"]))
    assert figure.legends[0].get_texts()[0].get_text() == "mine, 1 seed"


def test_compare_writes_curves_and_differences(tmp_path, capsys):
    options = "--updates 2 --prompts 2 --group-size 4 --max-new-tokens 10 --eval-size 10 --eval-every 1 --train-size 20"
    files = ["--out", tmp_path / "runs", "--csv", tmp_path / "c.csv", "--json", tmp_path / "c.json"]
    assert main(["llm", "compare", *options.split(), "--seeds", "2", *map(str, files)]) == 0
    header, *lines = (tmp_path / "c.csv").read_text().splitlines()
    assert header == ",".join(HEADER)
    assert len(lines) == 2 * 2 * 3  # objectives, seeds, evaluations
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(found["rows"]) == 4
    assert {row["difference"] for row in found["differences"]} == {"lambda_grpo − grpo"}
    assert all("curve" not in row for row in found["rows"])
    said = capsys.readouterr()
    assert "run 4 of 4: lambda_grpo, learning rate 0.0001, seed 1: accuracy" in said.err
    assert "Paired differences, with 95% intervals" in said.out
