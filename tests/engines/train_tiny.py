"""Train `tiny` as tests/trl_runs.py does, on whatever engine: `… train_tiny.py OUT JSON` saves weights, logs and facts.

Facts are what shows that the engine was the one that was meant: its name, and how a parameter lies in a process.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from trl_runs import tiny, trainer

from minigrpo.integrations.trl import ProcessGRPOTrainer


def facts_of(made):
    """The engine's name, and of the largest parameter its kind, its whole shape, and the shape that lies here."""
    largest = max(made.model_wrapped.parameters(), key=lambda weight: getattr(weight, "ds_numel", weight.numel()))
    local = largest.to_local() if isinstance(largest, DTensor) else largest
    return {
        "engine": made.accelerator.distributed_type.value,
        "processes": made.accelerator.num_processes,
        "kind": type(largest).__name__,
        "whole": tuple(getattr(largest, "ds_shape", largest.shape)),
        "here": tuple(local.shape),
        "zero_stage": made.accelerator.state.deepspeed_plugin.zero_stage if made.is_deepspeed_enabled else None,
        "packed": made._packing.unfit == "",
    }


def whole(made):
    """Every parameter as one tensor, gathered by all processes."""
    found = {}
    for name, weight in made.accelerator.unwrap_model(made.model).named_parameters():
        gathered = nullcontext()
        if made.is_deepspeed_enabled:
            import deepspeed

            gathered = deepspeed.zero.GatheredParameters([weight])
        with gathered:
            value = weight.full_tensor() if isinstance(weight, DTensor) else weight
            found[name] = value.detach().clone()
    return found


if __name__ == "__main__":
    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    more = {name: options.pop(name) for name in ("objective", "pack") if name in options}
    if options.pop("float32", False):
        options["model"] = tiny().float()
    made = trainer(ProcessGRPOTrainer, out, deterministic=True, more=more, **options)
    made.train()
    end = {"weights": whole(made), "log": made.state.log_history, "facts": facts_of(made)}
    if made.accelerator.is_main_process:
        torch.save(end, out / "end.pt")
