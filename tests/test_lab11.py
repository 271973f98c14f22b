"""Lab 11: its model runs once and tells branches apart, and what is expected is what the padded rows give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import minigrpo
from grader.check import attempt
from grader.drivers import DRIVERS
from grader.drivers.lab11 import ToyTransformer
from grader.exercise import explain
from grader.labs import find_exercise, lab11

UPDATE = find_exercise("lab11.7")
EXERCISES = [exercise.id for exercise in lab11.EXERCISES]
# the members of a step agree there, so that a mean is one member's own push; the hint speaks of both
ALIKE = {("lab11.6", "last member alone", "steps that agree"): "multiplicity lost"}


def padded_loss(model, prompt_ids, completion_ids, completion_mask, old_logps, advantages, step_weights, epsilon):
    """The rows one by one, and the package's loss on them: no tree, no packing."""
    L, rows = len(prompt_ids), []
    for completion in completion_ids:
        row = torch.cat([prompt_ids, completion])
        causal = torch.ones(len(row), len(row)).tril().bool()
        logits = model(row, torch.arange(len(row)), causal)
        rows.append(logits.log_softmax(dim=-1)[torch.arange(L, len(row)) - 1, completion])
    options = {"epsilon": epsilon}
    return minigrpo.policy_loss(torch.stack(rows), old_logps, advantages, step_weights, completion_mask, **options)


def loss_and_gradients(function, case, room=None):
    """As the lab's driver gives them, with a model that takes rows too where it has no room to keep to."""
    arguments = dict(case)
    model = ToyTransformer(arguments.pop("model_seed"), room)
    loss = function(model, **arguments)
    return loss.detach(), torch.autograd.grad(loss, list(model.weights.values()))


@pytest.mark.parametrize("part", UPDATE.parts, ids=lambda part: part.name)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_expected_is_what_the_rows_give(part, seed):
    case = UPDATE.case(part, seed, 0)
    ours, theirs = loss_and_gradients(lab11.packed_loss, case), loss_and_gradients(padded_loss, case)
    assert (ours[0] - theirs[0]).abs() < 1e-12 * theirs[0].abs()
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert other.abs().max() > 1e-3
        assert (one - other).abs().max() < 1e-12 * other.abs().max()


@pytest.mark.parametrize("objective", ["grpo", "prm", "lambda_grpo"])
def test_the_losses_over_nodes_are_those_of_the_rows(objective):
    for seed, clipped in ((0, False), (1, True), (2, True)):
        case = lab11.draw_loss(np.random.default_rng(seed), objective=objective, clipped=clipped)
        place, mask = case["place"], case["place"] >= 0
        leaf = case["logps"].clone().requires_grad_()
        rows = (values[place.clamp(min=0)] for values in (leaf, case["old_logps"]))
        tail = case["advantages"], case["step_weights"], mask
        loss = minigrpo.policy_loss(*rows, *tail, epsilon=case.get("epsilon"))
        (gradient,) = torch.autograd.grad(loss, leaf)
        name = "lab11.6" if clipped else "lab11.5"
        found = find_exercise(name).run(find_exercise(name).reference, case)
        assert abs(found["loss"] - loss) < 1e-12
        assert (found["grads"]["logps"] - gradient).abs().max() < 1e-12
        assert gradient.abs().max() > 1e-2


def test_the_rows_have_no_room_in_the_model():
    case = UPDATE.case(UPDATE.parts[0], 3, 0)
    found = attempt(UPDATE, padded_loss, case)
    assert "the model runs once, on at most" in found.error
    places = len(
        lab11.packed_order(*(case[name] for name in ("prompt_ids", "completion_ids", "completion_mask")))["ids"]
    )
    loss_and_gradients(lab11.packed_loss, case, room=places)
    with pytest.raises(ValueError, match=f"at most {places - 1} tokens"):
        loss_and_gradients(lab11.packed_loss, case, room=places - 1)


def test_the_model_names_what_it_cannot_take():
    model, ids = ToyTransformer(0), torch.tensor([1, 2, 3])
    sees = torch.ones(3, 3).tril().bool()
    for arguments, said in (
        ((ids, ids[:2], sees), r"got \(3,\), \(2,\), \(3, 3\)"),
        ((ids[None], ids[None], sees), "takes ids"),
        ((ids, ids, sees.double()), "must be bool"),
        ((ids, ids, sees.tril(-1)), "must see itself"),
        ((ids, ids - 2, sees), "positions must be from 0"),
    ):
        with pytest.raises(ValueError, match=said):
            model(*arguments)


def test_the_model_uses_ids_positions_mask_and_seed():
    ids, places = torch.tensor([1, 2, 3, 4]), torch.arange(4)
    sees = torch.ones(4, 4).tril().bool()
    plain = ToyTransformer(0)(ids, places, sees)
    assert torch.equal(plain, ToyTransformer(0)(ids, places, sees))
    apart = sees.clone()
    apart[3, 2] = False
    others = [
        ToyTransformer(1)(ids, places, sees),
        ToyTransformer(0)(ids, torch.tensor([0, 1, 2, 2]), sees),
        ToyTransformer(0)(ids, places, apart),
        ToyTransformer(0)(torch.tensor([1, 2, 5, 4]), places, sees),
    ]
    for other in others:
        assert (other[3] - plain[3]).abs().max() > 0.01


@pytest.mark.parametrize("seed", range(20))
def test_the_packed_order_is_that_of_a_dictionary(seed):
    case = lab11.draw_group(np.random.default_rng(seed))
    L, rows = len(case["prompt_ids"]), lab11._rows(case["completion_ids"], case["completion_mask"])
    prefixes = sorted({tuple(row[: t + 1]) for row in rows for t in range(len(row))})
    found = lab11.packed_order(**case)
    paths = []
    for k, before in enumerate(found["parent"].tolist()):
        paths.append([*(paths[before] if before >= 0 else []), found["ids"][k].item()])
    assert [tuple(path[L:]) for path in paths[L:]] == prefixes
    assert [len(path) - 1 for path in paths] == found["depth"].tolist()
    for i, row in enumerate(rows):
        assert [paths[k][L:] for k in found["place"][i, : len(row)]] == [row[: t + 1] for t in range(len(row))]
    assert (found["place"][~case["completion_mask"]] == -1).all()


@pytest.mark.parametrize("draw", [lab11.draw_group_parents, lab11.draw_any_tree])
@pytest.mark.parametrize("seed", range(10))
def test_ends_and_mask_are_those_of_the_paths(draw, seed):
    parents = draw(np.random.default_rng(seed))["parent"].tolist()
    paths = []
    for k, before in enumerate(parents):
        paths.append([*(paths[before] if before >= 0 else []), k])
    end = lab11.subtree_end(torch.tensor(parents))
    assert end.tolist() == [1 + max(q for q, path in enumerate(paths) if k in path) for k in range(len(paths))]
    assert lab11.ancestor_mask(end).tolist() == [[k in path for k in range(len(paths))] for path in paths]


def test_the_numbers_in_the_text():
    prompt, (ids, mask) = torch.tensor([5, 6]), lab11.pad([[1, 2], [1, 3], [1]])
    found = lab11.packed_order(prompt, ids, mask)
    assert {name: value.tolist() for name, value in found.items()} == {
        "ids": [5, 6, 1, 2, 3],
        "depth": [0, 1, 2, 3, 3],
        "parent": [-1, 0, 1, 2, 2],
        "place": [[2, 3], [2, 4], [2, -1]],
    }
    assert lab11.subtree_end(found["parent"]).tolist() == [5, 5, 5, 4, 5]
    zero, push = torch.zeros(5), torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 9.0]])
    assert lab11.tree_loss(zero, zero, push, torch.ones(3, 2), found["place"]).item() == pytest.approx(-0.2)
    both, place = torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1, dtype=torch.long)
    rows = torch.tensor([1.5]).log(), torch.zeros(1), both, torch.ones(2, 1), place, 0.2
    assert lab11.clipped_tree_loss(*rows).item() == pytest.approx(0.3 / 2)
    assert lab11.loss_with(surrogate=lab11.one_sum)(*rows).item() == 0
    counts = lab11.count_tokens(100, [[7, 8], [7, 9], [7], [7, 8, 5]])
    assert counts == {"padded": 412, "packed": 104, "saved": pytest.approx(0.748, abs=5e-4)}


@pytest.mark.parametrize("name", EXERCISES)
def test_no_mistake_is_taken_for_another(name):
    """Where a part stops at its first wrong case, that case tells the mistake from the others."""
    exercise = find_exercise(name)
    for mistake in exercise.mistakes:
        for seed in (3, 4):
            failed = {}
            for part in exercise.parts:
                tried = []
                while len(tried) < part.draws and all(found.passed for found in tried):
                    tried.append(attempt(exercise, mistake.wrong, exercise.case(part, seed, len(tried))))
                if not tried[-1].passed:
                    failed[part.name] = explain(exercise, tried)
            assert failed, (mistake.name, seed)
            for part, found in failed.items():
                wanted = ALIKE.get((name, mistake.name, part), mistake.name)
                assert found, (mistake.name, part)
                assert found.name == wanted, (mistake.name, part)


def test_a_loss_that_is_no_tensor_gets_no_gradient():
    case = UPDATE.case(UPDATE.parts[0], 7, 0)
    found = DRIVERS["lab11_packed_pass"]({"f": lambda model, **rest: 0.5}, "f", case)
    assert found["loss"] == 0.5
    assert not any(grad.any() for grad in found["grads"].values())
    assert UPDATE.judge(case, UPDATE.run(UPDATE.reference, case), found) is not None
