"""The training loop against the equations written out token by token, and what it leaves behind."""

import dataclasses
import json
import math
from statistics import fmean

import pytest
import torch

import minigrpo.trainer
from minigrpo.policies import make_policy
from minigrpo.rollout import make_envs, sample_group
from minigrpo.trainer import Config, train

torch.set_num_threads(1)
TREE, CHAIN, LAKE = "minigrpo/PathTree-v0", "minigrpo/ArithmeticChain-v0", "FrozenLake-v1"
SLIPPERY = {"env_id": LAKE, "env_kwargs": {"desc": ["SFF", "FFH", "FFG"], "is_slippery": True}}


def run(out=None, **settings):
    return train(Config(**settings), out=out, progress=False)


def column(result, name):
    return [row[name] for row in result.rows]


def close(rows, others, tolerance=1e-9):
    """Whether two runs tell the same in every metric, whose size is about 1."""
    return len(rows) == len(others) and all(
        math.isclose(a[name], b[name], rel_tol=tolerance, abs_tol=tolerance)
        for a, b in zip(rows, others, strict=True)
        for name in a.keys() | b.keys()
    )


# The oracle: λ by comparing lists, one loop over the tokens, autograd's gradient, torch's optimiser.


def update_by_the_equations(config, groups, actions, policy, reference, optimizer):
    """Take the μ optimiser steps on P sampled groups; returns the row of metrics but its number."""
    lengths = [[int(row.sum()) for row in group.completion_mask] for group in groups]
    N, completions = sum(map(sum, lengths)), config.group_size * len(groups)
    for _ in range(config.iterations):
        loss, metrics = 0.0, dict.fromkeys(("entropy", "kl", "ratio", "step_size"), 0.0)
        depth, intermediate = 0, 0.0
        for group, length in zip(groups, lengths, strict=True):
            keys = group.completion_ids + (config.step_key == "states") * actions * group.states
            keys, r, ids = keys.tolist(), group.rewards, group.completion_ids.unsqueeze(-1)
            spread = {"std": r.std() + 1e-4, "population": r.std(correction=0) + 1e-4, "none": 1.0}[config.scale]
            a = (r - r.mean()) / spread
            log_p = policy(group.states, group.completion_ids).log_softmax(dim=-1)
            logps = log_p.gather(-1, ids).squeeze(-1)
            ref = reference(group.states, group.completion_ids).log_softmax(dim=-1).gather(-1, ids).squeeze(-1).detach()
            for i, end in enumerate(length):
                sizes = []
                for t in range(end):
                    same = [j for j, other in enumerate(length) if other > t and keys[j][: t + 1] == keys[i][: t + 1]]
                    sizes.append(len(same))
                    A = a[same].mean() if config.objective == "prm" else a[i]
                    P = (logps[i, t] - group.old_logps[i, t]).exp()
                    surrogate = P * A
                    if config.epsilon is not None:
                        surrogate = min(surrogate, P.clamp(1 - config.epsilon, 1 + config.epsilon) * A)
                    D = (ref[i, t] - logps[i, t]).exp() - (ref[i, t] - logps[i, t]) - 1
                    term = surrogate - config.beta * D
                    term = term / len(same) if config.objective == "lambda_grpo" else term
                    loss = loss - term / (N if config.aggregation == "token-mean" else end * completions)
                    entropy = -(log_p[i, t].exp() * log_p[i, t]).sum()
                    for name, value in (("entropy", entropy), ("kl", D), ("ratio", P), ("step_size", len(same))):
                        metrics[name] += torch.as_tensor(value).item() / N
                depth += (len(set(sizes)) - 1) / completions
                intermediate += sum(size != sizes[-1] for size in sizes) / end / completions
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in policy.parameters()))
        optimizer.step()
    return metrics | {
        "loss": loss.item(),
        "grad_norm": norm,
        "reward": fmean(float(r) for group in groups for r in group.rewards),
        "length": N / completions,
        "zero_variance": fmean(len(set(group.rewards.tolist())) == 1 for group in groups),
        "path_depth": depth,
        "intermediate_proportion": intermediate,
    }


def train_by_the_equations(config):
    envs = make_envs(config.env_id, config.group_size, **config.env_kwargs)
    S, A = int(envs[0].observation_space.n), int(envs[0].action_space.n)
    policy, reference = (make_policy(config.policy, S, A, seed=config.seed) for _ in range(2))
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[config.optimizer]
    optimizer = optimizer(policy.parameters(), lr=config.learning_rate)
    generator, rows, number = torch.Generator().manual_seed(config.seed), [], 0
    for update in range(config.updates):
        groups = []
        for _ in range(config.groups):
            groups.append(sample_group(envs, policy, generator=generator, start_seed=number % config.start_states))
            number += 1
        rows.append(update_by_the_equations(config, groups, A, policy, reference, optimizer) | {"update": update})
    return policy, rows


SHORT_CHAIN = {"env_id": CHAIN, "env_kwargs": {"target": 4}, "group_size": 12, "groups": 3}


@pytest.mark.parametrize(
    "settings",
    [
        {"env_kwargs": {"r_neg": -1.0, "target": [0, 1, 0, 0]}, "learning_rate": 5.0},
        {"objective": "lambda_grpo", "iterations": 2, "beta": 0.5, "scale": "none", "optimizer": "adam"},
        {"objective": "prm", "iterations": 2, "epsilon": 0.05, "policy": "transformer"},
        {**SHORT_CHAIN, "objective": "lambda_grpo", "start_states": 2, "scale": "population"},
        {**SHORT_CHAIN, "objective": "prm", "start_states": 4, "policy": "mlp", "aggregation": "seq-mean", "seed": 2},
        {**SHORT_CHAIN, "start_states": 2, "iterations": 3, "epsilon": 0.1, "beta": 0.2, "learning_rate": 9.0},
        {**SLIPPERY, "objective": "prm", "group_size": 8, "step_key": "states", "seed": 1},
        {**SLIPPERY, "objective": "lambda_grpo", "group_size": 8, "step_key": "actions", "seed": 1},
    ],
    ids=str,
)
def test_training_by_the_equations(settings):
    config = Config(**({"group_size": 6, "updates": 3, "learning_rate": 0.1} | settings))
    policy, rows = train_by_the_equations(config)
    result = run(**dataclasses.asdict(config))
    assert result.finished
    assert rows[0].keys() == result.rows[0].keys()
    for row, expected in zip(result.rows, rows, strict=True):
        single = "intermediate_proportion"  # in torch's default dtype
        assert row.pop(single) == pytest.approx(expected.pop(single), rel=1e-6)
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert max(row["grad_norm"] for row in rows) > 1e-2  # there was something to learn from
    for weight, expected in zip(result.policy.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("policy", ["tabular", "mlp", "transformer"])
def test_a_config_reproduces_its_rows(policy):
    settings = {"env_id": CHAIN, "policy": policy, "learning_rate": 0.5, "updates": 4, "group_size": 4}
    first = run(**settings)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = run(**settings)
    assert again.rows == first.rows
    assert all(map(torch.equal, again.policy.parameters(), first.policy.parameters()))
    assert torch.equal(torch.get_rng_state(), before)  # the global random state has no part in it
    assert run(**settings, seed=1).rows != first.rows


def test_the_seed_sets_weights_and_samples():
    rows = [run(policy="transformer", updates=1, seed=seed, learning_rate=1e-3).rows[0] for seed in (0, 1)]
    assert abs(rows[0]["entropy"] - rows[1]["entropy"]) > 1e-3  # other weights
    rows = [run(updates=1, seed=seed).rows[0] for seed in range(4)]
    assert [row["entropy"] for row in rows] == pytest.approx([math.log(2)] * 4)  # the table starts uniform
    assert len({row["step_size"] for row in rows}) > 1  # other samples


@pytest.mark.parametrize(
    "settings",
    [
        {"env_kwargs": {"r_neg": -1.0}, "learning_rate": 5},
        {"env_id": CHAIN, "policy": "transformer", "groups": 2, "start_states": 2, "learning_rate": 0.5, "beta": 0.01},
    ],
    ids=["tree", "chain"],
)
def test_grpo_trains_as_prm_does(settings):
    grpo, prm, lambda_grpo = (run(objective=name, updates=25, **settings) for name in ("grpo", "prm", "lambda_grpo"))
    assert close(grpo.rows, prm.rows)
    assert not close(grpo.rows, lambda_grpo.rows, tolerance=1e-3)
    assert len(set(column(grpo, "reward"))) > 5  # it is a run, not a standstill
    assert max(column(grpo, "grad_norm")) > 0.01


@pytest.mark.parametrize(("step_key", "equal"), [("states", True), ("actions", False)])
def test_random_transitions_need_steps_keyed_by_states(step_key, equal):
    settings = {**SLIPPERY, "step_key": step_key, "group_size": 16}
    grpo, prm = (run(**settings, objective=name, updates=6) for name in ("grpo", "prm"))
    assert close(grpo.rows, prm.rows, tolerance=1e-9 if equal else 1e-3) is equal
    grpo, prm = (run(**settings, objective=name, updates=1) for name in ("grpo", "prm"))  # from the same samples
    assert grpo.rows[0]["reward"] == prm.rows[0]["reward"]
    (one,), (other,) = grpo.policy.parameters(), prm.policy.parameters()
    gap = ((one - other).norm() / one.norm()).item()  # of the gradients, as one plain step was taken from 0
    assert gap < 1e-12 if equal else gap > 0.05


@pytest.mark.parametrize("policy", ["tabular", "mlp", "transformer"])
@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [(TREE, {}), (CHAIN, {}), (LAKE, {"is_slippery": False}), (LAKE, {"is_slippery": True})],
)
def test_every_policy_trains_on_every_task(policy, env_id, env_kwargs):
    result = run(env_id=env_id, env_kwargs=env_kwargs, policy=policy, updates=3, group_size=4, learning_rate=0.1)
    assert result.finished
    assert column(result, "update") == [0, 1, 2]
    assert all(math.isfinite(value) for row in result.rows for value in row.values())
    assert all(weight.isfinite().all() for weight in result.policy.parameters())
    assert min(column(result, "entropy")) > 0.1


@pytest.mark.parametrize("objective", ["grpo", "lambda_grpo"])
def test_learning_happens(objective):
    result = run(env_id=CHAIN, groups=4, start_states=4, learning_rate=5, updates=120, objective=objective)
    rewards = column(result, "reward")
    assert fmean(rewards[-20:]) > fmean(rewards[:20]) + 0.3


def test_beta_holds_the_policy_near_its_start():
    free, held = (run(env_id=CHAIN, groups=2, updates=40, learning_rate=2, beta=beta) for beta in (0.0, 0.5))
    for result in (free, held):
        assert abs(result.rows[0]["kl"]) < 1e-12  # the reference is the initial policy
        assert min(column(result, "kl")[3:]) > 0
    assert fmean(column(held, "kl")[-20:]) < fmean(column(free, "kl")[-20:]) / 2


def test_the_ratio_is_1_in_the_first_iteration_alone():
    once, thrice = (run(updates=5, iterations=n, epsilon=0.2, learning_rate=1) for n in (1, 3))
    assert column(once, "ratio") == pytest.approx([1] * 5, rel=1e-12)
    assert all(abs(ratio - 1) > 1e-4 for ratio in column(thrice, "ratio"))


def test_equal_rewards_change_nothing():
    result = run(updates=3, env_kwargs={"depth": 1, "n": 0, "r_neg": 1.0})  # both leaves pay 1
    assert column(result, "zero_variance") == [1.0] * 3
    assert column(result, "grad_norm") == [0.0] * 3
    assert all(weight.eq(0).all() for weight in result.policy.parameters())


# What a run leaves behind.


def read_lines(folder):
    text = (folder / "metrics.jsonl").read_text("utf-8")
    assert text.endswith("}\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_holds_the_run(tmp_path):
    settings = {"updates": 4, "env_kwargs": {"target": [0, 1, 0, 1], "n": 2}, "objective": "prm", "epsilon": 0.2}
    result = run(out=tmp_path / "runs" / "one", **settings)
    assert sorted(path.name for path in (tmp_path / "runs" / "one").iterdir()) == ["config.json", "metrics.jsonl"]
    assert read_lines(tmp_path / "runs" / "one") == result.rows
    config = json.loads((tmp_path / "runs" / "one" / "config.json").read_text("utf-8"))
    assert config == dataclasses.asdict(Config(**settings))
    assert run(**config).rows == result.rows  # enough to run it again
    assert result.rows == run(out=str(tmp_path / "two"), **settings).rows


def test_a_folder_with_a_run_is_left_as_it_was(tmp_path):
    run(out=tmp_path, updates=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError) as error:
        run(out=tmp_path, updates=3, seed=1)
    assert str(tmp_path) in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unwritable_folder_is_named_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(minigrpo.trainer, "sample_group", None)
    with pytest.raises(OSError) as error:
        run(out=tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("env_id", ["NoSuchTask-v0", "CartPole-v1"])
def test_a_task_that_cannot_be_made_leaves_no_folder(tmp_path, env_id):
    with pytest.raises(ValueError, match=f"^env '{env_id}' "):
        run(out=tmp_path / "run", env_id=env_id)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", ["sample_group", "policy_loss"])
def test_ctrl_c_leaves_what_was_finished(tmp_path, monkeypatch, broken):
    calls, function = [], getattr(minigrpo.trainer, broken)

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    full = run(updates=6)
    monkeypatch.setattr(minigrpo.trainer, broken, interrupted)
    result = run(out=tmp_path, updates=6)
    assert not result.finished
    assert result.rows == full.rows[:3]
    assert read_lines(tmp_path) == result.rows
    assert result.policy.logits.abs().sum() > 0


def test_progress_is_shown_where_it_is_wanted(capsys):
    run(updates=2, objective="prm")
    assert capsys.readouterr() == ("", "")
    train(Config(updates=2, objective="prm"))
    out, err = capsys.readouterr()
    assert (out, "prm" in err, "2/2" in err) == ("", True, True)


# Bad settings.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "table"),
        ("objective", "dapo"),
        ("optimizer", "rmsprop"),
        ("scale", "max"),
        ("aggregation", "sum"),
        ("step_key", "tokens"),
        ("group_size", 1),
        ("groups", 0),
        ("start_states", 0),
        ("updates", 0),
        ("iterations", 0),
        ("learning_rate", 0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("epsilon", 0.0),
        ("epsilon", -0.2),
        ("epsilon", math.nan),
        ("beta", -0.1),
        ("beta", math.nan),
    ],
)
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(ValueError) as error:
        Config(**{field: value})
    assert str(error.value).startswith(f"{field} must be ")
    assert repr(value) in str(error.value)


def test_settings_at_the_edge_are_taken():
    config = Config(group_size=2, groups=1, start_states=1, updates=1, iterations=1, learning_rate=1e-9, beta=0)
    assert len(run(**dataclasses.asdict(config)).rows) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "transformer", "iterations": 3},
        {"policy": "mlp", "optimizer": "adam"},
        {"iterations": 3, "beta": 0.1},
        {"policy": "transformer"},
        {"learning_rate": math.inf},
        {"iterations": 3, "epsilon": 0.2},
    ],
    ids=str,
)
def test_a_learning_rate_that_explodes_is_named(tmp_path, settings):
    settings = {"learning_rate": 1e300, "updates": 4} | settings
    try:
        run(out=tmp_path, **settings)
        words = "learning_rate"
    except ValueError as error:
        words = str(error)
    assert "learning_rate" in words
    rows = read_lines(tmp_path) if (tmp_path / "metrics.jsonl").exists() else []
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_an_exploding_run_stops_and_keeps_its_rows(tmp_path, monkeypatch):
    full, losses, function = run(updates=5), [], minigrpo.trainer.policy_loss

    def exploding(*args, **kwargs):
        losses.append(function(*args, **kwargs))
        return losses[-1] * (math.nan if len(losses) == 4 else 1)

    monkeypatch.setattr(minigrpo.trainer, "policy_loss", exploding)
    with pytest.raises(
        ValueError,
        match=r"^learning_rate 5 broke the run at update 3: loss, grad_norm, logits no longer finite; lower it$",
    ):
        run(out=tmp_path, updates=5)
    assert read_lines(tmp_path) == full.rows[:3]
