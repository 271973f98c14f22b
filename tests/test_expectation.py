"""What GRPO and λ-GRPO do on average: enumeration, closed form, and an oracle that shares no code with either."""

import dataclasses
import itertools
import math

import pytest
import torch

from minigrpo.cli import main
from minigrpo.experiments import (
    closed_form,
    draw_tree,
    expectation,
    expected_update,
    failed_expectations,
    harmonic_utility,
)
from minigrpo.experiments.expectation import WEIGHTS, utility_update, visits_weight
from minigrpo.experiments.theorem import is_broken
from minigrpo.tree import ProcessTree


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_statement_holds_and_breaks(seed):
    rows = list(expectation(seed=seed))
    assert failed_expectations(rows) == []
    held = [row for row in rows if not is_broken(row)]
    assert len(held) == 5 * 16 + 3 * 3 + 2
    assert max(max(row["loss_gap"], row["grad_gap"]) for row in held) < 1e-12
    broken = [row for row in rows if is_broken(row)]
    assert len(broken) == 6
    assert min(max(row["loss_gap"], row["grad_gap"]) for row in broken) > 1e-3


def node_pushes(tree, G, once):
    """The expected push on ln π of each prefix, by ProcessTree over every group, with Python's numbers."""
    lengths = tree.mask.sum(dim=1).tolist()
    leaves = [tuple(row[:n]) for row, n in zip(tree.completion_ids.tolist(), lengths, strict=True)]
    chances = tree.logps(tree.logits).sum(dim=1).exp().tolist()
    pushes = {}
    for group in itertools.product(range(len(leaves)), repeat=G):
        chance = math.prod(chances[i] for i in group)
        rewards = [tree.rewards[i].item() for i in group]
        mean = sum(rewards) / G
        for node in ProcessTree([leaves[i] for i in group], rewards).nodes:
            member = leaves[group[node.members[0]]]
            for t in range(node.start, node.start + len(node.tokens)):
                count = 1 if once else len(node.members)
                prefix = member[: t + 1]
                pushes[prefix] = pushes.get(prefix, 0.0) + chance * count * (node.reward - mean)
    return pushes


@pytest.mark.parametrize("objective", ["grpo", "lambda_grpo"])
def test_the_weights_of_each_prefix_by_another_way(objective):
    """A ragged tree of depth 3 and groups of three: the push on each prefix is weight(p)·(Q − V)."""
    tree, G = draw_tree(2, 3, seed=5, ragged=True), 3
    pushes = node_pushes(tree, G, once=objective == "lambda_grpo")
    lengths = tree.mask.sum(dim=1).tolist()
    leaves = [tuple(row[:n]) for row, n in zip(tree.completion_ids.tolist(), lengths, strict=True)]
    chances = tree.logps(tree.logits).sum(dim=1).exp().tolist()
    value = sum(c * r for c, r in zip(chances, tree.rewards.tolist(), strict=True))
    assert len(pushes) == 8  # 0; 1, 10, 11; 100, 101, 110, 111
    for prefix, push in pushes.items():
        through = [i for i, leaf in enumerate(leaves) if leaf[: len(prefix)] == prefix]
        p = sum(chances[i] for i in through)
        q = sum(chances[i] * tree.rewards[i].item() for i in through) / p
        weight = (G - 1) * p if objective == "grpo" else 1 - (1 - p) ** (G - 1)
        assert push == pytest.approx(weight * (q - value), rel=1e-10)


def test_a_bandit_by_hand():
    """Two arms, p = 1/4 and 3/4, rewards 1 and 0, G = 3: Q − V is 3/4 and −1/4."""
    tree = draw_tree(2, 1, seed=0)
    logits = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    tree = type(tree)(tree.completion_ids, tree.mask, tree.nodes, logits, torch.tensor([1.0, 0.0]).double())
    for objective, weights in (("grpo", (2 / 4, 6 / 4)), ("lambda_grpo", (7 / 16, 15 / 16))):
        pushes = (weights[0] * 3 / 4, weights[1] * -1 / 4)
        loss, gradient = expected_update(tree, objective, 3)
        assert loss == pytest.approx(-sum(pushes))
        descent = pushes[0] * 0.75 - pushes[1] * 0.25  # d ln p₁ / dz₁ = 3/4, d ln p₂ / dz₁ = −1/4
        assert gradient[0, 0].item() == pytest.approx(-descent)
        assert gradient.sum().item() == pytest.approx(0, abs=1e-12)


def test_a_wrong_weight_is_found(monkeypatch):
    """As if all G completions counted, the own one too."""
    monkeypatch.setitem(WEIGHTS, "lambda_grpo", lambda p, G: 1 - (1 - p) ** G)
    failed = failed_expectations(list(expectation()))
    assert any("tree of depth 3" in case for case in failed)
    assert len(failed) == 16  # every tree and group size of λ-GRPO, and of no other


def test_a_wrong_dial_is_found(monkeypatch):
    """As if the mean of a power were the power of the mean."""
    module = closed_form.__globals__  # the function `expectation` hides its module
    monkeypatch.setitem(module, "visits_weight", lambda p, G, power: ((G - 1) * p) ** (1 - power))
    failed = failed_expectations(list(expectation()))
    assert failed == [f"|λ|^−{power}, tree of depth 3, G = {G}" for power in (0.5, 2) for G in (2, 3, 5)]


@pytest.mark.parametrize("power", [-0.5, 0, 0.5, 1, 2])
def test_the_weight_of_a_power_by_hand(power):
    """G = 4: one, two or three of the three others visit the step."""
    p = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    weights = visits_weight(p, 4, power)
    middle = 3 * 0.3 * 0.49 + 3 * 0.09 * 0.7 * 2 ** (1 - power) + 0.027 * 3 ** (1 - power)
    torch.testing.assert_close(weights, torch.tensor([0, middle, 3 ** (1 - power)], dtype=torch.float64))


def test_the_ends_of_the_dial():
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    for power, name in ((0, "grpo"), (1, "lambda_grpo")):
        torch.testing.assert_close(visits_weight(p, 8, power), WEIGHTS[name](p, 8))


def test_grpo_and_lambda_grpo_are_one_for_pairs():
    """With G = 2 there is one other completion: its expected visits are the probability of a visit."""
    tree = draw_tree(2, 3, seed=1)
    grpo, other = (expected_update(tree, name, 2)[1] for name in ("grpo", "lambda_grpo"))
    assert (grpo - other).norm() < 1e-14 * grpo.norm() + 1e-15
    grpo, other = (expected_update(tree, name, 3)[1] for name in ("grpo", "lambda_grpo"))
    assert (grpo - other).norm() > 0.05 * grpo.norm()


def test_the_utility_by_hand():
    p = torch.tensor([0.25, 1.0], dtype=torch.float64, requires_grad=True)
    utility = harmonic_utility(p, 3)
    assert utility[0].item() == pytest.approx(0.25 + (1 - 0.75**2) / 2 + (1 - 0.75**3) / 3)
    assert utility[1].item() == pytest.approx(1 + 1 / 2 + 1 / 3)
    (slope,) = torch.autograd.grad(utility.sum(), p)
    assert slope.tolist() == pytest.approx([(1 - 0.75**3) / 0.25, 1.0])
    many = harmonic_utility(torch.tensor([0.2, 0.4], dtype=torch.float64), 400)
    assert (many[1] - many[0]).item() == pytest.approx(math.log(2), abs=1e-6)  # ln p + const


def test_the_utility_is_that_of_one_decision_only():
    """The same formula on a deeper tree's completions is another gradient."""
    tree = draw_tree(2, 2, seed=0)
    _, enumerated = expected_update(tree, "lambda_grpo", 4, baseline=0.3)
    _, utility = utility_update(tree, 4, 0.3)
    assert (enumerated - utility).norm() > 0.01 * utility.norm()


def test_what_cannot_be_enumerated_names_the_limit():
    with pytest.raises(ValueError, match="8 completions make 262144 groups of 6, at most 200000"):
        expected_update(draw_tree(2, 3, seed=0), "grpo", 6)
    with pytest.raises(ValueError, match="objective must be one of grpo, prm, lambda_grpo, rloo, tempo, got 'dpo'"):
        closed_form(draw_tree(2, 1, seed=0), "dpo", 3)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        next(expectation(seed=-1))


def test_the_command(tmp_path, capsys):
    assert main(["expectation", "--json", str(tmp_path / "found.json")]) == 0
    assert "λ-GRPO by the probability of a visit" in capsys.readouterr().out
    assert main(["expectation", "--seed", "-1"]) == 2
    assert "seed must be at least 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("rewards", [(1, 0, 0), (1, 0, 1)])
def test_maxrl_of_right_and_wrong(rewards):
    """A weight of V, the prompt's: G·p·(1 − (1 − V)^(G−1))/V on Q − V."""
    tree, G = dataclasses.replace(draw_tree(3, 1, seed=2), rewards=torch.tensor(rewards, dtype=torch.float64)), 4
    p = tree.logits[0].softmax(dim=0)
    V = p @ tree.rewards
    push = G * p * (1 - (1 - V) ** (G - 1)) / V * (tree.rewards - V)
    gradient = expected_update(tree, "maxrl", G)[1][0]
    torch.testing.assert_close(gradient, -(push - p * push.sum()), rtol=1e-12, atol=1e-13)
    assert gradient.abs().max() > 0.01


def test_tempo_doubles_the_first_decision():
    """By hand on two decisions: each prefix gets GRPO's push, and n_v·(R_v − R_before) more."""
    tree, G = draw_tree(2, 2, seed=3), 3
    leaves = [tuple(row) for row in tree.completion_ids.tolist()]
    chances = tree.logps(tree.logits).sum(dim=1).exp().tolist()
    pushes = {}
    for group in itertools.product(range(4), repeat=G):
        chance = math.prod(chances[i] for i in group)
        rewards = [tree.rewards[i].item() for i in group]
        for i, r in zip(group, rewards, strict=True):
            for t in (0, 1):
                prefix = leaves[i][: t + 1]
                below = [x for j, x in zip(group, rewards, strict=True) if leaves[j][: t + 1] == prefix]
                before = [x for j, x in zip(group, rewards, strict=True) if leaves[j][:t] == prefix[:t]]
                push = r - sum(rewards) / G + sum(below) / len(below) - sum(before) / len(before)
                pushes[prefix] = pushes.get(prefix, 0.0) + chance * push
    _, gradient = expected_update(tree, "tempo", G)
    logits = tree.logits.clone().requires_grad_()
    logps = logits.log_softmax(dim=-1)
    by_hand = -sum(
        push * logps[0 if len(prefix) == 1 else 1 + prefix[0], prefix[-1]] for prefix, push in pushes.items()
    )
    (wanted,) = torch.autograd.grad(by_hand, logits)
    assert (gradient - wanted).abs().max() < 1e-14
    grpo = expected_update(tree, "grpo", G)[1]
    assert torch.allclose(gradient[0], 2 * grpo[0], atol=1e-14)
    assert (gradient[1:] - grpo[1:]).norm() > 0.01 * grpo[1:].norm()
