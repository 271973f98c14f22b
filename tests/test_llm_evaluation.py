"""Evaluation: what is counted, its intervals, and a run's own checkpoint."""

import dataclasses

import pytest
import torch

from minigrpo.llm.evaluation import counted, evaluate
from minigrpo.llm.models import load_model
from minigrpo.llm.runs import load_run, read_metrics
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import load_task
from minigrpo.llm.training import train

QUICK = Settings(
    updates=3, prompts=2, group_size=4, max_new_tokens=10, eval_size=20, eval_every=3, save_every=1, train_size=50
)


def test_counts_by_hand():
    """Two problems, two completions each, 1 and 0 of them right: 1/4 right, and one of two problems solved by two."""
    found = counted([1, 0], 2)
    assert found["accuracy"] == found["pass@1"] == pytest.approx(1 / 4)
    assert found["pass@2"] == pytest.approx(1 / 2)
    assert (found["problems"], found["samples"]) == (2, 2)
    assert set(found) == {"accuracy", "ci_low", "ci_high", "problems", "samples"} | {
        f"pass@{k}{end}" for k in (1, 2) for end in ("", "_ci_low", "_ci_high")
    }


def test_intervals_count_problems_not_completions():
    """Ten completions alike of each of 10 problems say no more than one of each."""
    one, ten = counted([1] * 5 + [0] * 5, 1), counted([10] * 5 + [0] * 5, 10)
    assert (ten["ci_low"], ten["ci_high"]) == pytest.approx((one["ci_low"], one["ci_high"]))
    assert (ten["ci_low"], ten["ci_high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson of 5 in 10


@pytest.mark.parametrize("samples", [3, 6])
def test_pass_at_powers_of_two_up_to_n(samples):
    found = counted([samples], samples)
    assert [k for k in range(1, 9) if f"pass@{k}" in found] == [k for k in (1, 2, 4) if k <= samples]
    assert found["pass@2"] == 1


@pytest.mark.parametrize("extra", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_a_run_is_loaded_as_it_was_trained(tmp_path, extra):
    settings = dataclasses.replace(QUICK, learning_rate=1e-3, **extra)  # so that three updates change answers
    assert train(settings, tmp_path, progress=False)
    loaded, update = load_run(tmp_path, settings)
    assert update == 3
    assert not loaded.model.training
    task = load_task(settings.task, train_size=50, heldout_size=20)
    options = {"max_new_tokens": settings.max_new_tokens}
    found = evaluate(loaded.model, loaded.tokenizer, task, **options)
    assert found["accuracy"] == read_metrics(tmp_path)[-1]["eval_accuracy"]
    ids = torch.arange(8).unsqueeze(0)
    start = load_model("tiny").model
    with torch.no_grad():
        assert (loaded.model(input_ids=ids).logits - start(input_ids=ids).logits).abs().max() > 1e-3


def test_a_run_that_has_no_checkpoint_or_a_cut_one(tmp_path):
    assert train(dataclasses.replace(QUICK, updates=1), tmp_path, progress=False)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can't be read, it may be cut short"):
        load_run(tmp_path, QUICK)
    path.unlink()
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is missing: the run has written none yet"):
        load_run(tmp_path, QUICK)
