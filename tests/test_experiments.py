"""The trap of Table 1 and the overlap of a run."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import minigrpo
from minigrpo import experiments
from minigrpo.commands import collect
from minigrpo.envs import PathTreeEnv
from minigrpo.experiments import (
    COMPARED,
    LEARNING_RATES,
    MATCHED,
    TrapConfig,
    overlap,
    run_trap,
    table1,
    table1_controls,
    train_trap,
    trap_rows,
)
from minigrpo.paper import TABLE1
from minigrpo.trainer import Config

QUICK = TrapConfig(updates=60)


def by_hand(config, objective, seed, n, r_neg):
    """One run of the trap with Python lists and one softmax a node: the same uniforms, nothing vectorised."""
    env = PathTreeEnv(config.depth, n, r_neg, target_seed=seed)
    logits = torch.zeros(2 ** (config.depth + 1) - 1, 2, dtype=torch.float64, requires_grad=True)
    paths = list(itertools.product((0, 1), repeat=config.depth))
    uniform = torch.rand(
        config.updates, config.group_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    mask = torch.ones(config.group_size, config.depth, dtype=torch.bool)
    optimizer = torch.optim.SGD([logits], lr=config.learning_rate)
    frequency = []
    for update in range(config.updates):

        def path_logps(path):
            node, logps = 0, []
            for action in path:
                logps.append(logits[node].log_softmax(dim=0)[action])
                node = 2 * node + 1 + action
            return torch.stack(logps)

        cumulated = np.cumsum([path_logps(path).sum().exp().item() for path in paths])
        drawn = [paths[min(int(np.searchsorted(cumulated, u)), 15)] for u in uniform[update].tolist()]
        frequency.append(sum(path == env.target for path in drawn) / len(drawn))
        logps = torch.stack([path_logps(path) for path in drawn])
        rewards = torch.tensor([env.outcome(path) for path in drawn], dtype=torch.float64)
        tensors = minigrpo.OBJECTIVES[objective](rewards, torch.tensor(drawn), mask)
        loss = minigrpo.policy_loss(logps, logps, *tensors, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.tensor(frequency)


@pytest.mark.parametrize("objective", COMPARED)
def test_vectorised_runs_equal_one_run_by_hand(objective):
    config = TrapConfig(updates=30)
    hits = train_trap(config, objective, seeds=(0, 1, 2), cells=((1, -0.5), (2, -1.5)))
    assert hits.shape == (2, 3, 30)
    assert hits.max() > 0
    torch.testing.assert_close(hits[1, 2], by_hand(config, objective, 2, 2, -1.5), rtol=0, atol=1e-7)
    torch.testing.assert_close(hits[0, 1], by_hand(config, objective, 1, 1, -0.5), rtol=0, atol=1e-7)


def test_prm_and_grpo_walk_the_same_way():
    grpo, prm, lambda_grpo = (train_trap(QUICK, o, range(4)) for o in ("grpo", "prm", "lambda_grpo"))
    assert torch.equal(grpo, prm)
    assert not torch.equal(grpo, lambda_grpo)


def test_the_dial_ends_at_grpo():
    config = dataclasses.replace(QUICK, power=0.0)
    assert torch.equal(train_trap(config, "lambda_grpo", [0, 1]), train_trap(QUICK, "grpo", [0, 1]))
    assert not torch.equal(train_trap(QUICK, "lambda_grpo", [0, 1]), train_trap(QUICK, "grpo", [0, 1]))


@pytest.mark.parametrize(("policy", "optimizer"), LEARNING_RATES)
def test_every_policy_and_optimiser_learns(policy, optimizer):
    config = TrapConfig(policy, optimizer, LEARNING_RATES[policy, optimizer], updates=200)
    hits = train_trap(config, "lambda_grpo", range(6), cells=((1, -0.5),))
    assert hits[..., -20:].mean() > hits[..., :5].mean() + 0.1


def test_chunks_and_single_runs_give_the_same():
    whole = run_trap(QUICK, COMPARED, 5, progress=False)
    parts = run_trap(QUICK, COMPARED, 5, chunk=2, progress=False)
    alone = train_trap(QUICK, "grpo", [3])
    for objective in COMPARED:
        assert torch.equal(whole[objective], parts[objective])
    assert torch.equal(whole["grpo"][:, 3:4], alone)


def test_matched_takes_updates_of_the_other_length(monkeypatch):
    """From the uniform policy the first update is as long as λ-GRPO's, in GRPO's direction."""
    original, moved = torch.optim.SGD.step, {}
    for objective in ("lambda_grpo", "grpo", MATCHED):

        def step(self, *args, objective=objective):
            moved[objective] = self.param_groups[0]["params"][0].grad.clone().flatten()
            return original(self, *args)

        monkeypatch.setattr(torch.optim.SGD, "step", step)
        train_trap(TrapConfig(updates=1), objective, [0], cells=((1, -0.5),))
    norm = {objective: gradient.norm().item() for objective, gradient in moved.items()}
    assert norm[MATCHED] == pytest.approx(norm["lambda_grpo"], rel=1e-12)
    assert norm[MATCHED] < 0.9 * norm["grpo"]
    unit = {objective: gradient / norm[objective] for objective, gradient in moved.items()}
    torch.testing.assert_close(unit[MATCHED], unit["grpo"], rtol=1e-12, atol=0)
    assert (unit["lambda_grpo"] - unit["grpo"]).norm() > 0.1


def test_rows_by_hand():
    """Two cells, three seeds, known frequencies: means, paired differences and intervals that hold them."""
    grpo = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]).unsqueeze(-1).expand(-1, -1, 60)
    other = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]).unsqueeze(-1).repeat(1, 1, 60)
    other[..., :10] = 9.0  # before the window of the last 50
    cells = ((1, -0.5), (2, -1.0))
    rows, differences = trap_rows({"grpo": grpo, "lambda_grpo": other}, QUICK, cells)
    assert [(row["n"], row["objective"], row["mean"]) for row in rows] == [
        (1, "grpo", 0.5),
        (1, "lambda_grpo", 0.5),
        (2, "grpo", 0.0),
        (2, "lambda_grpo", 1.0),
    ]
    assert [row["mean"] for row in differences] == [0.0, 1.0]
    first, second = differences
    assert first["ci_low"] == pytest.approx(-0.5)
    assert first["ci_high"] == pytest.approx(0.5)
    assert (second["ci_low"], second["ci_high"]) == (1.0, 1.0)
    keys = {"n", "r_neg", "policy", "optimizer", "lr", "seeds", "mean", "ci_low", "ci_high"}
    assert all(keys | {"objective"} == set(row) for row in rows)
    assert all(keys | {"difference"} == set(row) for row in differences)


def test_the_paper_s_direction_in_all_six_cells():
    """With the settings that the README names: λ-GRPO samples the target more often, in each cell."""
    rows, differences = table1(seeds=30, progress=False)
    assert len(rows) == 12
    assert [(row["n"], row["r_neg"]) for row in differences] == list(TABLE1)
    assert min(row["mean"] for row in differences) > 0.2
    assert min(row["ci_low"] for row in differences) > 0


def test_controls():
    config = TrapConfig("mlp", "sgd", 0.3, updates=50)
    controls = list(table1_controls(config, seeds=2, progress=False))
    sweep = [row for row in controls if row["control"] == "learning rates"]
    adam = [row for row in controls if row["control"] == "tabular, adam"]
    dial = [row for row in controls if row["control"].startswith("dial")]
    assert len(sweep) + len(adam) + len(dial) == len(controls)
    assert len(dial) == 6 * (6 + 2) * (2 + 1)
    assert [*dict.fromkeys(row["control"] for row in dial)][:2] == ["dial, |λ|^+0.5", "dial, |λ|^-0.25"]
    assert len(sweep) == 8 * (6 + 2) * (3 + 2)  # rates, cells and pools, objectives and differences
    assert len(adam) == 5 * (6 + 2) * (2 + 1)
    assert {(row["policy"], row["optimizer"]) for row in sweep} == {("mlp", "sgd")}
    assert {(row["policy"], row["optimizer"]) for row in adam} == {("tabular", "adam")}
    assert sorted({row["lr"] for row in sweep}) == pytest.approx([0.3 * factor for factor in experiments.SWEEP])
    assert {row["lr"] for row in adam} == set(experiments.ADAM_SWEEP)
    means = {}
    for row in sweep:
        if "objective" in row:
            key = (row["lr"], row["n"], row["r_neg"] is None, row["objective"])
            means.setdefault(key, []).append(row["mean"])
    for (lr, n, pooled, objective), mean in means.items():
        if pooled:
            assert mean == pytest.approx([sum(means[lr, n, False, objective]) / 3])
    curves = [[v for key, v in means.items() if key[-1] == o] for o in ("grpo", MATCHED, "lambda_grpo")]
    assert curves[0] != curves[1] != curves[2]  # matched GRPO is not another under a new name


def test_pooled_intervals_are_over_seeds():
    """Three cells that agree say no more than one: pooling them leaves the interval of one."""
    cell = torch.rand(1, 12, 60, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1)
    (one, *_), _ = trap_rows({"grpo": cell}, QUICK)
    (pooled, *_), _ = trap_rows(experiments.pool({"grpo": cell}), QUICK, experiments.POOLED)
    assert one["ci_high"] - one["ci_low"] > 0
    for key in ("mean", "ci_low", "ci_high"):
        assert pooled[key] == pytest.approx(one[key])


def test_an_interrupt_in_a_control_ends_the_controls(monkeypatch):
    calls, original = itertools.count(), experiments.trap.train_trap

    def interrupted(*args, **kwargs):
        if next(calls) == 7:  # the first chunk of 10 seeds takes 3 calls, the second 3, the third is cut
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(experiments.trap, "train_trap", interrupted)
    controls = table1_controls(dataclasses.replace(QUICK, updates=50), seeds=30, progress=False)
    assert collect(controls) == ([], False)
    assert next(calls) == 8


def test_an_interrupt_keeps_the_seeds_that_were_finished(monkeypatch):
    calls = itertools.count()
    original = experiments.trap.train_trap

    def interrupted(*args, **kwargs):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(experiments.trap, "train_trap", interrupted)
    hits = run_trap(QUICK, COMPARED, 8, chunk=2, progress=False)
    assert {objective: hit.shape[1] for objective, hit in hits.items()} == {"grpo": 4, "lambda_grpo": 4}
    calls = itertools.count(5)
    with pytest.raises(KeyboardInterrupt):
        run_trap(QUICK, COMPARED, 8, progress=False)


@pytest.mark.parametrize(
    ("changes", "seeds", "message"),
    [
        ({"policy": "lstm"}, 2, "policy must be one of mlp, tabular, transformer, got 'lstm'"),
        ({"optimizer": "lion"}, 2, "optimizer must be one of adam, sgd, got 'lion'"),
        ({"learning_rate": 0.0}, 2, "learning_rate must be above 0 and finite, got 0.0"),
        ({"power": float("inf")}, 2, "power must be finite, got inf"),
        ({"updates": 49}, 2, "updates must be at least 50, got 49"),
        ({"group_size": 1}, 2, "group_size must be at least 2, got 1"),
        ({}, 1, "seeds must be at least 2, got 1"),
    ],
)
def test_bad_settings(changes, seeds, message):
    with pytest.raises(ValueError, match="must be") as error:
        run_trap(dataclasses.replace(QUICK, **changes), COMPARED, seeds, progress=False)
    assert str(error.value) == message


def test_unknown_objective():
    with pytest.raises(ValueError, match="objective must be one of .*grpo_matched.*, got 'dpo'"):
        train_trap(QUICK, "dpo", [0])


def test_overlap_rises_as_entropy_falls():
    """The paper's Experiment 1 at toy scale: more of a completion is shared once the policy is sure."""
    config = Config(env_id="FrozenLake-v1", env_kwargs={"is_slippery": False}, groups=2, updates=120)
    rows = list(overlap({"lake": config}, group_sizes=(6, 16), progress=False))
    assert [(row["task"], row["group_size"]) for row in rows] == [("lake", 6)] * 120 + [("lake", 16)] * 120
    late = rows[120:]
    entropy, proportion = (
        [np.mean([row[key] for row in part]) for part in (late[:20], late[-20:])]
        for key in ("entropy", "intermediate_proportion")
    )
    assert entropy[1] < entropy[0] - 0.3
    assert proportion[1] > proportion[0] + 0.1


def test_identical_completions_share_nothing_intermediate():
    """Where a policy has become deterministic the proportion is 0 and the step size G: the chain in docs/results.md."""
    ids, mask = torch.tensor([[1, 2, 3]] * 4), torch.ones(4, 3, dtype=torch.bool)
    assert not minigrpo.intermediate_proportion(ids, mask).any()
    assert (minigrpo.step_sizes(ids, mask) == 4).all()
