"""Which versions of TRL the adapter takes, and what it leans on in TRL, by name.

A version that is newer than the tested ones is no reason to stop; a name that is gone is one.
"""

from __future__ import annotations

import inspect
import warnings
from importlib import metadata

from packaging.version import Version

OLDEST, BEYOND = "0.29.0", "1.17"  # of TRL: from the first; tested below the second
WEIGHTS = "tool_mask"  # the key of TRL's batch under which the weights travel
# methods of GRPOTrainer that the adapter overrides or calls, with the parameters that it gives or reads
METHODS = {
    "__init__": {"model", "args", "train_dataset"},
    "_prepare_inputs": {"generation_batch"},
    "_generate_and_score_completions": {"inputs"},
    "_calculate_rewards": set(),
    "_compute_loss": {"model", "inputs"},
    "_get_per_token_logps_and_entropies": {
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
    },
    "_get_train_sampler": {"dataset"},
}
# what stands in the source of a method: where the weights come in, and where micro-batches are kept
PASSAGES = {
    "_compute_loss": f'completion_mask * inputs["{WEIGHTS}"]',
    "_prepare_inputs": "self._buffered_inputs[self._step % self.args.steps_per_generation]",
}
SETTINGS = {
    "beta",
    "enable_jit_checkpoint",
    "gradient_accumulation_steps",
    "loss_type",
    "metric_for_best_model",
    "num_generations",
    "num_iterations",
    "per_device_train_batch_size",
    "steps_per_generation",
    "use_bias_correction_kl",
    "use_vllm",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "vllm_mode",
    "vllm_tensor_parallel_size",
}


def check_version() -> None:
    """Refuse a TRL that is missing or too old; say once of one that was not tested.

    Raises: ModuleNotFoundError or ImportError, which say what to install.
    """
    advice = f'pip install "trl>={OLDEST},<{BEYOND}"'
    try:
        found = Version(metadata.version("trl"))
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(f"trl is not installed: {advice}", name="trl") from error
    if found < Version(OLDEST):
        raise ImportError(f"trl {found} is not supported: {advice}")
    if found.release >= Version(BEYOND).release:
        warnings.warn(
            f"trl {found} is newer than what was tested, below {BEYOND}: what the adapter leans on is there by name; "
            "tests/test_trl.py shows whether it does the same",
            stacklevel=3,
        )


def check_names(trainer: type, config: type) -> None:
    """Require of TRL what the adapter leans on. Raises: ImportError that names what is gone.

    Args:
        trainer: its GRPOTrainer.
        config: its GRPOConfig.
    """
    if gone := missing_names(trainer, config):
        raise ImportError(
            f"trl {metadata.version('trl')} has no {', '.join(gone)}, which the adapter leans on: "
            f'pip install "trl>={OLDEST},<{BEYOND}"'
        )


def missing_names(trainer: type, config: type) -> list[str]:
    """What of METHODS, PASSAGES and SETTINGS is not there.

    Args:
        trainer: TRL's GRPOTrainer.
        config: its GRPOConfig.
    """
    gone = [f"GRPOTrainer.{name}" for name in METHODS if name not in vars(trainer)]
    for name in sorted(METHODS.keys() & vars(trainer).keys()):
        found = inspect.signature(vars(trainer)[name]).parameters
        gone += [
            f"{found_not} of GRPOTrainer.{name}"
            for found_not in sorted(METHODS[name] - found.keys())
        ]
    for name in sorted(PASSAGES.keys() & vars(trainer).keys()):
        if PASSAGES[name] not in inspect.getsource(vars(trainer)[name]):
            gone.append(f"{PASSAGES[name]!r} in GRPOTrainer.{name}")
    known = inspect.signature(config).parameters
    return gone + [f"GRPOConfig.{name}" for name in sorted(SETTINGS - known.keys())]
