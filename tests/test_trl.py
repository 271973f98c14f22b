"""The contract with TRL: its own loss for "grpo", `minigrpo.policy_loss` for all three, on the installed version."""

import ast
import inspect
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="trl is optional: make test-trl runs these")

from datasets import Dataset, DatasetDict
from groups import assert_close
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Trainer, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer
from trl_runs import OFF, PROMPTS, reward, tiny, trainer, weights

import minigrpo
from minigrpo.integrations import contract
from minigrpo.integrations import trl as adapter
from minigrpo.integrations.trl import ProcessGRPOTrainer
from minigrpo.llm.models import TINY
from minigrpo.objectives import OBJECTIVES, PAPER_OBJECTIVES

ROOT = Path(__file__).resolve().parent.parent
TRL = Version(metadata.version("trl"))
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def run(objective, out, **options):
    made = trainer(ProcessGRPOTrainer, out, more={"objective": objective}, **options)
    made.train()
    return made


def vector(made_or_weights):
    """All trained weights as one vector."""
    found = made_or_weights if isinstance(made_or_weights, dict) else weights(made_or_weights)
    return torch.cat([found[name].flatten() for name in sorted(found)])


def moved(made):
    """How far training took `tiny`, as one vector."""
    return vector(made) - vector(dict(tiny().named_parameters()))


# The same as TRL, the same as minigrpo


def longer(completions, completion_ids, **columns):
    """A second reward, which has nothing to say of some completions."""
    return [None if len(ids) % 3 == 0 else len(ids) / 8 for ids in completion_ids]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.04, "num_iterations": 2, "epsilon": 0.02, "gradient_accumulation_steps": 2},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "delta": 1.01, "epsilon_high": 0.005},
        {"reward_funcs": [reward, longer], "reward_weights": [1.0, 0.3], "scale_rewards": "batch"},
        {"mask_truncated_completions": True, "scale_rewards": "none", "use_bias_correction_kl": True, "beta": 0.04},
    ],
    ids=[
        "default",
        "beta, iterations, accumulation",
        "a generation for two updates, clipped on both sides",
        "two rewards, scaled over the batch",
        "truncated completions masked, rewards not scaled, the other KL",
    ],
)
@pytest.mark.filterwarnings("ignore:use_bias_correction_kl is on")
def test_grpo_is_trls_own(tmp_path, settings):
    ours, theirs = (
        run("grpo", tmp_path, max_steps=4, **settings),
        trainer(GRPOTrainer, tmp_path, max_steps=4, **settings),
    )
    theirs.train()
    assert_close(moved(ours), moved(theirs))
    assert len(theirs.state.log_history) == 5
    for a, b in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        timed = {name for name in a if "time" in name or "per_second" in name}
        assert {k: v for k, v in a.items() if k not in timed} == pytest.approx(
            {k: v for k, v in b.items() if k not in timed}, rel=1e-6
        )


def test_prm_is_grpo_where_nothing_is_clipped(tmp_path):
    grpo, prm, other = (moved(run(name, tmp_path, max_steps=1)) for name in PAPER_OBJECTIVES)
    assert_close(prm, grpo, 1e-6)  # TRL's advantages are float32
    assert (other - grpo).abs().max() > 0.05 * grpo.abs().max()


class Recorder:
    """A reward function that keeps what TRL generated: the prompts, the completions and their rewards."""

    __name__ = "reward"

    def __init__(self):
        self.batches = []

    def __call__(self, prompts, completion_ids, **columns):
        rewards = reward(completion_ids=completion_ids, completions=None)
        self.batches.append((prompts, completion_ids, rewards))
        return rewards


def logps_row_by_row(model, tokenizer, prompts, completions, T):
    """ln π of each completion's tokens, a row at a time and so without TRL's padding: (B, T)."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = tokenizer(prompt)["input_ids"] + completion
        logits = model(torch.tensor([ids])).logits[0, -len(completion) - 1 : -1]
        row = minigrpo.token_logps(logits, torch.tensor(completion))
        rows.append(torch.nn.functional.pad(row, (0, T - len(completion))))
    return torch.stack(rows)


# An older TRL's denominator also counts completions that were cut off and masked.
COUNTS_MASKED = "loss_mask.sum()" not in inspect.getsource(GRPOTrainer._generate_and_score_completions)


def by_hand(
    objective, model, tokenizer, batches, *, beta, epsilon, iterations, learning_rate, truncated=True, group_size=4
):
    """Train `model` on recorded batches with `minigrpo.policy_loss` and nothing of TRL; count clipped tokens.

    Without `truncated`, completions that were cut off count for their group's mean reward and no more.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    first = [value.detach().clone() for value in trained]
    clipped = 0
    for prompts, completions, rewards in batches:
        T = max(map(len, completions))
        whole = [truncated or y[-1] == tokenizer.eos_token_id for y in completions]
        assert truncated or 0 < sum(whole) < len(whole)
        mask = torch.tensor([[t < len(y) and use for t in range(T)] for y, use in zip(completions, whole, strict=True)])
        ids = torch.tensor([y + [0] * (T - len(y)) for y in completions])
        groups = (-1, group_size, T)
        scores = torch.tensor(rewards).view(-1, group_size)
        parts = minigrpo.OBJECTIVES[objective](scores, ids.view(groups), mask.view(groups))
        advantages, step_weights = (part.flatten(0, 1).double() for part in parts)
        with torch.no_grad():
            old = logps_row_by_row(model, tokenizer, prompts, completions, T)
            now = [value.clone() for value in trained]
            for value, start in zip(trained, first, strict=True):
                value.copy_(start)
            ref = logps_row_by_row(model, tokenizer, prompts, completions, T)
            for value, kept in zip(trained, now, strict=True):
                value.copy_(kept)
        for _ in range(iterations):
            logps = logps_row_by_row(model, tokenizer, prompts, completions, T)
            clipped += ((((logps - old).exp() - 1).abs() > epsilon) & mask).sum().item()
            loss = minigrpo.policy_loss(
                logps,
                old,
                advantages,
                step_weights,
                mask,
                epsilon=epsilon,
                beta=beta,
                ref_logps=ref,
                num_tokens=sum(map(len, completions)) if COUNTS_MASKED else None,
            )
            for value, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                value.data -= learning_rate * gradient
    return clipped


ALL = {"gradient_accumulation_steps": 2, "beta": 0.04, "num_iterations": 2, "epsilon": 0.02}
CASES = {
    "beta 0": {},
    "beta 0.04": {"beta": 0.04},
    "clipping, three iterations": {"num_iterations": 3, "epsilon": 0.02},
    "accumulation too": ALL,
    "and LoRA": ALL | {"lora": True, "learning_rate": 0.005},
    "truncated completions masked": {"mask_truncated_completions": True, "max_completion_length": 4},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_is_policy_loss_on_the_same_batches(tmp_path, objective, case):
    """Three generations in TRL and by hand end at the same weights."""
    settings = {"beta": 0.0, "epsilon": 0.2, "num_iterations": 1, "learning_rate": 0.001} | CASES[case]
    lora, masked = settings.pop("lora", False), "mask_truncated_completions" in settings
    recorder = Recorder()

    def model():
        if not lora:
            return tiny()
        torch.manual_seed(0)
        return get_peft_model(tiny(), LoraConfig(**LORA), autocast_adapter_dtype=False)

    made = trainer(
        ProcessGRPOTrainer,
        tmp_path,
        model=model(),
        reward_funcs=recorder,
        deterministic=masked,
        more={"objective": objective},
        max_steps=3 * settings["num_iterations"],
        **settings,
    )
    made.train()
    assert len(recorder.batches) == 3
    expected = model()
    clipped = by_hand(
        objective,
        expected,
        made.processing_class,
        recorder.batches,
        beta=settings["beta"],
        epsilon=settings["epsilon"],
        iterations=settings["num_iterations"],
        learning_rate=settings["learning_rate"],
        truncated=not masked,
    )
    assert (clipped > 0) == (settings["num_iterations"] > 1)
    start = vector({name: value for name, value in model().named_parameters() if value.requires_grad})
    end = vector({name: value for name, value in expected.named_parameters() if value.requires_grad})
    found = {name: value for name, value in weights(made).items() if ".ref." not in name}
    assert_close(vector(found) - start, end - start, 1e-5)


def test_metrics_count_every_token_once(tmp_path):
    """TRL's own means of entropy and clipping are of the unweighted tokens, whatever the objective."""
    grpo, other = (run(name, tmp_path, max_steps=1, beta=0.04).state.log_history[0] for name in ("grpo", "lambda_grpo"))
    assert other["entropy"] == pytest.approx(grpo["entropy"], rel=1e-9) != 0
    assert other["loss"] != pytest.approx(grpo["loss"], rel=1e-3)
    assert set(other) == set(grpo)


def test_metrics_take_no_forward_pass_of_their_own(tmp_path, monkeypatch):
    calls = []
    whole = GRPOTrainer._get_per_token_logps_and_entropies
    monkeypatch.setattr(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        lambda *arguments, **keywords: calls.append(1) or whole(*arguments, **keywords),
    )
    run("lambda_grpo", tmp_path, max_steps=2)
    assert len(calls) == 2


def test_evaluation_has_groups_of_its_own_size(tmp_path):
    """Threes, where training has fours. (In a pair the shared tokens would cancel: a₁ = −a₂.)"""
    settings = {"num_generations_eval": 3, "per_device_eval_batch_size": 6}
    losses = {}
    for objective in PAPER_OBJECTIVES:
        made = trainer(
            ProcessGRPOTrainer, tmp_path, more={"objective": objective}, deterministic=True, seed=1, **settings
        )
        losses[objective] = made.evaluate(Dataset.from_dict({"prompt": PROMPTS[:4]}))["eval_loss"]
    assert losses["prm"] == pytest.approx(losses["grpo"], abs=1e-6)
    assert losses["lambda_grpo"] != pytest.approx(losses["grpo"], abs=1e-3)


def test_truncated_completions_can_be_masked(tmp_path):
    """Where every completion is cut off nothing is left to learn from, and nothing is learnt."""
    made = run("lambda_grpo", tmp_path, max_steps=1, max_completion_length=1, mask_truncated_completions=True)
    assert moved(made).abs().max() == 0


@pytest.mark.skipif(
    Version(metadata.version("trl")) < Version("1.15"), reason="an older TRL ends at the tokenizer's end alone"
)
def test_completions_end_at_each_end_of_the_model(tmp_path):
    """A model whose turns end otherwise than its tokenizer's texts: what is sampled ends there, and is whole."""
    model, ends = tiny(), AutoTokenizer.from_pretrained(TINY).eos_token_id
    model.generation_config.eos_token_id = [ends, 5]
    made = trainer(ProcessGRPOTrainer, tmp_path, model=model, max_completion_length=24)
    made.processing_class.eos_token = made.processing_class.convert_ids_to_tokens(5)
    made = ProcessGRPOTrainer(
        model, reward, made.args, made.train_dataset, processing_class=made.processing_class, objective="lambda_grpo"
    )
    batch = made._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(4)])
    lengths = batch["completion_mask"].sum(dim=1)
    last = batch["completion_ids"].gather(1, lengths[:, None] - 1).flatten()
    assert set(last.tolist()) == {ends}
    assert lengths.max() < 24


# Processes and checkpoints


def launch(out, processes, **options):
    """Train in so many processes on the CPU, under `accelerate launch` and gloo; return weights and logs."""
    out.mkdir()
    # accelerate's --cpu starts several processes under MPI only; its multi_gpu launcher also starts them on a CPU.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--num_processes", f"{processes}", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(ROOT / "tests" / "trl_runs.py"), str(out), json.dumps(options)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "end.pt")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["prm", "lambda_grpo"])
def test_two_processes_are_one(tmp_path, objective):
    """Six rows a process and groups of four: the second of three groups is split, half in each process."""
    options = {"objective": objective, "num_iterations": 2, "beta": 0.04, "epsilon": 0.02, "max_steps": 4}
    options |= {"per_device_train_batch_size": 6, "learning_rate": 0.001}
    two = launch(tmp_path / "two", 2, **options)
    one = run(options.pop("objective"), tmp_path, deterministic=True, gradient_accumulation_steps=2, **options)
    assert_close(
        vector(two["weights"]) - vector(dict(tiny().named_parameters())), moved(one), 1e-5
    )  # TRL's advantages are float32
    assert len(two["log"]) == 5
    for a, b in zip(one.state.log_history, two["log"], strict=True):
        for name in {"loss", "reward", "completions/mean_length"} & set(a):
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-6)


def checkpoints(out):
    return sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))


# Three batches a generation, two an update, one generation an epoch: its second update has one batch only.
SHORT = {"steps_per_generation": 3, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    "settings",
    [{"num_iterations": 2, "gradient_accumulation_steps": 2, "beta": 0.04}, SHORT],
    ids=["an epoch and a half", "three short epochs"],
)
def test_resumed_is_unbroken(tmp_path, settings):
    """The checkpoint is at the end of an epoch, where TRL's order of the data begins anew."""
    settings = settings | {"learning_rate": 0.001}
    whole = run("lambda_grpo", tmp_path / "whole", max_steps=6, **settings)
    broken = trainer(
        ProcessGRPOTrainer, tmp_path / "broken", max_steps=6, save_strategy="steps", save_steps=4, **settings
    )
    broken.train()
    again = trainer(ProcessGRPOTrainer, tmp_path / "broken", max_steps=6, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-4"))
    assert again.state.global_step == 6
    assert_close(moved(again), moved(whole))
    assert moved(whole).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "save_steps", "expected"),
    [
        ({"num_iterations": 2, "gradient_accumulation_steps": 2}, 3, [4, 5]),  # of 4 batches a generation, 2 an update
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 4, "num_iterations": 4}, 1, [3, 5]),  # of 12 and 4
        (SHORT, 1, [2, 4, 5]),
    ],
    ids=["two updates a generation", "three updates a generation", "epochs that end in short updates"],
)
def test_checkpoints_move_to_where_a_generation_ends(tmp_path, settings, save_steps, expected):
    """The next one's end; and after the last update, which ends the run."""
    run("grpo", tmp_path, max_steps=5, save_strategy="steps", save_steps=save_steps, **settings)
    assert checkpoints(tmp_path) == expected


@pytest.mark.parametrize(("asked", "saved"), [(1, 2), (2, 2), (3, 4)])
def test_a_checkpoint_at_sigterm_waits_for_its_generation(tmp_path, asked, saved):
    """Of two updates a generation; and the run that goes on from it ends as an unbroken one."""
    settings = {"num_iterations": 2, "learning_rate": 0.001, "max_steps": 6}
    whole = run("lambda_grpo", tmp_path / "whole", **settings)

    class Sigterm(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == asked - 1:
                os.kill(os.getpid(), signal.SIGTERM)
                made._boundary.at_sigterm.jit_manager._enable_checkpoint()  # at once, not after its seconds of grace

    before = signal.getsignal(signal.SIGTERM)
    made = trainer(ProcessGRPOTrainer, tmp_path / "broken", enable_jit_checkpoint=True, **settings)
    made.add_callback(Sigterm())
    made.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert made.state.global_step == saved
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == [f"checkpoint-{saved}"]
    again = trainer(ProcessGRPOTrainer, tmp_path / "broken", **settings)
    again.train(resume_from_checkpoint=True)
    assert_close(moved(again), moved(whole))


@pytest.mark.parametrize(("asked", "stopped"), [(1, 2), (2, 2), (3, 4), (6, 6)])
def test_a_run_stops_where_a_generation_ends_once_it_is_time(tmp_path, asked, stopped):
    """Of two updates a generation; and the run that goes on from it ends as an unbroken one."""
    settings = {"num_iterations": 2, "learning_rate": 0.001, "max_steps": 6}
    whole = run("lambda_grpo", tmp_path / "whole", **settings)
    made = trainer(ProcessGRPOTrainer, tmp_path / "broken", **settings)
    made.stop_when(lambda: made.state.global_step >= asked)
    made.train()
    assert made.state.global_step == stopped
    if stopped == 6:  # it had reached its end
        assert_close(moved(made), moved(whole))
        return
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == [f"checkpoint-{stopped}"]
    again = trainer(ProcessGRPOTrainer, tmp_path / "broken", **settings)
    again.train(resume_from_checkpoint=True)
    assert_close(moved(again), moved(whole))


@pytest.mark.parametrize(("ranks", "expected"), [(1, 45), (2, 43), (4, 42)])
def test_vllm_samples_by_the_seed_that_was_asked_for(tmp_path, monkeypatch, ranks, expected):
    """Colocated vLLM seeds the whole process with 0 as it starts; those that share a model draw alike."""
    made = trainer(ProcessGRPOTrainer, tmp_path, seed=42)
    made.args.use_vllm, made.args.vllm_mode, made.args.vllm_tensor_parallel_size = True, "colocate", ranks
    monkeypatch.setattr(type(made.accelerator), "process_index", property(lambda self: 3))
    torch.manual_seed(0)
    adapter.seed_vllm(made.args, made.accelerator)
    drawn = torch.rand(4), random.random()
    set_seed(expected)
    assert torch.equal(drawn[0], torch.rand(4))
    assert drawn[1] == random.random()


def test_resuming_inside_a_generation_is_refused(tmp_path):
    run("grpo", tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    made = trainer(ProcessGRPOTrainer, tmp_path, num_iterations=2)
    with pytest.raises(ValueError, match="must be a generation's end, update 1 is not"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


class Values:
    """Evaluations in the place of TRL's: best after update 4, but for what is inside a generation; their updates."""

    def __init__(self, made):
        self.made, self.updates, self.weights = made, [], {}

    def __call__(self, *arguments, **keywords):
        update = self.made.state.global_step
        self.updates.append(update)
        self.weights[update] = vector(self.made)
        metrics = {"eval_reward": {2: 0.5, 4: 0.9, 6: 0.3, 7: 0.2}.get(update, 1.0)}
        self.made.callback_handler.on_evaluate(self.made.args, self.made.state, self.made.control, metrics)
        return metrics


BEST = {"metric_for_best_model": "eval_reward", "greater_is_better": True}


@pytest.mark.parametrize(
    "settings", [{"num_iterations": 2}, {"steps_per_generation": 2}], ids=["twice", "in two parts"]
)
@pytest.mark.parametrize(
    ("save_strategy", "load", "saved"),
    [("steps", True, [2, 4, 6, 7]), ("best", True, [2, 4]), ("best", False, [2, 4])],
    ids=["saved each time", "saved where best", "saved where best, not loaded"],
)
def test_the_best_model_is_the_one_that_was_evaluated(tmp_path, settings, save_strategy, load, saved):
    """Two updates a generation: what is evaluated has a checkpoint, and the best one is given back."""
    recorded = "in [SaveStrategy.STEPS, SaveStrategy.EPOCH]" not in inspect.getsource(Trainer._determine_best_metric)
    if save_strategy == "best" and not recorded:
        pytest.skip("this transformers itself records no best checkpoint under save_strategy='best'")
    settings = settings | BEST | {"load_best_model_at_end": load, "save_strategy": save_strategy, "save_steps": 1}
    more = {"objective": "grpo", "eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:2]})}
    made = trainer(
        ProcessGRPOTrainer, tmp_path, more=more, max_steps=7, eval_strategy="steps", eval_steps=1, **settings
    )
    made.evaluate = values = Values(made)
    made.train()
    assert (values.updates, checkpoints(tmp_path)) == ([2, 4, 6, 7], saved)
    assert Path(made.state.best_model_checkpoint).name == "checkpoint-4"
    assert (values.weights[7] - values.weights[4]).abs().max() > 1e-5
    assert_close(vector(made), values.weights[4 if load else 7])


def test_evaluations_stay_where_no_best_is_looked_for(tmp_path):
    more = {"objective": "grpo", "eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:2]})}
    made = trainer(
        ProcessGRPOTrainer, tmp_path, more=more, max_steps=3, eval_strategy="steps", eval_steps=1, num_iterations=2
    )
    made.evaluate = values = Values(made)
    made.train()
    assert values.updates == [1, 2, 3]


# What TRL must have


ATTRIBUTES = ["_metrics", "num_generations", "num_generations_eval", "accelerator", "processing_class"]
KEYS = ["completion_ids", "completion_mask", "advantages"]


def test_trl_still_has_what_we_lean_on(tmp_path):
    assert contract.missing_names(GRPOTrainer, GRPOConfig) == []
    made = trainer(GRPOTrainer, tmp_path)
    for name in ATTRIBUTES:
        assert name in vars(made), f"GRPOTrainer has no {name} any more: minigrpo/integrations/trl.py reads it"
    assert {"train", "eval"} <= set(made._metrics), "GRPOTrainer._metrics has other modes than train and eval"
    batch = made._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(4)])
    for name in KEYS:
        assert name in batch, f"TRL's scored batch has no {name!r} any more: minigrpo/integrations/trl.py reads it"
    assert contract.WEIGHTS not in batch, f"TRL's scored batch has {contract.WEIGHTS!r} without tools"


def test_what_is_gone_from_trl_is_named():
    class Trainer(GRPOTrainer):
        """One method is gone, one has lost a parameter, and one keeps its micro-batches elsewhere."""

    found = {name: vars(GRPOTrainer)[name] for name in contract.METHODS if name != "_calculate_rewards"}
    found["_compute_loss"] = lambda self, model: None
    for name, method in found.items():
        setattr(Trainer, name, method)

    def config(**settings):
        """A configuration that knows no setting by name."""

    gone = contract.missing_names(Trainer, GRPOConfig)
    assert gone[:2] == ["GRPOTrainer._calculate_rewards", "inputs of GRPOTrainer._compute_loss"]
    assert gone[2].endswith("in GRPOTrainer._compute_loss")
    assert len(gone) == 3
    assert set(contract.missing_names(GRPOTrainer, config)) == {f"GRPOConfig.{name}" for name in contract.SETTINGS}
    with pytest.raises(ImportError, match="has no GRPOTrainer._calculate_rewards, inputs of .* which"):
        contract.check_names(Trainer, GRPOConfig)


# Refusals: one sentence, before a model is loaded


def refusal(tmp_path, objective="lambda_grpo", columns=("prompt",), more=None, **settings):
    """The error of a trainer whose model does not exist, so that loading it would be another error."""
    args = GRPOConfig(str(tmp_path), **OFF, use_cpu=True, bf16=False, report_to="none", **settings)
    dataset = Dataset.from_dict(dict.fromkeys(columns, PROMPTS))
    with pytest.raises(ValueError) as caught:
        ProcessGRPOTrainer("no/model", reward, args, dataset, objective=objective, **(more or {}))
    return str(caught.value)


OPTIONS = set(inspect.signature(GRPOConfig).parameters)
REFUSED = [
    (
        {"objective": "grpo2"},
        "objective must be one of dr_grpo, grpo, lambda_grpo, maxrl, prm, rloo, tempo, got 'grpo2'",
    ),
    ({"loss_type": "grpo"}, "loss_type must be 'dapo' for the process objectives, got 'grpo'"),
    ({"loss_type": "bnpo"}, "loss_type must be 'dapo' for the process objectives, got 'bnpo'"),
    (
        {"importance_sampling_level": "sequence"},
        "importance_sampling_level must be 'token' for the process objectives, got 'sequence'",
    ),
    ({"top_entropy_quantile": 0.2}, "top_entropy_quantile must be 1.0 for the process objectives, got 0.2"),
    ({"use_liger_kernel": True}, "use_liger_kernel must be False for the process objectives, got True"),
    ({"entropy_coef": 0.01}, "entropy_coef must be 0.0 for the process objectives, got 0.01"),
    ({"use_adaptive_entropy": True}, "use_adaptive_entropy must be False for the process objectives, got True"),
    ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold must be None for the process objectives, got 0.5"),
    (
        {"use_vllm": True, "vllm_importance_sampling_mode": "sequence_mask"},
        "vllm_importance_sampling_mode must be one of token_mask, token_truncate, got 'sequence_mask'",
    ),
    (
        {"columns": ("question", "answer")},
        "train_dataset must have a column 'prompt', got question, answer: rename one",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refusals(tmp_path, options, sentence):
    if missing := set(options) - OPTIONS - {"objective", "columns"}:
        pytest.skip(f"this TRL has no {missing}")
    assert refusal(tmp_path, **options) == sentence


def test_a_data_set_too_small_for_one_generation_is_refused(tmp_path):
    sentence = refusal(tmp_path, per_device_train_batch_size=64, num_generations=4)
    assert sentence == "train_dataset must hold the 16 prompts of a generation at least, got 8"


def test_data_sets_of_another_kind_are_refused(tmp_path):
    rows, other = Dataset.from_dict({"prompt": PROMPTS}), Dataset.from_dict({"text": PROMPTS})
    sentence = "train_dataset must be a datasets.Dataset or IterableDataset, got "
    for wrong, name in ((DatasetDict(train=rows), "DatasetDict"), ([{"prompt": "1+1="}], "list")):
        with pytest.raises(ValueError, match=f"^{sentence}{name}$"):
            ProcessGRPOTrainer("no/model", reward, None, wrong)
    for evaluated in (other, {"sums": rows, "texts": other}):
        with pytest.raises(ValueError, match="^eval_dataset must have a column 'prompt', got text: rename one$"):
            ProcessGRPOTrainer("no/model", reward, None, rows, evaluated)


def test_tools_are_refused(tmp_path):
    sentence = refusal(tmp_path, more={"tools": [len]})
    assert sentence.startswith("tools must be left out: a tool's tokens are no process steps, got [")


def test_token_level_corrections_pass():
    args = GRPOConfig(
        "out", **OFF, use_cpu=True, bf16=False, use_vllm=True, vllm_importance_sampling_mode="token_truncate"
    )
    adapter.check_arguments("lambda_grpo", {"args": args})
    args = GRPOConfig("out", **OFF, use_cpu=True, bf16=False, use_vllm=True, vllm_importance_sampling_correction=False)
    adapter.check_arguments("lambda_grpo", {"args": args})


def test_masks_of_rollout_functions_are_refused(tmp_path):
    made = trainer(ProcessGRPOTrainer, tmp_path)
    rows = [{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(4)]
    whole = GRPOTrainer._generate_and_score_completions
    try:
        GRPOTrainer._generate_and_score_completions = lambda self, inputs: {"tool_mask": torch.ones(8, 1)}
        with pytest.raises(ValueError, match="rollout_func must return no env_mask"):
            made._generate_and_score_completions(rows)
    finally:
        GRPOTrainer._generate_and_score_completions = whole


def test_another_kl_is_pointed_out():
    args = GRPOConfig("out", **OFF, use_cpu=True, bf16=False, beta=0.04, use_bias_correction_kl=True)
    with pytest.warns(UserWarning, match="use_bias_correction_kl is on"):
        adapter.check_arguments("lambda_grpo", {"args": args})
    args = GRPOConfig("out", **OFF, use_cpu=True, bf16=False, beta=0.0, use_bias_correction_kl=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.check_arguments("lambda_grpo", {"args": args})


def test_a_group_that_the_batch_cannot_hold_is_refused_by_trl():
    with pytest.raises(ValueError, match=r"generation_batch_size \(8\) must be divisible by num_generations \(3\)"):
        GRPOConfig("out", **OFF, use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=3)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "trl is not installed"),
        ("0.28.0", "trl 0.28.0 is not supported"),
        (f"{contract.BEYOND}.0.dev0", None),
        ("99.0", None),
    ],
)
def test_missing_and_older_versions_are_refused_and_newer_ones_pointed_out(monkeypatch, version, sentence):
    """Running the adapter where metadata gives another version, or none."""
    found = metadata.version

    def version_of(name):
        if name == "trl" and version is None:
            raise metadata.PackageNotFoundError(name)
        return version if name == "trl" else found(name)

    monkeypatch.setattr(metadata, "version", version_of)
    if sentence is None:
        with pytest.warns(
            UserWarning, match=f"^trl {version} is newer than what was tested, below {contract.BEYOND}: "
        ):
            assert "ProcessGRPOTrainer" in runpy.run_path(adapter.__file__)
    else:
        with pytest.raises(ImportError) as caught:
            runpy.run_path(adapter.__file__)
        assert str(caught.value) == f'{sentence}: pip install "trl>={contract.OLDEST},<{contract.BEYOND}"'


def test_one_range_of_versions():
    """The adapter's, the extra's lower bound in pyproject.toml, and both ends in the Makefile and on the page."""
    extra = re.search(r'^trl = \["trl>=(.*)"\]', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert extra[1] == contract.OLDEST
    newest = f"{contract.BEYOND.split('.')[0]}.{int(contract.BEYOND.split('.')[1]) - 1}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'oldest) trl="trl=={contract.OLDEST}";; newest) trl="trl=={newest}.*"' in makefile
    assert f"tested: TRL {contract.OLDEST} to {newest}" in (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")


def test_the_adapter_is_short():
    """At most 120 statements, docstrings left out, however they are broken into lines."""
    text = (ROOT / "minigrpo" / "integrations" / "trl.py").read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    docstrings = [n for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    assert len(nodes) - len(docstrings) <= 120
