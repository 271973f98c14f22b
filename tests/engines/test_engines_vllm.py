"""A colocated vLLM on a CPU: what TRL computes of its samples is the objective, and the recipes run with it.

`make test-engines` makes the environment and runs this. By hand means: rewards, advantages and weights of
`minigrpo.OBJECTIVES`, log-probs of a plain pass in float64, `minigrpo.policy_loss`. Taken from the run are the sampled
ids and vLLM's own log-probs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("vllm", reason="make test-engines runs this in an environment with vLLM's CPU build")

from peft import LoraConfig, get_peft_model
from train_vllm import LORA
from trl_runs import tiny

from minigrpo import OBJECTIVES, policy_loss

pytestmark = pytest.mark.engines

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GPU = ROOT / "labs" / "gpu"
G, TAU, BETA, RATE = 8, 0.9, 0.04, 0.05


def run(command, *, dtype="float32", timeout=600):
    """A program under what a CPU needs."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        "MINIGRPO_VLLM": dtype,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return done


def trained(out, **options):
    out.mkdir(exist_ok=True)
    run([sys.executable, str(HERE / "cpu.py"), str(HERE / "train_vllm.py"), str(out), json.dumps(options)])
    return torch.load(out / "end.pt")


def logps_of(weights, batch, model=None):
    """The model with some weights, and ln π of the completions by a plain pass in float64."""
    model = model or tiny()
    missing = model.load_state_dict({name: value.double() for name, value in weights.items()}, strict=False)
    assert not missing.unexpected_keys
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    T = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -T - 1 : -1] / TAU
    return model, logits.log_softmax(-1).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)


@pytest.fixture(scope="module")
def three_updates(tmp_path_factory):
    """At a rate at which the weights move far."""
    return trained(
        tmp_path_factory.mktemp("three") / "run",
        objective="lambda_grpo",
        beta=BETA,
        temperature=TAU,
        learning_rate=RATE,
        max_steps=3,
        num_generations=G,
        per_device_train_batch_size=32,
        max_completion_length=12,
        save_strategy="no",
    )


def by_hand(objective, batch, first):
    """Loss and gradient of one update; TRL multiplies the surrogate by the ratio to vLLM's policy, and not the KL."""
    model, logps = logps_of(batch["weights"], batch)
    with torch.no_grad():
        _, ref = logps_of(first, batch)
    mask = batch["completion_mask"].bool()
    theirs = batch["sampling_per_token_logps"].double()
    ratio = ((logps.detach() - theirs) * mask).exp().clamp(max=3.0)
    shape = (-1, G, mask.shape[1])
    ids, grouped = batch["completion_ids"].view(shape), mask.view(shape)
    advantages, step_weights = OBJECTIVES[objective](batch["rewards"].double().view(-1, G), ids, grouped)
    rows = [x.view(shape) for x in (logps, logps.detach(), ratio, ref)]
    logps, old, ratio, ref = rows
    loss = policy_loss(logps, old, advantages * ratio, step_weights, grouped, epsilon=0.2)
    nothing = torch.zeros_like(advantages)
    loss = loss + policy_loss(logps, old, nothing, step_weights, grouped, beta=BETA, ref_logps=ref)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([part.flatten() for part in gradient])


def flat(weights):
    return torch.cat([weights[name].double().flatten() for name, _ in tiny().named_parameters()])


def test_an_update_is_policy_loss_of_vllms_samples(three_updates):
    batches, ends = three_updates["batches"], three_updates["batches"][1:] + [three_updates]
    assert three_updates["engine"].startswith("vllm")
    assert len(batches) == 3
    for batch, end, loss in zip(batches, ends, three_updates["losses"], strict=True):
        expected, gradient = by_hand("lambda_grpo", batch, batches[0]["weights"])
        other, other_gradient = by_hand("grpo", batch, batches[0]["weights"])
        assert loss == pytest.approx(expected, rel=1e-4)
        assert abs(loss - other) > 0.01
        moved = (flat(batch["weights"]) - flat(end["weights"])) / RATE
        assert (moved - gradient).norm() < 1e-3 * gradient.norm() < 0.01 * (other_gradient - gradient).norm()


def test_vllm_has_the_weights_of_each_update(three_updates):
    """Its log-probs are those of the weights that are trained, and far from those of the first."""
    batches = three_updates["batches"]
    for number, batch in enumerate(batches):
        mask = batch["completion_mask"].bool()
        with torch.no_grad():
            gaps = [
                (logps_of(weights, batch)[1] - batch["sampling_per_token_logps"])[mask].abs().max()
                for weights in (batch["weights"], batches[0]["weights"])
            ]
        assert gaps[0] < 1e-4
        assert number == 0 or gaps[1] > 1


def test_members_of_a_step_have_one_log_prob(three_updates):
    """As the theorem needs of the ratio."""
    for batch in three_updates["batches"]:
        seen = {}
        for n, (ids, mask) in enumerate(zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)):
            for t in range(int(mask.sum())):
                found = float(batch["sampling_per_token_logps"][n, t])
                seen.setdefault((n // G, *ids[: t + 1].tolist()), []).append(found)
        shared = [values for values in seen.values() if len(values) > 1]
        assert len(shared) > 10
        assert max(max(values) - min(values) for values in shared) < 1e-6


def test_seeds_sample_differently(tmp_path):
    """One prompt alone, so that the order of the data plays no part; vLLM seeds the process with 0 as it starts."""
    options = {"objective": "grpo", "learning_rate": 0.0, "temperature": 1.5, "max_steps": 1, "save_strategy": "no"}
    options |= {"prompts": ["9+9-8="] * 8, "num_generations": G, "per_device_train_batch_size": 16}
    first, again, second = (
        trained(tmp_path / name, seed=seed, **options)["batches"][0]["completion_ids"].tolist()
        for name, seed in (("first", 1), ("again", 1), ("second", 2))
    )
    assert first == again
    assert first != second


def test_vllm_samples_by_the_adapters(tmp_path):
    """Its log-probs are those of the model with its adapters as trained, and far from those of the model alone."""
    options = {"objective": "lambda_grpo", "temperature": TAU, "learning_rate": 0.5, "max_steps": 3}
    options |= {"num_generations": G, "per_device_train_batch_size": 32, "max_completion_length": 12}
    batches = trained(tmp_path / "run", lora=True, **options)["batches"]
    adapted = get_peft_model(tiny(), LoraConfig(**LORA)).double()
    for number, batch in enumerate(batches):
        mask = batch["completion_mask"].bool()
        with torch.no_grad():
            gap, other = (
                (logps_of(weights, batch, model)[1] - batch["sampling_per_token_logps"])[mask].abs().max()
                for weights, model in ((batch["weights"], adapted), ({}, None))
            )
        assert gap < 1e-4
        assert number == 0 or other > 0.1


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    """Two updates, and four more from the checkpoint: vLLM's own randomness goes on too."""
    options = {"objective": "lambda_grpo", "temperature": 1.2, "learning_rate": 0.01, "max_steps": 6}
    options |= {"save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "whole", **options)
    resumed = trained(tmp_path / "whole", **options, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert len(whole["batches"]) == 6
    assert len(resumed["batches"]) == 4
    assert resumed["losses"] == pytest.approx(whole["losses"][2:], rel=1e-6)
    assert (flat(whole["weights"]) - flat(resumed["weights"])).abs().max() < 1e-7
    assert (flat(whole["weights"]) - flat(whole["batches"][2]["weights"])).abs().max() > 1e-3


CHANGES = [
    "task=arithmetic", f"model={ROOT / 'minigrpo' / 'llm' / 'tiny'}", "vllm_max_model_length=128", "prompts=4",
    "max_completion_length=24", "save_steps=2", "logging_steps=1", "report_to=none",
]  # fmt: skip
RECIPES = {
    "one_gpu_lora": ("one_gpu", ["use_cpu=true"]),
    "one_node": ("fsdp", ["use_cpu=true", "system_prompt=null"]),
    "several_nodes": ("zero3", ["bf16=false", "system_prompt=null"]),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_and_goes_on(tmp_path, recipe):
    """Its own settings but for model, task and lengths, sampled by vLLM; the sharded ones on two processes."""
    name, more = RECIPES[recipe]
    document = yaml.safe_load((GPU / "accelerate" / f"{name}.yaml").read_text(encoding="utf-8"))
    if name != "one_gpu":
        document |= {"num_machines": 1, "num_processes": 2}
    if name == "zero3":
        document["mixed_precision"] = "no"
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(document | {"main_process_port": 0}), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), str(HERE / "cpu.py")]
    command += [str(GPU / "train.py"), str(GPU / "recipes" / f"{recipe}.yaml"), "--out", str(tmp_path / "out")]
    updates = [2, 3] if name == "one_gpu" else [2]
    for number, last in enumerate(updates):
        again = ["--resume"] if number else []
        run([*command, *CHANGES, *more, f"max_steps={last}", *again], dtype="auto")
    state = json.loads((tmp_path / "out" / f"checkpoint-{updates[-1]}" / "trainer_state.json").read_text())
    rows = [row for row in state["log_history"] if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, updates[-1] + 1))
    gaps = [row["sampling/sampling_logp_difference/max"] for row in rows]
    assert max(gaps) < 0.5  # of bfloat16
    assert min(row["reward"] for row in rows) >= 0
