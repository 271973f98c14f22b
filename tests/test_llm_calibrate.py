"""The cost model fitted to the machine: what is known comes out again, in time, and nothing of the model changes."""

import json
from dataclasses import replace
from itertools import count

import pytest
import torch

from minigrpo.llm import calibrate as module
from minigrpo.llm import update
from minigrpo.llm.calibrate import SHAPES, Timed, calibrate, fitted, predicted, random_groups, terms
from minigrpo.llm.cli import main
from minigrpo.llm.forward import FORWARDS, forward_costs
from minigrpo.llm.models import load_model
from minigrpo.llm.settings import Settings


@pytest.fixture(scope="module")
def model():
    return load_model("tiny").model


def timed_by(costs, model, known, noise=0.0):
    """What passes would take if their seconds were these costs' at a rate of 1e10 a second."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for shape in SHAPES[:6]:
        samples = random_groups(model, *shape)
        for name, forward in FORWARDS.items():
            layout = forward.layout(samples)
            off = 1 + noise * float(torch.randn((), generator=draw))
            rows.append(Timed(name, shape, terms(name, layout, known), forward.cost(layout, costs) / 1e10 * off))
    return rows


@pytest.mark.parametrize("factors", [(3.0, 0.15, 0.4), (0.5, 8.0, 2.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_prices_come_out_again(model, factors, noise):
    known = forward_costs(model)
    true = replace(known, **{n: getattr(known, n) * f for n, f in zip(("pair", "call", "block"), factors, strict=True)})
    rows = timed_by(true, model, known, noise)
    found = fitted(known, rows)
    assert (found.token, found.scored) == (known.token, known.scored)
    scale = [predicted(found, known, row) / predicted(true, known, row) for row in rows]
    assert max(scale) / min(scale) < 1.15 + 3 * noise  # the same order of the ways, but for near ties
    if factors != (1.0, 1.0, 1.0):
        before = [predicted(known, known, row) / predicted(true, known, row) for row in rows]
        assert max(before) / min(before) > 1.4  # without the fit the order would be another


def test_what_the_passes_do_not_show_stays_near_what_is_known(model):
    """Small passes only: the attention is a hundredth of their time, and noise must not set its price."""
    known = forward_costs(model)
    rows = [row for row in timed_by(known, model, known, noise=0.1) if row.shape in SHAPES[:2]]
    found = fitted(known, rows)
    assert 0.3 < found.pair / known.pair < 3
    assert min(found.pair, found.call, found.block) >= 0


def test_prices_are_never_negative(model):
    known = forward_costs(model)
    rows = [replace(row, seconds=1.0) for row in timed_by(known, model, known)]  # larger passes took no longer
    found = fitted(known, rows)
    assert min(found.pair, found.call, found.block) >= 0


def test_time_is_kept_and_too_little_changes_nothing(model):
    known = forward_costs(model)
    ticks = count()

    def clock():  # each pass takes a second
        return float(next(ticks))

    costs, rows = calibrate(model, tuple(FORWARDS), seconds=20.0, clock=clock)
    assert 1 <= len(rows) < module.LEAST
    assert costs == known
    assert next(ticks) < 30  # and not for all the shapes


def test_the_first_pass_is_made_however_little_time_there_is(model):
    ticks = count(step=100)
    _, rows = calibrate(model, tuple(FORWARDS), seconds=1e-9, clock=lambda: float(next(ticks)))
    assert len(rows) == 1


def test_too_little_memory_ends_it(model, monkeypatch):
    seconds = module._pass_seconds
    passes = count()

    def short(*arguments):
        if next(passes) >= 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds(*arguments)

    monkeypatch.setattr(module, "_pass_seconds", short)
    costs, rows = calibrate(model, tuple(FORWARDS), seconds=60.0)
    assert len(rows) == 6
    assert costs != forward_costs(model)
    assert all(weight.grad is None for weight in model.parameters())


def test_no_trace_in_the_model(model):
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.random.get_rng_state()
    model.eval()
    costs, rows = calibrate(model, ("padded", "packed"), seconds=1.0)
    assert {row.forward for row in rows} == {"padded", "packed"}
    assert len(rows) >= module.LEAST
    assert costs.token == forward_costs(model).token
    assert not model.training
    assert torch.equal(state, torch.random.get_rng_state())
    for name, weight in model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])


def test_shapes_beyond_the_context_are_left_out(model):
    _, rows = calibrate(model, ("packed",), seconds=60.0)
    assert max(row.shape[2] + row.shape[3] for row in rows) <= model.config.max_position_embeddings
    assert len(rows) == sum(L + T <= model.config.max_position_embeddings for _, _, L, T, _ in SHAPES)


def test_a_run_measures_on_cuda_alone_and_never_twice(monkeypatch):
    def none(*arguments, **options):
        raise AssertionError("measured")

    monkeypatch.setattr(update, "calibrate", none)
    learner, _ = update.new_learner(load_model("tiny").model, Settings())
    assert learner.costs == forward_costs(learner.model)
    kept = replace(learner.costs, pair=1.0)
    learner, _ = update.new_learner(load_model("tiny").model, Settings(), kept)
    assert learner.costs == kept


def test_command(tmp_path, capsys):
    file = tmp_path / "costs.json"
    assert main(["calibrate", "--seconds", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["costs"]["token"] == found["known"]["token"]
    assert len(found["rows"]) >= module.LEAST
    out = capsys.readouterr().out
    assert "1 × 4 × (8 + 8), 2" in out
    assert "a pair in the attention costs" in out
    assert main(["calibrate", "--seconds", "0.001"]) == 0
    assert "a fit needs 5 passes, and there was time for 1" in capsys.readouterr().out
    assert main(["calibrate", "--seconds", "0"]) == 2
    assert "--seconds must be above 0, got 0" in capsys.readouterr().err
