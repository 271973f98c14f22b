"""`python -m minigrpo llm`: what a user types, what comes back, and what a mistake is told."""

import json
import time

import pytest

from minigrpo.cli import main
from minigrpo.llm.settings import PRESETS, Settings

QUICK = (
    "--updates 2 --prompts 2 --group-size 4 --max-new-tokens 10 --eval-size 10 --eval-every 1 --train-size 20".split()
)


def llm(*arguments):
    return main(["llm", *map(str, arguments)])


def test_train_overlap_and_plot(tmp_path, capsys):
    run = tmp_path / "run"
    assert llm("train", *QUICK, "--objective", "lambda_grpo", "--out", run, "--json", tmp_path / "train.json") == 0
    settings = json.loads((run / "manifest.json").read_text())["settings"]
    assert settings["objective"] == "lambda_grpo"
    assert settings["learning_rate"] == PRESETS["cpu"].settings.learning_rate
    assert json.loads((tmp_path / "train.json").read_text())["finished"]
    assert "held-out greedy accuracy" in capsys.readouterr().out
    assert llm("overlap", run, "--json", tmp_path / "overlap.json") == 0
    rows = json.loads((tmp_path / "overlap.json").read_text())["rows"]
    assert [row["update"] for row in rows] == [0, 1, 2]
    assert llm("plot", run, "--out", tmp_path / "plot.png") == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_eval(tmp_path, capsys):
    assert llm("eval", "--eval-size", 30, "--json", tmp_path / "eval.json") == 0
    result = json.loads((tmp_path / "eval.json").read_text())
    assert {"accuracy", "ci_low", "ci_high", "problems"} <= set(result)
    assert result["problems"] == 30
    assert f"{result['accuracy']:.3f}" in capsys.readouterr().out
    assert llm("eval", "--eval-size", 10, "--samples", 2, "--temperature", 1) == 0
    assert "pass@2" in capsys.readouterr().out


def test_theorem(tmp_path, capsys):
    assert llm("theorem", "--json", tmp_path / "theorem.json") == 0
    (row,) = json.loads((tmp_path / "theorem.json").read_text())["rows"]
    assert {"case", "loss_gap", "grad_gap"} <= set(row)
    assert "|λ|" in capsys.readouterr().out


def test_compare_skips_what_is_finished(tmp_path, capsys):
    command = ["compare", *QUICK, "--seeds", 1, "--out", tmp_path, "--json", tmp_path / "compare.json"]
    assert llm(*command) == 0
    first = json.loads((tmp_path / "compare.json").read_text())
    assert [row["objective"] for row in first["rows"]] == ["grpo", "lambda_grpo"]
    started = time.monotonic()
    assert llm(*command) == 0
    assert time.monotonic() - started < 1  # no model was even loaded
    assert json.loads((tmp_path / "compare.json").read_text()) == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--task", "no_such_task"], "no_such_task"),
        (["--group-size", "1"], "group_size must be at least 2, got 1"),
        (["--device", "cuda:9"], "cuda"),
        (["--max-new-tokens", "500"], "max_new_tokens 500 must fit into the model's context"),
    ],
)
def test_a_mistake_gets_one_sentence_and_2(arguments, words, tmp_path, capsys):
    assert llm("train", *QUICK, *arguments, "--out", tmp_path / "run") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("minigrpo llm train: ")
    assert words in errors
    assert errors.count("\n") == 1


def test_every_setting_is_an_option_with_its_line(capsys):
    with pytest.raises(SystemExit):
        llm("train", "--help")
    text = capsys.readouterr().out
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
