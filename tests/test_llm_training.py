"""A run on a language model: the gradient, the files, and how it goes on after an interrupt."""

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from minigrpo.cli import main
from minigrpo.llm import metrics, runs, training, update
from minigrpo.llm.evaluation import evaluate
from minigrpo.llm.experiments import overlap, summary, theorem
from minigrpo.llm.forward import FORWARDS, forward_costs
from minigrpo.llm.models import TINY, load_model
from minigrpo.llm.prompts import encode_prompts
from minigrpo.llm.runs import load_run, read_metrics
from minigrpo.llm.sampling import Samples, completion_logps, sample_completions
from minigrpo.llm.scoring import decode
from minigrpo.llm.settings import PRESETS, Settings
from minigrpo.llm.tasks import load_task
from minigrpo.llm.training import train
from minigrpo.llm.update import Learner, descend, prepare, reference_of
from minigrpo.losses import policy_loss
from minigrpo.objectives import OBJECTIVES
from minigrpo.text import compare_text

ROOT = Path(__file__).resolve().parent.parent
QUICK = Settings(
    updates=6, prompts=2, group_size=4, max_new_tokens=10, eval_size=20, eval_every=3, save_every=2, train_size=50
)


@pytest.fixture(scope="module")
def batch():
    """A group of each of three problems, sampled by tiny, with rewards that differ."""
    loaded = load_model("tiny")
    task = load_task("arithmetic", train_size=3, heldout_size=3)
    samples = sample_completions(
        loaded.model,
        encode_prompts(loaded.tokenizer, task.train["prompt"], None),
        group_size=4,
        max_new_tokens=12,
        temperature=2.0,  # so that completions differ: the gradient of equal ones cancels
        eos_ids=loaded.eos_ids,
        pad_id=loaded.tokenizer.pad_token_id,
        generator=torch.Generator().manual_seed(0),
    )
    return samples, torch.rand(3, 4, generator=torch.Generator().manual_seed(1))


def gradient_of(settings, batch, micro_batch, way="padded"):
    samples, rewards = batch
    torch.manual_seed(0)
    model = prepare(load_model("tiny").model, settings)
    reference = reference_of(model, settings)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in weights:  # away from the reference and from the sampling policy
            weight.add_(0.003 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    optimizer = torch.optim.SGD(weights, lr=0.0)
    tensors = OBJECTIVES[settings.objective](rewards, samples.completion_ids, samples.completion_mask)
    learner = Learner(model, reference, optimizer, settings, (way,), forward_costs(model), micro_batch)
    learned = descend(learner, samples, *tensors)
    return torch.cat([weight.grad.flatten() for weight in weights]), learned, learner.micro_batch


BIG = {"max_grad_norm": 1e9, "temperature": 2.0}  # no scaling, so that gradients can be compared


@pytest.mark.parametrize(
    "settings",
    [
        Settings(**BIG),
        Settings(objective="lambda_grpo", beta=0.04, epsilon=0.2, **BIG),
        Settings(objective="prm", aggregation="seq-mean", **BIG),
        Settings(lora_rank=4, beta=0.1, **BIG),
    ],
    ids=lambda s: f"{s.objective}-{s.aggregation}-beta{s.beta}-lora{s.lora_rank}",
)
@pytest.mark.parametrize("way", FORWARDS)
def test_accumulated_gradient_is_the_whole_batch_s(settings, way, batch):
    whole, learned, _ = gradient_of(settings, batch, 64)
    assert whole.norm() > 1e-3
    for micro_batch in (1, 3, 5, 64):
        parts, other, _ = gradient_of(settings, batch, micro_batch, way)
        assert other["passes"][way] == {1: 12, 3: 6, 5: 3, 64: 1}[micro_batch]
        assert (parts - whole).norm() / whole.norm() < 1e-5
        assert other["loss"] == pytest.approx(learned["loss"], rel=1e-4)
    assert ("kl" in learned) == (settings.beta > 0)
    if settings.beta > 0:
        assert learned["kl"] > 0


@pytest.mark.parametrize("way", FORWARDS)
def test_a_group_of_equal_rewards_needs_no_pass(way, batch):
    """Its advantages are 0: without a KL term it is left out, with the same gradient; with one it is not."""
    samples, rewards = batch
    rewards = rewards.clone()
    rewards[1] = 0.5
    whole, _, _ = gradient_of(Settings(beta=1e-12, **BIG), (samples, rewards), 4)
    parts, learned, _ = gradient_of(Settings(**BIG), (samples, rewards), 4, way)
    assert learned["passes"][way] == 2
    assert (parts - whole).norm() / whole.norm() < 1e-5
    _, learned, _ = gradient_of(Settings(beta=0.1, **BIG), (samples, rewards), 4, way)
    assert learned["passes"][way] == 3
    nothing, _, _ = gradient_of(Settings(**BIG), (samples, torch.full_like(rewards, 0.5)), 4, way)
    assert nothing.norm() == 0


def test_gradient_is_that_of_the_loss(batch):
    """Against one plain forward pass, without micro-batches or this module's helpers."""
    samples, rewards = batch
    settings = Settings(objective="lambda_grpo", **BIG)
    ours, _, _ = gradient_of(settings, batch, 5)
    model = load_model("tiny").model
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.003 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    logps = completion_logps(model, samples, slice(None), temperature=2.0).view_as(samples.old_logps)
    tensors = OBJECTIVES["lambda_grpo"](rewards, samples.completion_ids, samples.completion_mask)
    policy_loss(logps, samples.old_logps, *tensors, samples.completion_mask).backward()
    plain = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    assert (ours - plain).norm() / plain.norm() < 1e-5


def test_out_of_memory_halves_the_micro_batch(batch, monkeypatch, capsys):
    whole, _, _ = gradient_of(Settings(**BIG), batch, 12)
    padded = FORWARDS["padded"]

    def small(model, samples, **options):
        if samples.completion_ids[..., 0].numel() > 3:
            raise torch.OutOfMemoryError("no memory")
        return padded.logps(model, samples, **options)

    monkeypatch.setitem(FORWARDS, "padded", padded._replace(logps=small))
    parts, _, fitted = gradient_of(Settings(**BIG), batch, 12)
    assert fitted == 3
    assert (parts - whole).norm() / whole.norm() < 1e-5
    assert "going on with micro_batch 3" in capsys.readouterr().out


def test_gradient_checkpointing_changes_nothing(batch):
    plain, _, _ = gradient_of(Settings(**BIG), batch, 12)
    saved, _, _ = gradient_of(Settings(gradient_checkpointing=True, **BIG), batch, 12)
    assert (plain - saved).norm() / plain.norm() < 1e-6


def test_run_leaves_its_files(tmp_path):
    assert train(QUICK, tmp_path, progress=False)
    rows = read_metrics(tmp_path)
    assert [row["update"] for row in rows] == list(range(7))
    assert [row["update"] for row in rows if "eval_accuracy" in row] == [0, 3, 6]
    assert {"reward", "entropy", "length", "zero_variance", "path_depth", "tokens_per_second"} <= set(rows[-1])
    assert {"loss", "grad_norm", "ratio"} <= set(rows[0])
    assert "loss" not in rows[-1]  # no update comes after it
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-4)
    groups = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert [group["update"] for group in groups] == [0, 3, 6]
    assert {len(groups[0][key]) for key in ("completions", "completion_ids", "rewards")} == {4}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert Settings(**manifest["settings"]) == QUICK
    assert manifest["versions"]["torch"] == torch.__version__  # with its build, such as +cpu
    assert [row["group_size"] for row in overlap(tmp_path)] == [4] * 7
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(QUICK, tmp_path, progress=False)


NUMBERS = ("update", "reward", "loss", "grad_norm", "entropy", "length", "eval_accuracy", "kl", "ratio")


def numbers(run):
    return [{key: row[key] for key in NUMBERS if key in row} for row in read_metrics(run)]


def test_ways_give_one_run(tmp_path, capsys):
    """The same numbers whichever way updates are computed; `auto` saves tokens here, and dropout takes none of it."""
    options = {"beta": 0.02, "epsilon": 0.2, "iterations": 2, "learning_rate": 1e-5}
    for way in ("padded", "shared", "packed", "auto"):
        train(dataclasses.replace(QUICK, forward=way, **options), tmp_path / way, progress=False)
    padded = read_metrics(tmp_path / "padded")
    for way in ("shared", "packed"):
        rows = read_metrics(tmp_path / way)
        for row, expected in zip(rows[:-1], padded, strict=False):
            assert row["passes"][way] == 1
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3, abs=1e-5)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
            assert row["kl"] == pytest.approx(expected["kl"], rel=1e-2, abs=1e-6)
    assert sum(row["passes"]["packed"] for row in read_metrics(tmp_path / "auto")[:-1]) > 0
    assert "computed padded" not in capsys.readouterr().out
    train(dataclasses.replace(QUICK, lora_rank=2, lora_dropout=0.1), tmp_path / "dropout", progress=False)
    assert "updates are computed padded: dropout is active" in capsys.readouterr().out
    assert all(row["passes"]["padded"] == 1 for row in read_metrics(tmp_path / "dropout")[:-1])


def test_bfloat16_passes(tmp_path):
    """Samples are float32's, so the ratio of the first update is 1 up to bfloat16's rounding."""
    train(dataclasses.replace(QUICK, dtype="bfloat16", updates=2), tmp_path, progress=False)
    rows = read_metrics(tmp_path)[:-1]
    assert all(row["ratio"] == pytest.approx(1, abs=0.05) for row in rows)
    assert any(row["ratio"] != pytest.approx(1, abs=1e-5) for row in rows)


def test_attention_that_a_model_lacks(tmp_path, monkeypatch):
    def lacking(self, kind):
        raise ValueError("does not support this kind")

    monkeypatch.setattr(LlamaForCausalLM, "set_attn_implementation", lacking)
    with pytest.raises(ValueError, match="attention 'eager' is not there for LlamaForCausalLM: leave it at default"):
        train(dataclasses.replace(QUICK, attention="eager"), tmp_path, progress=False)


def test_a_resumed_run_keeps_its_costs(tmp_path, monkeypatch):
    """Whichever way was cheapest by the manifest stays so, though the constants have changed since."""
    monkeypatch.setattr(training, "stop_signals", lambda: contextlib.nullcontext([signal.SIGTERM]))
    assert not train(QUICK, tmp_path, progress=False)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["costs"] = {"token": 0.0, "scored": 0.0, "pair": 0.0, "call": -1.0}  # two passes are cheaper than one
    path.write_text(json.dumps(manifest))
    monkeypatch.undo()
    train(QUICK, tmp_path, resume=True, progress=False)
    passes = [row["passes"] for row in read_metrics(tmp_path)[:-1]]
    assert passes[0]["packed"] == 1
    assert all(row["shared"] == 1 for row in passes[1:])


@pytest.mark.parametrize("extra", [{}, {"lora_rank": 4, "lora_dropout": 0.1, "beta": 0.02}], ids=["full", "lora"])
def test_resumed_run_equals_an_unbroken_one(tmp_path, monkeypatch, extra):
    settings = dataclasses.replace(QUICK, **extra)
    assert train(settings, tmp_path / "whole", progress=False)
    original, calls = training.descend, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:  # in update 3, after the checkpoint of update 2
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "descend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "broken", progress=False)
    monkeypatch.undo()
    assert train(settings, tmp_path / "broken", resume=True, progress=False)
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    assert (tmp_path / "broken" / "rollouts.jsonl").read_text() == (tmp_path / "whole" / "rollouts.jsonl").read_text()


def test_a_run_says_where_it_was_resumed(tmp_path, monkeypatch):
    def until(count):
        """Stop after so many updates."""
        answers = iter([True] * (count - 1) + [False])
        return lambda max_minutes: lambda: next(answers)

    for count in (1, 2):  # the second counts from where the first ended
        monkeypatch.setattr(training, "deadline", until(count))
        assert not train(QUICK, tmp_path, resume=count > 1, max_minutes=1, progress=False)
    monkeypatch.undo()
    assert train(QUICK, tmp_path, resume=True, progress=False)
    assert train(QUICK, tmp_path, resume=True, progress=False)  # it has ended: there is nothing to go on with
    assert runs.read_manifest(tmp_path)["resumed"] == [1, 3]
    assert [row["update"] for row in read_metrics(tmp_path)] == list(range(QUICK.updates + 1))


def test_time_ends_a_run_before_the_update_that_would_be_late(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("minigrpo.llm.signals.time.monotonic", lambda: now[0])
    original = training.sample

    def slow(*arguments):
        now[0] += 60
        return original(*arguments)

    monkeypatch.setattr(training, "sample", slow)
    assert not train(QUICK, tmp_path, max_minutes=3.5, progress=False)
    assert [row["update"] for row in read_metrics(tmp_path)] == [0, 1, 2]  # a fourth would end after 4 minutes
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert (tmp_path / "checkpoint.safetensors").stat().st_mode & 0o044 == 0o044  # others may collect it
    with pytest.raises(ValueError, match="max_minutes must be above 0, got -1"):
        train(QUICK, tmp_path / "other", max_minutes=-1, progress=False)


def test_auto_resume_starts_goes_on_and_leaves_what_is_done(tmp_path):
    run = tmp_path / "run"
    command = [*"llm train --updates 6 --prompts 2 --group-size 2 --max-new-tokens 4 --eval-size 4".split()]
    command += [*"--eval-every 6 --train-size 8 --save-every 100 --quiet --auto-resume --out".split(), str(run)]
    assert main([*command, "--max-minutes", "0.0001"]) == 130
    assert [row["update"] for row in read_metrics(run)] == [0]
    assert main(command) == 0
    assert [row["update"] for row in read_metrics(run)] == list(range(7))
    before = (run / "metrics.jsonl").read_bytes()
    assert main(command) == 0
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "checkpoint.safetensors").unlink()  # to save space: what is done stays done
    assert main(command) == 0
    assert (run / "metrics.jsonl").read_bytes() == before
    assert main([*command, "--updates", "7"]) == 2  # other settings: nothing is cleared away
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "metrics.jsonl").write_bytes(before.splitlines(keepends=True)[0])  # killed before its first checkpoint
    assert main(command) == 0
    assert "resumed" not in runs.read_manifest(run)
    assert len(read_metrics(run)) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock of this kind")
def test_a_folder_belongs_to_one_process(tmp_path):
    """The second is refused, before it clears away what the first has written; and no empty folder is left."""
    with runs.held(tmp_path / "run"):
        for resume in (False, True, "auto"):
            with pytest.raises(ValueError, match="is being trained by another process"):
                train(QUICK, tmp_path / "run", resume=resume, progress=False)
    assert not (tmp_path / "run").exists()
    assert train(QUICK, tmp_path / "run", progress=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, number):
    command = [sys.executable, "-m", "minigrpo", "llm", "train", "--updates", "5000", "--eval-size", "10"]
    options = ["--prompts", "2", "--group-size", "2", "--eval-every", "5000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 90
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, "no metrics"
            time.sleep(0.2)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: None, "was made with other settings: learning_rate 0.0001, not 0.5"),
        (lambda run: (run / "manifest.json").unlink(), "holds no run to resume"),
    ],
)
def test_resume_refuses_another_run(tmp_path, change, words):
    train(dataclasses.replace(QUICK, updates=1, learning_rate=1e-4), tmp_path, progress=False)
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        train(dataclasses.replace(QUICK, updates=1, learning_rate=0.5), tmp_path, resume=True, progress=False)


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path):
    train(QUICK, tmp_path, progress=False)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["forward"], manifest["costs"], manifest["date"], manifest["found"]
    path.write_text(json.dumps(manifest))
    assert train(QUICK, tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="forward 'auto', not 'packed'"):
        train(dataclasses.replace(QUICK, forward="packed"), tmp_path, resume=True, progress=False)


def test_a_run_whose_manifest_has_an_earlier_name_goes_on(tmp_path, monkeypatch):
    """`forward` was called `update`: such a run resumes, and its settings are read."""
    settings = dataclasses.replace(QUICK, forward="packed")
    assert train(settings, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_signals", lambda: contextlib.nullcontext([signal.SIGTERM]))
        assert not train(settings, tmp_path / "broken", progress=False)
    path = tmp_path / "broken" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["update"] = manifest["settings"].pop("forward")
    path.write_text(json.dumps(manifest))
    assert runs.read_settings(tmp_path / "broken") == settings
    assert train(settings, tmp_path / "broken", resume=True, progress=False)
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")


def test_resume_refuses_a_checkpoint_that_was_cut(tmp_path):
    settings = dataclasses.replace(QUICK, updates=1)
    train(settings, tmp_path, progress=False)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can't be read, it may be cut short"):
        train(settings, tmp_path, resume=True, progress=False)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    original = update.accumulate
    monkeypatch.setattr(update, "accumulate", lambda *a: original(*a) | {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"learning_rate 0\.0001 broke the run: loss nan"):
        train(dataclasses.replace(QUICK, learning_rate=1e-4), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("number", "named", "capped"), [(1, {1}, 0.0), (1, {1, 5}, 0.0), (5, {1}, 1.0), (5, {1, 5}, 0.0), (9, {1, 5}, 1.0)]
)
def test_capped_is_what_no_end_ended(number, named, capped):
    """Completions as long as can be, the last token of which is an end or isn't; under the mask there may be one."""
    ids = torch.tensor([[[4, 6, number, 1], [7, 6, number, 1]]])
    mask = torch.tensor([True, True, True, False]).expand(1, 2, 4)
    samples = Samples(torch.ones(1, 1).long(), torch.ones(1, 1).bool(), ids, mask, torch.zeros(1, 2, 4))
    assert metrics.describe(samples, torch.zeros(1, 2), named)["capped"] == capped


def two_ends(folder):
    """tiny with another end of sequence, as in Gemma: a turn still ends in <eos>, id 1."""
    loaded = load_model("tiny")
    model, tokenizer = loaded.model, loaded.tokenizer
    tokenizer.add_special_tokens({"eos_token": "<end_of_document>"})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] = 0
    model.generation_config.eos_token_id = [len(tokenizer) - 1, 1]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_turn_ends_where_the_model_s_generation_ends(tmp_path):
    """It is as good as tiny, the one end of which is <eos>, in a run and alone; none of it is capped."""
    model = two_ends(tmp_path / "model")
    options = {"updates": 2, "max_new_tokens": 24, "temperature": 0.1, "learning_rate": 1e-6}
    settings = dataclasses.replace(QUICK, **options)  # so cold that the one token more makes no difference
    train(settings, tmp_path / "tiny", progress=False)
    train(dataclasses.replace(settings, model=model), tmp_path / "two", progress=False)
    rows, expected = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "tiny")
    told = ("reward", "length", "capped", "eval_accuracy")
    assert [[row.get(name) for name in told] for row in rows] == [[row.get(name) for name in told] for row in expected]
    assert expected[0]["eval_accuracy"] > 0.3
    assert expected[0]["capped"] == 0
    assert load_model(model).eos_ids == (1, 21)


def test_an_end_that_is_no_special_token_is_not_shown():
    tokenizer = load_model("tiny").tokenizer
    one, two, three = tokenizer.encode("123")
    ids = torch.tensor([[one, two, three], [one, three, two]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert decode(tokenizer, ids, mask) == ["123", "13"]
    assert decode(tokenizer, ids, mask, {three}) == ["12", "1"]


def test_a_run_keeps_its_date(tmp_path, monkeypatch):
    """One that was stopped goes on the next day with the prompts of its first."""
    model = shutil.copytree(TINY, tmp_path / "model")
    path = model / "chat_template.jinja"
    path.write_text("{{- '<user>' + strftime_now('%j') -}}" + path.read_text())

    class Day(datetime.date):
        number = 1

        @classmethod
        def today(cls):
            return cls(2026, 7, cls.number)

    monkeypatch.setattr(training.datetime, "date", Day)
    settings = dataclasses.replace(QUICK, model=str(model), temperature=2.0, updates=2, eval_size=4)
    train(settings, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_signals", lambda: contextlib.nullcontext([signal.SIGTERM]))
        assert not train(settings, tmp_path / "broken", progress=False)
    Day.number = 31
    train(settings, tmp_path / "broken", resume=True, progress=False)
    train(settings, tmp_path / "later", progress=False)
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    assert numbers(tmp_path / "later") != numbers(tmp_path / "whole")
    found = {run: json.loads((tmp_path / run / "manifest.json").read_text()) for run in ("broken", "later")}
    assert (found["broken"]["date"], found["later"]["date"]) == ("2026-07-01", "2026-07-31")
    assert found["broken"]["found"]["template_date"] == "2026-07-01"
    assert load_run(tmp_path / "broken", settings)[0].template_date == "2026-07-01"


def test_log_probs_of_training_that_are_not_those_of_sampling(tmp_path, monkeypatch, capsys):
    """The mean ratio would hardly tell where some tokens are likelier and some are less, as by a wrong position."""
    padded = FORWARDS["padded"]

    def off(model, samples, **options):
        logps = padded.logps(model, samples, **options)
        return logps + 0.05 * (2 * (torch.arange(logps[0].numel()).view_as(logps[0]) % 2) - 1)

    settings = dataclasses.replace(QUICK, updates=1, forward="padded")
    train(settings, tmp_path / "right", progress=False)
    assert [row["warnings"] for row in read_metrics(tmp_path / "right")] == [[], []]
    monkeypatch.setitem(FORWARDS, "padded", padded._replace(logps=off))
    train(settings, tmp_path / "wrong", progress=False)
    first, last = read_metrics(tmp_path / "wrong")
    assert last["warnings"] == []  # no pass
    (warning,) = first["warnings"]
    assert "the log-probs of sampling and of training differ by 0.05 nats a token under the same weights" in warning
    assert f"update 0: {warning}" in capsys.readouterr().out
    assert abs(first["ratio"] - 1) < 0.02
    train(dataclasses.replace(settings, lora_rank=2, lora_dropout=0.1), tmp_path / "dropout", progress=False)
    assert read_metrics(tmp_path / "dropout")[0]["warnings"] == []  # it explains a difference


@pytest.mark.parametrize(
    ("gaps", "dtype", "dropout", "told"),
    [
        ([2e-3, 0.0], "float32", False, True),
        ([5e-4, 0.5], "float32", False, False),  # after the first step the policy is another
        ([2e-3], "float32", True, False),
        ([0.05], "bfloat16", False, False),
        ([0.2], "bfloat16", False, True),
        ([], "float32", False, False),
    ],
)
def test_a_mismatch_beyond_rounding(gaps, dtype, dropout, told):
    assert bool(metrics.mismatch(gaps, dataclasses.replace(QUICK, dtype=dtype), dropout)) == told


def test_a_system_without_git_and_resource(tmp_path, monkeypatch):
    """Windows has neither, of itself."""
    monkeypatch.setattr(runs.shutil, "which", lambda name: None)
    monkeypatch.setattr(metrics.sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    train(dataclasses.replace(QUICK, updates=1), tmp_path, progress=False)
    assert json.loads((tmp_path / "manifest.json").read_text())["git_revision"] is None
    assert [row["memory_gb"] for row in read_metrics(tmp_path)] == [None, None]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"zero_variance": 1.0}, "every group had equal rewards, so the loss is exactly 0"),
        ({"entropy": 0.001}, "the entropy is gone"),
        ({"capped": 0.95}, r"end at max_new_tokens \(24\)"),
    ],
)
def test_warnings_in_plain_words(row, words):
    fine = {"zero_variance": 0.5, "entropy": 1.0, "capped": 0.0}
    assert metrics.warnings_of([fine] * 10, Settings()) == []
    assert metrics.warnings_of([fine | row] * 4, Settings()) == []
    (warning,) = metrics.warnings_of([fine] * 3 + [fine | row] * 5, Settings())
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(warning)


def test_presets_are_settings_with_their_needs():
    for preset in PRESETS.values():
        assert isinstance(preset.settings, Settings)
        assert "memory" in preset.needs
        assert "minute" in preset.needs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        (
            {"objective": "dpo"},
            "one of dr_grpo, grpo, lambda_grpo, maxrl, prm, rloo, tempo, got 'dpo'",
        ),
        ({"dtype": "int8"}, "dtype must be one of bfloat16, float32, got 'int8'"),
        ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
        ({"beta": -1.0}, "beta must be 0 or above, got -1.0"),
        ({"model": 5}, "model must be a text, got 5"),
        ({"task": None}, "task must be a text, got None"),
        ({"updates": "six"}, "updates must be a whole number, got 'six'"),
        ({"prompts": 2.0}, "prompts must be a whole number, got 2.0"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing must be true or false, got 1"),
        ({"learning_rate": [1e-4]}, r"learning_rate must be a number, got \[0.0001\]"),
        ({"epsilon": "0.2"}, "epsilon must be a number or None, got '0.2'"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**changes)


def test_theorem_on_tiny():
    rows, other, tree = theorem(dataclasses.replace(QUICK, group_size=8))
    assert rows[0]["grad_norm"] > 1e-3
    assert max(rows[0]["loss_gap"], rows[0]["grad_gap"]) < 1e-5
    assert other["grad_gap"] > 1e-2
    assert "mean reward" in str(tree)


def test_theorem_on_fewer_problems_than_tries():
    """They are tried once each."""
    settings = dataclasses.replace(QUICK, train_size=2, temperature=1e-3)  # all completions of a group are alike
    with pytest.raises(ValueError, match="none of 2 groups had rewards that differ"):
        theorem(settings)


def test_evaluation_counts():
    loaded = load_model("tiny")
    task = load_task("arithmetic", train_size=10, heldout_size=60)
    greedy = evaluate(loaded.model, loaded.tokenizer, task, max_new_tokens=12, batch=7)
    again = evaluate(loaded.model, loaded.tokenizer, task, max_new_tokens=12, batch=60)
    assert greedy == again
    assert greedy["problems"] == 60
    assert greedy["ci_low"] < greedy["accuracy"] < greedy["ci_high"]
    sampled = evaluate(loaded.model, loaded.tokenizer, task, max_new_tokens=12, samples=4, temperature=1.0)
    assert sampled["pass@1"] == pytest.approx(sampled["accuracy"])
    assert sampled["pass@1"] <= sampled["pass@2"] <= sampled["pass@4"]


def test_summary_by_hand():
    rows = [{"update": u, "eval_accuracy": a} for u, a in ((0, 0.5), (10, 0.8), (20, 0.96), (30, 1.0), (40, 0.9))]
    rows = [row | {"path_depth": row["update"], "intermediate_proportion": 0.5, "step_size": 2.0} for row in rows]
    shared = {"path_depth": 20, "intermediate_proportion": 0.5, "step_size": 2}
    assert summary(rows) == {"first": 0.5, "best": 1.0, "last": 0.9, "updates_to_90": 20} | shared


def test_comparison_by_hand():
    """Two objectives, three seeds: means, and the difference to GRPO at its best learning rate, seed by seed."""
    rows = [
        {"objective": o, "learning_rate": lr, "seed": k, "first": 0.5, "best": last, "last": last, "updates_to_90": 10}
        for o, lr, lasts in (
            ("grpo", 1e-4, (0.6, 0.7, 0.8)),
            ("grpo", 2e-4, (0.5, 0.5, 0.5)),
            ("lambda_grpo", 1e-4, (0.8, 0.9, 1.0)),
        )
        for k, last in enumerate(lasts)
    ]
    text = compare_text(rows)
    assert "end − grpo 0.0001" in text
    found = {tuple(line.split()[:2]): line for line in text.splitlines()}
    assert "0.700" in found["grpo", "0.0001"]
    assert "[" not in found["grpo", "0.0001"]
    assert "-0.20 [" in found["grpo", "0.0002"]
    assert "+0.20 [+0.20, +0.20]" in found["lambda_grpo", "0.0001"]


def test_a_warning_is_said_once_for_as_long_as_it_lasts(monkeypatch):
    said = []
    monkeypatch.setattr(metrics.tqdm, "write", said.append)
    differ = "the log-probs of sampling and of training differ by {} nats a token under the same weights"
    told = [
        [],
        ["the entropy is gone"],
        ["the entropy is gone", differ.format(0.1)],
        [differ.format(0.2)],
        [],
        ["the entropy is gone"],
    ]
    history = []
    with metrics.tqdm(total=6, disable=True) as bar:
        for update, warnings in enumerate(told):
            history.append({"update": update, "warnings": warnings})
            metrics.show(bar, history, last=False)
    assert [line.partition(" differ")[0] for line in said] == [
        "update 1: the entropy is gone",
        "update 2: the log-probs of sampling and of training",
        "update 5: the entropy is gone",
    ]
