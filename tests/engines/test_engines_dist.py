"""FSDP2 and DeepSpeed on two CPU processes: the same training as in one process, and really by that engine.

`make test-engines` makes the environment and runs this. accelerate's configurations are those of labs/gpu but for the
number of processes and machines and for bfloat16.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("deepspeed", reason="make test-engines runs this in an environment with DeepSpeed")

from trl_runs import tiny

pytestmark = pytest.mark.engines

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CPU = {"num_machines": 1, "num_processes": 2, "mixed_precision": "no", "main_process_port": 0}
# groups of four, eight rows a process; several updates of one generation, a KL term and clipping
TRAINING = {"beta": 0.04, "num_iterations": 2, "epsilon": 0.02, "max_steps": 4, "learning_rate": 0.01}


def configuration(name, out, **changes):
    """One of labs/gpu/accelerate, for two CPU processes, written to a file."""
    found = yaml.safe_load((ROOT / "labs" / "gpu" / "accelerate" / f"{name}.yaml").read_text(encoding="utf-8"))
    file = out / f"{name}.yaml"
    file.write_text(yaml.safe_dump(found | CPU | changes), encoding="utf-8")
    return file, found


def trained(out, config=None, **options):
    """Weights, logs and facts of a run, under `accelerate launch` or in one process alone."""
    out.mkdir()
    options = TRAINING | options | ({"use_cpu": False} if config else {})  # accelerate has no DeepSpeed with it
    script = [str(HERE / "train_tiny.py"), str(out), json.dumps(options)]
    command = [sys.executable, *script]
    if config:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += [str(HERE / "cpu.py"), *script]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    extensions = {"TORCH_EXTENSIONS_DIR": str(out / "extensions"), "ACCELERATE_USE_CPU": "false"}
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | (extensions if config else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out / "end.pt")


def vector(weights):
    return torch.cat([weights[name].double().flatten() for name, _ in tiny().named_parameters()])


def moved(end):
    return vector(end["weights"]) - vector(dict(tiny().named_parameters())).detach()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training in one process, unpacked; and with another objective."""
    out = tmp_path_factory.mktemp("alone")
    options = {"gradient_accumulation_steps": 2, "pack": False}
    return {name: trained(out / name, objective=name, **options) for name in ("lambda_grpo", "grpo")}


def agree(end, alone, limit):
    """The movement of all weights, relative; another objective's differs by far more."""
    theirs = moved(alone["lambda_grpo"])
    gap = (moved(end) - theirs).norm() / theirs.norm()
    other = (moved(alone["grpo"]) - theirs).norm() / theirs.norm()
    assert gap < limit < other / 100
    losses = [[row["loss"] for row in log if "loss" in row] for log in (end["log"], alone["lambda_grpo"]["log"])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("pack", [False, True])
def test_fsdp(tmp_path, alone, pack):
    file, recipe = configuration("fsdp", tmp_path)
    assert recipe["fsdp_config"]["fsdp_version"] == 2
    end = trained(tmp_path / "run", file, objective="lambda_grpo", pack=pack)
    facts = end["facts"]
    assert (facts["engine"], facts["processes"], facts["kind"]) == ("FSDP", 2, "DTensor")
    assert facts["here"][0] == -(-facts["whole"][0] // 2)
    assert facts["packed"] == pack
    agree(end, alone, 1e-5)


@pytest.mark.parametrize(("stage", "pack"), [(2, False), (3, True)])
def test_deepspeed(tmp_path, alone, stage, pack):
    """DeepSpeed takes no float64."""
    file, recipe = configuration("zero3", tmp_path)
    assert recipe["deepspeed_config"]["zero_stage"] == 3
    three = stage == 3
    settings = {"zero_stage": stage, "zero3_init_flag": three, "zero3_save_16bit_model": three}
    settings = recipe["deepspeed_config"] | settings
    file, _ = configuration("zero3", tmp_path, deepspeed_config=settings)
    end = trained(tmp_path / "run", file, objective="lambda_grpo", pack=pack, float32=True)
    facts = end["facts"]
    assert (facts["engine"], facts["processes"], facts["zero_stage"]) == ("DEEPSPEED", 2, stage)
    assert facts["packed"] == pack
    agree(end, alone, 1e-4)


def test_zero3_with_every_weight_partitioned(tmp_path, alone):
    """By default weights as small as these stay whole."""
    auto = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto")
    stage = {"stage": 3, "stage3_param_persistence_threshold": 0}
    own = tmp_path / "zero3.json"
    own.write_text(json.dumps(auto | {"zero_optimization": stage, "zero_allow_untested_optimizer": True}))
    settings = {"deepspeed_config_file": str(own), "zero3_init_flag": True}
    file, _ = configuration("zero3", tmp_path, deepspeed_config=settings)
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    del document["mixed_precision"]  # DeepSpeed's file has it
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    end = trained(tmp_path / "run", file, objective="lambda_grpo", pack=True, float32=True)
    facts = end["facts"]
    assert (facts["engine"], facts["zero_stage"]) == ("DEEPSPEED", 3)
    assert facts["here"] == (0,)
    assert facts["whole"] == tuple(max((w for w in tiny().parameters()), key=torch.numel).shape)
    agree(end, alone, 1e-4)
