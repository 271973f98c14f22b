"""The theorem as users run it: `minigrpo.experiments.theorem`, its cases and its map."""

import pytest
import torch

import minigrpo.objectives
from minigrpo.experiments.theorem import ASSUMPTIONS, POLICIES, RANDOM_LENGTH, _random_groups, theorem
from minigrpo.text import TOLERANCE, failures, is_broken, theorem_text


@pytest.fixture(scope="module")
def rows():
    return list(theorem(groups=40, progress=False))


def test_equal_wherever_the_assumptions_hold(rows):
    held = [row for row in rows if not is_broken(row)]
    assert max(max(row["loss_gap"], row["grad_gap"]) for row in held) < TOLERANCE
    assert min(row["min_grad_norm"] for row in held) > 1e-3  # so the gap compares gradients, not zeros
    assert all(row["differ"] == 0 for row in held)


def test_different_wherever_one_is_broken(rows):
    broken = {row["case"]: row for row in rows if is_broken(row)}
    assert len(broken) == 5 + len(POLICIES)  # clipping, GSPO, per-completion mean, micro-batches, dropout; slipping
    assert min(row["grad_gap"] for row in broken.values()) > 0.05
    for name in ("clipping active (ε = 0.2)", "per-completion mean, 1/len(y)", "dropout"):
        assert broken[f"broken: {name}"]["differ"] > 0.5


def test_every_task_and_policy_has_a_case(rows):
    names = [row["case"] for row in rows]
    for policy in POLICIES:
        for task in ("random groups", "PathTree", "ArithmeticChain", "FrozenLake"):
            assert f"{task}, {policy}" in names
        assert f"slippery lake, state and action, {policy}" in names
        assert f"broken: slippery lake, action alone, {policy}" in names
    assert set(ASSUMPTIONS) <= set(names)
    assert len(set(names)) == len(names)


def test_reproducible(rows):
    again = list(theorem(groups=40, progress=False))
    assert again == rows
    other = next(theorem(groups=40, seed=7, progress=False))
    assert other["grad_gap"] != rows[0]["grad_gap"]
    assert other["grad_gap"] < TOLERANCE


def test_a_wrong_process_reward_is_found(monkeypatch):
    """The experiment can fail: step rewards that leave one member out are caught in every case that should hold."""

    def wrong(rewards, completion_ids, completion_mask, **scaling):
        advantages, weights = minigrpo.objectives.prm(rewards, completion_ids, completion_mask, **scaling)
        sizes = minigrpo.step_sizes(completion_ids, completion_mask)
        return advantages * sizes / (sizes - 1).clamp(min=1), weights

    monkeypatch.setitem(minigrpo.objectives.OBJECTIVES, "prm", wrong)
    wrong_rows = list(theorem(groups=8, progress=False))
    held = [row for row in wrong_rows if not is_broken(row) and "two sums" not in row["case"]]
    assert all(row["grad_gap"] > 1e-3 for row in held)
    assert "NOT as the theorem says" in theorem_text(wrong_rows)
    assert set(failures(wrong_rows)) == {row["case"] for row in held}


def test_random_groups_are_ragged_and_share_prefixes():
    groups = [group for group, _ in _random_groups(lambda s, a: torch.zeros(*a.shape, 3), 100, seed=0)()]
    lengths = torch.cat([group.completion_mask.sum(dim=-1) for group in groups])
    sizes = torch.cat([minigrpo.step_sizes(g.completion_ids, g.completion_mask)[g.completion_mask] for g in groups])
    assert lengths.min() == 0
    assert lengths.max() == RANDOM_LENGTH
    assert (sizes > 1).double().mean() > 0.2


def test_too_few_groups():
    with pytest.raises(ValueError, match="groups must be at least 4, got 3"):
        next(theorem(groups=3))
