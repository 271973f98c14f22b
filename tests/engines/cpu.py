"""What accelerate, DeepSpeed and vLLM need to run on a CPU: `accelerate launch … cpu.py SCRIPT ARGUMENTS…`.

They take a CPU for a machine without an engine. accelerate would train with DDP and say nothing; DeepSpeed would
compile a kernel for minutes; vLLM would repack weights into a form in which TRL can't renew them. Each patch is of a
private name, so versions are pinned in the Makefile, and the tests ask whether the engine was the one that was meant.
"""

import os
import runpy
import sys
from pathlib import Path

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
os.environ["DS_ACCELERATOR"] = "cpu"

import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType

DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def take_gloo(state, cpu=False, sagemaker_dp=False, backend=None):
    """accelerate's choice of a backend: gloo, and then the branch in which it looks for FSDP and DeepSpeed."""
    if "LOCAL_RANK" not in os.environ:
        return None, DistributedType.NO
    if not DEEPSPEED and not dist.is_initialized():
        dist.init_process_group("gloo")
    return "gloo", DistributedType.MULTI_GPU


def patch_accelerate():
    """FSDP and DeepSpeed on a CPU."""
    PartialState._prepare_backend = take_gloo
    if DEEPSPEED:
        import deepspeed.comm.torch

        deepspeed.comm.torch.build_shm_op = lambda: None  # gloo alone; the kernel takes two minutes to compile


def patch_vllm():
    """Weights that stay where TRL renews them, no compilation, and no sleep mode, which a CPU lacks."""
    import vllm._custom_ops as ops
    from trl.generation import vllm_generation
    from vllm.model_executor.layers import utils

    ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *shape: False
    engine = vllm_generation.LLM

    def start(**settings):
        settings.pop("enable_sleep_mode", None)
        return engine(**settings, enforce_eager=True, dtype=os.environ.get("MINIGRPO_VLLM", "auto"))

    vllm_generation.LLM = start


if __name__ == "__main__":
    patch_accelerate()
    if "MINIGRPO_VLLM" in os.environ:  # a dtype of vLLM
        patch_vllm()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
