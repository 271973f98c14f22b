"""pass@k of a comparison's runs: by hand from its samples, kept, paired."""

import json

import pytest

from minigrpo.commands import collect
from minigrpo.llm import experiments
from minigrpo.llm.cli import main
from minigrpo.llm.evaluation import evaluate
from minigrpo.llm.experiments import pass_at_k, pass_differences
from minigrpo.llm.runs import load_run, read_settings
from minigrpo.llm.tasks import load_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four short runs: two objectives, two seeds."""
    out = tmp_path_factory.mktemp("compared")
    options = ["--updates", "3", "--eval-size", "20", "--prompts", "2", "--group-size", "4", "--seeds", "2"]
    assert main(["compare", *options, "--out", str(out), "--quiet"]) == 0
    return out


def test_rows_are_those_of_evaluate(folder):
    rows, finished = collect(pass_at_k([folder], samples=4))
    assert finished
    assert [(row["objective"], row["seed"]) for row in rows] == [
        *(("grpo", 0), ("grpo", 1)),
        *(("lambda_grpo", 0), ("lambda_grpo", 1)),
    ]
    run = folder / "lambda_grpo-lr0.0001-seed1"
    settings = read_settings(run)
    loaded, update = load_run(run, settings)
    assert update == 3
    task = load_task("arithmetic", heldout_size=20)
    found = evaluate(loaded.model, loaded.tokenizer, task, max_new_tokens=24, samples=4, temperature=1.0, batch=1024)
    assert {name: rows[3][name] for name in ("pass@1", "pass@2", "pass@4")} == {
        name: found[name] for name in ("pass@1", "pass@2", "pass@4")
    }
    assert rows[3]["pass@1"] < rows[3]["pass@2"] < rows[3]["pass@4"]


def test_what_is_known_is_not_evaluated_again(folder, monkeypatch):
    rows, _ = collect(pass_at_k([folder], samples=2))
    monkeypatch.setattr(experiments, "evaluate", None)
    assert collect(pass_at_k([folder], rows, samples=2))[0] == rows
    with pytest.raises(TypeError):  # other samples are not known
        collect(pass_at_k([folder], rows, samples=4))


def test_differences_are_paired():
    same = {"model": "tiny", "task": "arithmetic", "group_size": 8, "temperature": 1.0, "updates": 3}
    same |= {"learning_rate": 1e-4, "samples": 2}
    values = {("grpo", 0): (0.5, 0.6), ("grpo", 1): (0.1, 0.2), ("rloo", 0): (0.7, 0.6), ("rloo", 1): (0.5, 0.2)}
    rows = [
        same | {"objective": objective, "seed": seed, "pass@1": one, "pass@2": two}
        for (objective, seed), (one, two) in values.items()
    ]
    first, second = pass_differences(rows)
    assert (first["difference"], first["k"], first["seeds"]) == ("rloo − grpo", 1, 2)
    assert first["mean"] == pytest.approx(0.3)  # of 0.2 and 0.4
    assert (first["ci_low"], first["ci_high"]) == pytest.approx((0.2, 0.4))
    assert (second["k"], second["mean"]) == (2, 0)
    shorter = [row | {"updates": 2} for row in rows if row["objective"] == "grpo"]
    assert pass_differences(rows + shorter) == [first, second]  # other runs are not their pairs


def test_the_command_goes_on_from_its_file(folder, tmp_path, capsys):
    file = tmp_path / "passk.json"
    assert main(["passk", str(folder), "--samples", "2", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "lambda_grpo − grpo" in printed
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["finished"]
    assert len(result["rows"]) == 4
    rows = result["rows"]
    rows[0]["pass@1"] = 0.125  # so that it would show
    file.write_text(json.dumps(result), encoding="utf-8")
    assert main(["passk", str(folder), "--samples", "2", "--json", str(file)]) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["rows"][0]["pass@1"] == 0.125


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        ([], "holds no run: make some by `llm compare --out"),
    ],
)
def test_what_a_user_may_get_wrong(options, words, tmp_path, capsys):
    assert main(["passk", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err
