"""The trap with a language model: one packed pass is the model's own policy, and runs are paired, kept and scored."""

import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import minigrpo.llm.trap as trap
from minigrpo.cli import main
from minigrpo.commands import collect
from minigrpo.experiments.trap import CELLS
from minigrpo.llm.trap import (
    LanguageTrap,
    TreePolicy,
    language_trap,
    language_trap_rows,
    mirrored_target,
    read_curves,
    train_language_trap,
)

SMALL = {"updates": 50, "group_size": 8}


def small_gpt2(seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def small_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, tie_word_embeddings=False, **sizes))


def policy_of(model, prompt=(10, 3)):
    return TreePolicy(model, torch.tensor(prompt), torch.tensor([4, 7]), depth=4)


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
def test_one_pass_is_the_models_own_policy(make):
    """Each path by a pass of its own, other tokens masked; and the gradient of a weighted sum."""
    policy = policy_of(make())
    assert policy.ids.shape == (1, 2 + 14)  # the prompt and the inner nodes but the root, whose token is the prompt's
    found = policy.leaf_logps()
    assert found.exp().prod(dim=1).sum().item() == pytest.approx(1, abs=1e-6)
    rows = []
    for path in policy.paths.tolist():
        ids = torch.tensor([[10, 3, *(4 if action == 0 else 7 for action in path)]])
        logits = policy.model(ids).logits[0, 1:-1, [4, 7]]
        rows.append(logits.log_softmax(dim=-1)[torch.arange(4), path])
    expected = torch.stack(rows)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(16, 4)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad((weights * found).sum(), parameters)
    theirs = torch.autograd.grad((weights * expected).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_targets_come_in_mirrored_pairs():
    pairs = [(mirrored_target(2 * k, 4), mirrored_target(2 * k + 1, 4)) for k in range(5)]
    assert all([1 - action for action in one] == other for one, other in pairs)
    assert len({tuple(one) for one, _ in pairs}) > 1


def test_a_run_tells_the_exact_probabilities():
    """Of the target and of its branch, before the first update and after each."""
    config = LanguageTrap(learning_rate=1e-3, **SMALL)
    cell, seed = (1, -1.0), 3
    policy, twin = policy_of(small_gpt2()), policy_of(small_gpt2())
    rows = train_language_trap(policy, config, "lambda_grpo", cell, seed, early=False)
    assert [row["update"] for row in rows] == list(range(51))
    chances = twin.leaf_logps().detach().double().sum(dim=1).exp()
    target = mirrored_target(seed, 4)
    assert rows[0]["p_target"] == pytest.approx(chances[twin.paths.tolist().index(target)].item(), rel=1e-6)
    half = sum(p for path, p in zip(twin.paths.tolist(), chances.tolist(), strict=True) if path[0] == target[0])
    assert rows[0]["p_branch"] == pytest.approx(half, rel=1e-6)
    assert rows[-1]["p_target"] != pytest.approx(rows[0]["p_target"], rel=0.01)


def test_runs_end_where_they_are_decided(monkeypatch):
    decided = [{"p_target": 0.96}] * trap.STEADY
    assert trap._decided(decided)
    assert trap._decided([{"p_target": 1e-6}] * trap.STEADY)
    assert not trap._decided(decided[1:])
    assert not trap._decided([*decided[1:], {"p_target": 0.5}])
    assert not trap._decided([*decided[1:], {"p_target": 1e-6}])
    config = LanguageTrap()
    assert trap._score([0.1, 0.2, 0.9], config) == pytest.approx(0.9)
    whole = [0.0] * 200 + [1.0] * 50 + [0.0]  # of 250 updates, and after the last
    assert trap._score(whole, config) == 1.0


@pytest.fixture
def small(monkeypatch):
    """A small model in the place of one of 124 million parameters, and how often it was made."""
    made = []

    def policies(config):
        def make(seed):
            made.append(seed)
            return policy_of(small_gpt2(seed), prompt=(10,))

        return make

    monkeypatch.setattr(trap, "load_tree_policies", policies)
    return made


def test_runs_are_kept_read_and_scored(small, tmp_path):
    config = LanguageTrap(policy="small", **SMALL)
    file = tmp_path / "curves.csv"
    curves, finished = collect(language_trap(config, [1e-2], 2, file))
    assert finished
    assert len(small) == 2 * 6 * 2
    kept = read_curves(file)
    assert len(kept) == 24
    again, _ = collect(language_trap(config, [1e-2], 2, file))
    assert len(small) == 24  # nothing was trained again
    for a, b in zip(again, curves, strict=True):
        assert a["p_target"] == pytest.approx(b["p_target"], rel=1e-4)
        assert {name: a[name] for name in a if not name.startswith("p_")} == {
            name: b[name] for name in b if not name.startswith("p_")
        }
    rows, differences = language_trap_rows(curves, config)
    assert [(row["n"], row["r_neg"]) for row in differences] == list(CELLS)
    own = [row["p_target"] for row in curves if (row["n"], row["r_neg"], row["objective"]) == (1, -0.5, "grpo")]
    assert math.isfinite(sum(own))
    assert rows[0]["seeds"] == 2
    assert rows[0]["prior"] == pytest.approx(rows[1]["prior"])  # of the same seeds
    # The file that lacks a run is gone on from.
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if ",lambda_grpo,0.01,1," not in line), encoding="utf-8")
    collect(language_trap(config, [1e-2], 2, file))
    assert len(small) == 24 + 6


def test_seeds_pair_the_objectives(small):
    config = LanguageTrap(policy="small", **SMALL)
    curves, _ = collect(language_trap(config, [1e-3], 2))
    first = {}
    for row in curves:
        if row["update"] == 0:
            first.setdefault((row["n"], row["seed"]), set()).add((row["target"], row["p_target"]))
    assert all(len(found) == 1 for found in first.values())


def test_the_command(small, tmp_path, capsys):
    file, result = tmp_path / "curves.csv", tmp_path / "result.json"
    options = ["--policy", "gpt2-random", "--seeds", "2", "--updates", "50", "--group-size", "8", "--lr", "0.01"]
    assert main(["table1", *options, "--csv", str(file), "--json", str(result)]) == 0
    printed = capsys.readouterr()
    assert "Target probability over the last 50 updates: gpt2-random, adamw, learning rate 0.01" in printed.out
    assert printed.err.count("P(target)") == 24
    written = json.loads(result.read_text(encoding="utf-8"))
    assert len(written["rows"]) == 12
    assert written["finished"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "3"], "seeds must be even and at least 2, got 3: two mirror each other's target"),
        (["--controls"], "--controls, --optimizer and --power are for the policies tabular, mlp, transformer"),
        (["--lr", "-1"], "learning_rate must be above 0 and finite, got -1.0"),
        (["--updates", "10"], "updates must be at least 50, got 10"),
        (["--csv", "setup.py/x.csv"], "can't be written"),
    ],
)
def test_what_a_user_may_get_wrong(small, options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.py").touch()
    assert main(["table1", "--policy", "gpt2-random", *options]) == 2
    assert words in capsys.readouterr().err
    assert small == []


def test_files_of_others_are_refused(small, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must have the columns policy, n, r_neg"):
        read_curves(file)
    config = LanguageTrap(policy="small", **SMALL)
    collect(language_trap(config, [1e-2], 2, tmp_path / "y.csv"))
    with pytest.raises(ValueError, match="holds runs of small, not of other: name another"):
        read_curves(tmp_path / "y.csv", "other")


def test_actions_of_more_than_one_token_are_refused():
    with pytest.raises(ValueError, match="policy tiny: ' L' and ' R' must be one token each"):
        trap.load_tree_policies(LanguageTrap(policy="tiny"))


def test_a_broken_run_says_so():
    policy = policy_of(small_gpt2())
    with torch.no_grad():
        policy.model.transformer.wte.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="learning_rate 1e-05 broke the run at update 0"):
        train_language_trap(policy, LanguageTrap(**SMALL), "grpo", (1, -1.0), 0)
