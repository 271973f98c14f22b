"""The command line: what a user types, what comes back, and what a mistake is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minigrpo.cli
import minigrpo.experiments
from minigrpo.cli import main

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, **options):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "minigrpo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, **options)


def test_theorem_writes_its_rows(tmp_path, capsys):
    assert main(["theorem", "--groups", "4", "--json", str(tmp_path / "theorem.json")]) == 0
    result = json.loads((tmp_path / "theorem.json").read_text())
    assert result["finished"]
    assert len(result["rows"]) == 32
    assert {"case", "loss_gap", "grad_gap"} <= set(result["rows"][0])
    printed = capsys.readouterr().out
    assert all(row["case"] in printed for row in result["rows"])
    assert "GRPO = PRM in 24 cases" in printed


def test_a_theorem_that_fails_exits_with_1(monkeypatch, capsys):
    rows = [{"case": "made up", "loss_gap": 0.0, "grad_gap": 1e-6, "groups": 1, "differ": 1.0, "median_gap": 1e-6}]
    monkeypatch.setattr(minigrpo.cli, "theorem", lambda **options: iter(rows))
    assert main(["theorem"]) == 1
    assert "NOT as the theorem says: made up." in capsys.readouterr().out


def test_table1_writes_rows_differences_and_controls(tmp_path, capsys):
    file = tmp_path / "folder" / "table1.json"
    assert (
        main(["table1", "--seeds", "2", "--updates", "50", "--lr", "5", "20", "--controls", "--json", str(file)]) == 0
    )
    result = json.loads(file.read_text())
    assert len(result["rows"]) == 2 * 12
    assert len(result["differences"]) == 2 * 6
    assert {row["lr"] for row in result["rows"]} == {5.0, 20.0}
    controls = {row["control"].partition(", |")[0] for row in result["controls"]}
    assert controls == {"learning rates", "tabular, adam", "dial"}
    keys = {"n", "r_neg", "objective", "policy", "optimizer", "lr", "seeds", "mean", "ci_low", "ci_high"}
    assert all(set(row) == keys for row in result["rows"])
    printed = capsys.readouterr().out
    assert "0.40    0.57" in printed  # the paper's column
    assert "too narrow" in printed  # so few seeds


def test_table1_with_another_power_says_so(tmp_path, capsys):
    file = tmp_path / "table1.json"
    assert main(["table1", "--seeds", "2", "--updates", "50", "--power", "0.5", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {row["power"] for row in result["rows"] + result["differences"]} == {0.5}
    assert "|λ|^-0.5" in capsys.readouterr().out


def test_overlap_and_train(tmp_path, capsys):
    assert main(["overlap", "--group-sizes", "4", "--json", str(tmp_path / "overlap.json")]) == 0
    rows = json.loads((tmp_path / "overlap.json").read_text())["rows"]
    assert [row["task"] for row in rows] == ["ArithmeticChain"] * 100 + ["FrozenLake"] * 200
    lake = ["--env-id", "FrozenLake-v1", "--env-arg", "is_slippery=false", "--env-arg", "map_name=4x4"]
    out = tmp_path / "run"
    assert main(["train", *lake, "--updates", "3", "--out", str(out), "--json", str(tmp_path / "train.json")]) == 0
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["config"]["env_kwargs"] == {"is_slippery": False, "map_name": "4x4"}
    assert [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == result["rows"]
    assert "mean of the last 3 updates" in capsys.readouterr().out


def test_demo_writes_a_page_of_its_own(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--seeds", "2", "--json", str(tmp_path / "demo.json")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == page.count("data:image/") == 5
    assert "J K L" in page
    printed = capsys.readouterr().out
    assert (tmp_path / "report.html").as_uri() in printed
    assert "GRPO = PRM in 24 cases" in printed
    result = json.loads((tmp_path / "demo.json").read_text())
    assert {len(result[key]) for key in ("theorem", "rows", "differences")} == {32, 12, 6}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table1", "--seeds", "1"], "seeds must be at least 2, got 1"),
        (["table1", "--lr", "-1"], "learning_rate must be above 0 and finite, got -1.0"),
        (["table1", "--updates", "10"], "updates must be at least 50, got 10"),
        (["table1", "--group-size", "1"], "group_size must be at least 2, got 1"),
        (["theorem", "--groups", "0"], "groups must be at least 4, got 0"),
        (["theorem", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["train", "--env-arg", "n=1.5"], "n must be a whole number from 0 to 3, below depth, got 1.5"),
        (["train", "--env-arg", "depth=70"], "depth must be a whole number from 1 to 30, got 70"),
        (["theorem", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["overlap", "--group-sizes", "1"], "group_size must be a whole number of at least 2, got 1"),
        (["train", "--env-id", "NoSuchTask-v0"], "env 'NoSuchTask-v0' can't be made"),
        (["train", "--env-id", "CartPole-v1"], "must have Discrete(n) as its observation_space, got Box"),
        (["train", "--env-arg", "depth"], "--env-arg must be NAME=VALUE, got 'depth'"),
        (["train", "--env-arg", "depth=0"], "depth must be a whole number from 1 to 30, got 0"),
        (["train", "--epsilon", "0"], "epsilon must be above 0, or None for no clipping, got 0.0"),
    ],
)
def test_a_mistake_gets_one_sentence_and_2(arguments, words, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"minigrpo {arguments[0]}: ")
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table1", "--policy", "lstm"], "argument --policy: invalid choice: 'lstm'"),
        (["train", "--objective", "dpo"], "argument --objective: invalid choice: 'dpo'"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ],
)
def test_an_unknown_choice_names_what_there_is(arguments, words):
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["theorem", "table1", "overlap", "train", "demo"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(command, tmp_path, monkeypatch, capsys):
    def work(*arguments, **options):
        raise AssertionError("the work began")

    for name in ("theorem", "table1", "overlap", "train"):
        monkeypatch.setattr(minigrpo.cli, name, work)
    (tmp_path / "file").write_text("mine")
    blocked = tmp_path / "file" / "result.json"
    assert main([command, "--json", str(blocked)]) == 2
    assert f"{blocked} can't be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_train_keeps_a_run_that_is_there(tmp_path, capsys):
    out = ["--updates", "2", "--out", str(tmp_path)]
    assert main(["train", *out]) == 0
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert main(["train", *out]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_ctrl_c_keeps_what_was_finished(tmp_path):
    """A real SIGINT in the middle of a long run: exit code 130, whole files, no traceback."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "minigrpo", "train", "--updates", "100000", "--out", str(out), "--json"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "train.json")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
    )
    try:
        end = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 5:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, "no metrics within a minute"
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    result = json.loads((tmp_path / "train.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert result["rows"] == lines
    assert not result["finished"]
    assert [row["update"] for row in lines] == list(range(len(lines)))


def test_ctrl_c_between_cases_keeps_those_that_were_finished(tmp_path, monkeypatch, capsys):
    original = minigrpo.cli.theorem

    def interrupted(**options):
        cases = original(**options)
        yield next(cases)
        yield next(cases)
        raise KeyboardInterrupt

    monkeypatch.setattr(minigrpo.cli, "theorem", interrupted)
    assert main(["theorem", "--groups", "4", "--json", str(tmp_path / "theorem.json")]) == 130
    result = json.loads((tmp_path / "theorem.json").read_text())
    assert [row["case"] for row in result["rows"]] == ["random groups, tabular", "random groups, mlp"]
    assert not result["finished"]
    assert "random groups, mlp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "interrupted_call", "seeds", "rates"),
    [
        (["--seeds", "30"], 5, [20], [20.0]),  # in the third chunk of 10 seeds
        (["--seeds", "10", "--lr", "5", "20"], 3, [10], [5.0]),  # in the second learning rate
        (["--seeds", "10", "--controls"], 6, [10], [20.0]),  # in the second control
    ],
)
def test_ctrl_c_in_table1_keeps_what_is_whole(options, interrupted_call, seeds, rates, tmp_path, monkeypatch, capsys):
    original, calls = minigrpo.experiments.trap.train_trap, []

    def interrupted(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == interrupted_call:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(minigrpo.experiments.trap, "train_trap", interrupted)
    assert main(["table1", "--updates", "50", *options, "--json", str(tmp_path / "table1.json")]) == 130
    assert len(calls) == interrupted_call  # nothing was begun after it
    result = json.loads((tmp_path / "table1.json").read_text())
    assert {row["seeds"] for row in result["rows"]} == set(seeds)
    assert {row["lr"] for row in result["rows"]} == set(rates)
    assert {row["seeds"] for row in result["controls"]} <= set(seeds)
    assert bool(result["controls"]) == ("--controls" in options)
    assert not result["finished"]
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_in_demo_says_so(tmp_path, monkeypatch, capsys):
    original, calls = minigrpo.experiments.trap.train_trap, []

    def interrupted(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(minigrpo.experiments.trap, "train_trap", interrupted)
    assert main(["demo", "--out", str(tmp_path), "--seeds", "12"]) == 130
    assert "10 of 12 seeds" in capsys.readouterr().err
    assert "10 paired seeds" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_demo_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "minigrpo.demo", None)
    monkeypatch.setattr("builtins.__import__", _without_matplotlib)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "matplotlib is missing" in capsys.readouterr().err


real_import = __import__


def _without_matplotlib(name, *arguments, **options):
    if name == "minigrpo.demo":
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    return real_import(name, *arguments, **options)


def test_version():
    result = run("--version")
    assert result.stdout.strip() == f"minigrpo {minigrpo.__version__}"
