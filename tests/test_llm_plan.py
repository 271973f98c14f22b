"""`llm plan`: the arithmetic of a class on its cards, what it refuses, and runs that keep to it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from minigrpo.cli import main
from minigrpo.llm.gpu import A10, A100, CARDS, H100, memory, minutes
from minigrpo.llm.models import load_model
from minigrpo.llm.plan import Plan, card_of, plan_recipe, plan_settings, plan_text
from minigrpo.llm.prompts import longest_prompt
from minigrpo.llm.runs import read_metrics
from minigrpo.llm.settings import PRESETS, Settings
from minigrpo.llm.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "labs" / "gpu" / "recipes" / "one_gpu_lora.yaml"
CLASS = PRESETS["class"].settings
PEOPLE = {"card": A10, "cards": 2, "students": 30, "runs_each": 1}


def plan(*arguments):
    return main(["llm", "plan", *map(str, arguments)])


def test_a_class_by_hand():
    found = Plan("x", A10, cards=2, students=30, runs_each=1, cards_a_run=1, memory=10.0, hours=0.5)
    assert (found.runs, found.fits, found.at_once) == (30, 2, 2)  # 21.6 GB hold two
    assert found.last == 7.5  # 15 rounds
    assert found.card_hours == 15
    text = plan_text(found)
    assert "30 students × 1 = 30 runs, 2 at a time" in text
    assert "after 7.5 hours; with half as much again for failures 11.2 hours" in text
    assert "15.0 card-hours, about 15 dollars" in text
    assert "2 runs fit on a card" in text
    odd = dataclasses.replace(found, students=31)
    assert odd.last == 8.0  # the last card runs alone
    spread = dataclasses.replace(found, cards=8, cards_a_run=4)
    assert (spread.at_once, spread.card_hours) == (2, 60)


def test_a_preset_is_what_the_calculator_says():
    found = plan_settings("class", CLASS, **PEOPLE)
    assert found.memory == memory(CLASS)["all"]
    assert found.hours == minutes(CLASS, A10) / 60
    assert 20 <= 60 * found.hours <= 30  # a class's slot
    assert found.last < 8  # of a day


def test_a_recipe_is_what_the_cost_table_says():
    found = plan_recipe(RECIPE, **PEOPLE)
    readme = (ROOT / "labs" / "gpu" / "README.md").read_text(encoding="utf-8")
    assert f"| {found.memory:.0f} GB | 400 | {found.hours:.1f} |" in readme
    paper = plan_recipe(RECIPE.with_name("paper_qwen.yaml"), card=H100, cards=1, students=1, runs_each=1)
    assert f"| {paper.memory:.0f} GB | 1000 | {paper.hours:.1f} |" in readme


@pytest.mark.parametrize(
    ("preset", "card", "words"),
    [
        ("gpu80", "a10", "gpu80 needs 55 GB, and one A10 has 22 of 24 GB to give; what fits: --preset gpu16 (11 GB)"),
        ("class", "t4", None),
        ("gpu80-7b", "t4", "what fits: --preset gpu16 (11 GB); --preset class (12 GB)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(preset, card, words, capsys):
    code = plan("--preset", preset, "--card", card)
    errors = capsys.readouterr().err
    assert (code, errors) == (0, "") if words is None else (code == 2 and words in errors)


def test_what_would_fit_does_fit():
    large = dataclasses.replace(CLASS, micro_batch=256)
    with pytest.raises(ValueError, match=r"what fits: --micro-batch (\d+) \((\d+) GB\)") as error:
        plan_settings("class", large, **PEOPLE)
    size = int(str(error.value).partition("--micro-batch ")[2].partition(" ")[0])
    assert memory(dataclasses.replace(large, micro_batch=size))["all"] <= 0.9 * 24
    assert memory(dataclasses.replace(large, micro_batch=2 * size))["all"] > 0.9 * 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--card", "z9"], "card must be one of t4, l4, a10"),
        (["--students", "0"], "students must be at least 1, got 0"),
        (["--cards", "0"], "cards must be at least 1, got 0"),
        (["--model", "nobody/knows"], "the shape of model 'nobody/knows' is not known"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["--recipe", RECIPE, "--preset", "class"], "leave out the others"),
        (["--cards-a-run", "4"], "--cards-a-run is for a --recipe"),
        (["--prompt-tokens", "-5000"], "prompt_tokens must be at least 1, got -5000"),
        (["--recipe", RECIPE, "--prompt-tokens", "9"], "leave out the others"),
        (["--recipe", RECIPE, "--cards-a-run", "4"], "takes 4 cards, and there are 1"),
    ],
)
def test_mistakes_get_a_sentence(arguments, words, capsys):
    assert plan(*arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is no YAML"), ("- 1", "is no recipe"), ("model: smollm2-135m", "has no setting")],
)
def test_a_broken_recipe_gets_a_sentence(tmp_path, text, words, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert plan("--recipe", file) == 2
    assert words in capsys.readouterr().err


def test_json(tmp_path):
    assert plan("--cards", "2", "--json", tmp_path / "plan.json") == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["card"], found["runs"], found["at_once"]) == ("A10", 30, 2)
    assert found["last"] == pytest.approx(15 * found["hours"])


def test_cards_are_named_as_they_are_asked_for():
    assert card_of("A100") is A100
    assert all(card_of(name) is card for name, card in CARDS.items())


def test_a_run_keeps_to_its_plan(tmp_path):
    """On a CPU, where a card is one thread, and in a process of its own: what was planned is of the right order."""
    settings = Settings(updates=20, eval_size=20, eval_every=20)
    command = [sys.executable, "-m", "minigrpo", "llm", "train", "--quiet", "--out", str(tmp_path)]
    options = ["--updates", "20", "--eval-size", "20", "--eval-every", "20"]
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, timeout=300)
    rows = read_metrics(tmp_path)
    prompt = longest_prompt(load_model("tiny"), load_task("arithmetic"), settings.max_new_tokens)
    planned = memory(settings, prompt)["all"]
    assert planned / 3 < rows[-1]["memory_gb"] < 1.5 * planned
    spent = sum(row["seconds"] for row in rows) / 60
    assert minutes(settings, CARDS["cpu"], prompt) / 8 < spent < 8 * minutes(settings, CARDS["cpu"], prompt)
