"""The drivers of single labs: what they hand to the student's function, and what they make of its answer."""

import pytest
import torch

from grader.drivers import DRIVERS, NOT_FINITE


def run(driver, function, **arguments):
    return DRIVERS[driver]({"f": function}, "f", arguments)


def test_nan_and_infinity_become_a_word():
    broken = torch.tensor([1.0, float("nan")])
    assert run("call", lambda: broken) == NOT_FINITE
    assert run("call", lambda: broken.nan_to_num(posinf=1.0) / 0) == NOT_FINITE
    assert run("each", lambda x: x, calls=[{"x": 2}, {"x": broken}]) == [2, NOT_FINITE]


def test_a_loss_gets_nan_under_the_mask_and_keeps_its_arguments():
    x, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])
    arguments = {"x": x, "completion_mask": mask, "wrt": ["x"], "under_mask": ["x"]}
    found = run("loss_and_grads", lambda x, completion_mask: (x[completion_mask] ** 2).sum(), **arguments)
    assert found["loss"].item() == 5.0
    assert found["grads"]["x"].tolist() == [2.0, 4.0, 0.0]
    found = run("loss_and_grads", lambda x, completion_mask: (x * completion_mask).sum(), **arguments)
    assert found["loss"] == NOT_FINITE
    assert x.tolist() == [1.0, 2.0, 3.0]
    assert x.grad is None


def test_a_loss_without_some_of_its_tensors_has_zero_gradient_there():
    x = torch.tensor([1.0, 2.0])
    found = run("loss_and_grads", lambda x, y: x.sum(), x=x, y=x, wrt=["x", "y"])
    assert found["grads"]["y"].tolist() == [0.0, 0.0]


def test_the_sampler_walks_from_the_prefix_and_draws_what_is_open():
    right, rewards = torch.tensor([0.5, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    seen = []

    def value(sample_outcome, prefix):
        generator = torch.Generator().manual_seed(0)
        seen.extend(sample_outcome(prefix, generator) for _ in range(40))
        return sum(seen) / 40, 0

    tree = {"right": right, "leaf_rewards": rewards}
    assert run("from_prefix", value, prefix=[1], **tree) == (4.0, 0)  # node 2 always goes right
    assert (
        run("from_prefix", lambda sample_outcome, prefix: (sample_outcome(prefix, None), 1), prefix=[1, 0], **tree)[0]
        == 3.0
    )
    seen.clear()
    run("from_prefix", value, prefix=[], **tree)
    assert set(seen) == {1.0, 4.0}


def test_every_pair_of_losses_meets_the_same_theta():
    theta = torch.zeros(1, 2, dtype=torch.float64)
    tables = {"theta": theta, "states": torch.tensor([0, 0]), "ids": torch.tensor([0, 1])}
    weights = {"weights_a": torch.tensor([1.0, 0.0]), "weights_b": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}

    def difference(loss_a, loss_b, theta):
        return loss_a(theta) - loss_b(theta)

    found = run("pairs_of_losses", difference, **tables, **weights)  # each ln π is −ln 2
    assert found.tolist() == pytest.approx([0.0, -torch.tensor(2.0).log().item()])

    def spoil(loss_a, loss_b, theta):
        theta += 1
        return theta[0, 0]

    assert run("pairs_of_losses", spoil, **tables, **weights).tolist() == [1.0, 2.0]
    assert not theta.any()
