"""The settings of a language-model run, and presets for the machines that people have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minigrpo.checks import AGGREGATIONS, check_loss_options
from minigrpo.objectives import OBJECTIVES, SCALES
from minigrpo.settings import check_choices, check_kinds, setting

DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("default", "sdpa", "eager", "flex_attention")
FORWARDS = ("auto", "padded", "shared", "packed")  # auto, and the keys of forward.FORWARDS


@dataclass(frozen=True)
class Settings:
    """One run; saved with it as manifest.json."""

    model: str = setting("tiny", "tiny, smollm2-135m, a Hub id or a local folder")
    task: str = setting("arithmetic", "a name of the tasks, or a .jsonl file")
    objective: str = setting("grpo", "what gives advantages and step weights", choices=OBJECTIVES)
    updates: int = setting(100, "each samples anew")
    prompts: int = setting(8, "P, prompts an update")
    group_size: int = setting(8, "G, completions of a prompt")
    max_new_tokens: int = setting(24, "T at most")
    temperature: float = setting(1.0, "of the policy, in sampling and in the loss")
    top_p: float = setting(1.0, "of sampling")
    learning_rate: float = setting(1e-4, "AdamW's, constant")
    max_grad_norm: float = setting(1.0, "longer gradients are scaled down to it")
    iterations: int = setting(1, "μ, optimiser steps on one sampled batch")
    epsilon: float | None = setting(None, "clip range of the ratio; None: no clip")
    beta: float = setting(0.0, "weight of the KL term towards the initial model")
    scale: str = setting("std", "what divides the advantages", choices=SCALES)
    aggregation: str = setting("token-mean", "the loss's denominator", choices=AGGREGATIONS)
    lora_rank: int = setting(
        0, "r of the LoRA adapters on all linear layers; 0 trains the full weights"
    )
    lora_alpha: int = setting(32, "adapters are scaled by alpha/r")
    lora_dropout: float = setting(0.0, "on the adapters' input, in training")
    micro_batch: int = setting(64, "completions in one forward and backward pass")
    forward: str = setting(
        "auto", "how shared tokens are computed; auto: the cheapest way", choices=FORWARDS
    )
    attention: str = setting(
        "default", "of the model; flex_attention needs CUDA", choices=ATTENTIONS
    )
    gradient_checkpointing: bool = setting(False, "less memory, more time")
    dtype: str = setting(
        "float32", "of the training passes; the weights stay float32", choices=DTYPES
    )
    device: str = setting("cpu", "cpu, cuda, cuda:1, …")
    train_size: int = setting(2000, "training problems, taken in turn in a shuffled order")
    eval_size: int = setting(200, "held-out problems")
    eval_every: int = setting(
        20, "updates between evaluations; update 0 and the last are always evaluated"
    )
    save_every: int = setting(20, "updates between checkpoints")
    seed: int = setting(0, "of the order of the problems, the samples and the adapters")

    def __post_init__(self) -> None:
        """Refuse settings of another kind or out of range with a ValueError that names the field."""
        check_kinds(self)
        check_choices(self)
        if self.attention == "flex_attention" and not self.device.startswith("cuda"):
            raise ValueError(
                f"attention flex_attention needs a CUDA device, got device {self.device!r}"
            )
        least = dict.fromkeys(
            ("updates", "prompts", "max_new_tokens", "iterations", "micro_batch"), 1
        )
        least |= {
            "group_size": 2,
            "train_size": 1,
            "eval_size": 1,
            "eval_every": 1,
            "save_every": 1,
        }
        least |= {"lora_rank": 0, "lora_alpha": 1, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        check_loss_options(self.epsilon, self.beta, self.aggregation, None, has_reference=True)


@dataclass(frozen=True)
class Preset:
    """Settings for a machine, with what they need."""

    settings: Settings
    needs: str  # memory and time


PRESETS = {
    "cpu": Preset(Settings(), "any laptop: 1 GB of memory, about a minute on two cores"),
    "laptop": Preset(
        Settings(
            model="smollm2-135m",
            task="sums",
            updates=8,
            prompts=4,
            group_size=8,
            max_new_tokens=12,
            temperature=0.7,  # more samples are right, and more of their tokens shared, than at 1
            learning_rate=2e-5,
            micro_batch=32,
            eval_size=60,
            eval_every=6,
            save_every=8,
        ),
        "a laptop: 4 GB of memory, a minute on two cores once the model is cached",
    ),
    # No GPU was at hand: what the following need is computed by minigrpo/llm/gpu.py and was not measured.
    "gpu16": Preset(
        Settings(
            model="smollm2-135m",
            task="sums-steps",
            updates=200,
            prompts=8,
            group_size=16,
            max_new_tokens=64,
            learning_rate=1e-5,
            micro_batch=16,
            device="cuda",
        ),
        "a 16 GB card: SmolLM2-135M at class size; 11 GB of memory, 43 minutes on a T4 (computed, not measured)",
    ),
    # A classroom's: its two objectives are compared over the seeds of all students (labs/gpu/class).
    "class": Preset(
        Settings(
            model="smollm2-135m",
            task="sums-steps",
            updates=300,
            prompts=16,
            group_size=16,
            max_new_tokens=96,
            learning_rate=1e-5,
            micro_batch=16,
            dtype="bfloat16",
            device="cuda",
            eval_every=100,
            save_every=25,
        ),
        "a 24 GB card: SmolLM2-135M for a class; 12 GB of memory, 20 minutes on an A10 (computed, not measured)",
    ),
    "gpu80": Preset(
        Settings(
            model="HuggingFaceTB/SmolLM2-1.7B-Instruct",
            task="gsm8k",
            updates=200,
            prompts=16,
            group_size=8,
            max_new_tokens=320,
            learning_rate=1e-6,
            micro_batch=16,
            gradient_checkpointing=True,
            dtype="bfloat16",
            device="cuda",
            train_size=7000,
        ),
        "an 80 GB card: SmolLM2-1.7B, every weight; 55 GB of memory, 63 minutes on an A100 (computed, not measured)",
    ),
    "gpu80-paper": Preset(
        # Of the paper, in part second-hand (labs/gpu/README.md), but for its dropout, under which equal prefixes have
        # unequal probabilities; and the last model is kept, not the best.
        Settings(
            model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            task="open-rs",
            updates=1000,
            prompts=4,
            group_size=6,
            max_new_tokens=4096,
            temperature=0.75,
            learning_rate=1e-6,
            epsilon=0.2,
            beta=0.04,
            lora_rank=64,
            lora_alpha=128,
            micro_batch=1,
            gradient_checkpointing=True,
            dtype="bfloat16",
            device="cuda",
            train_size=5000,
            eval_size=125,
            eval_every=25,
        ),
        "the paper's model and settings: 26 GB of memory, 1913 minutes on an A100 (computed, not measured)",
    ),
    "gpu80-7b": Preset(
        Settings(
            model="Qwen/Qwen2.5-7B-Instruct",
            task="gsm8k",
            updates=100,
            prompts=8,
            group_size=8,
            max_new_tokens=320,
            learning_rate=1e-5,
            lora_rank=32,
            lora_alpha=64,
            micro_batch=8,
            gradient_checkpointing=True,
            dtype="bfloat16",
            device="cuda",
            train_size=7000,
        ),
        "Qwen2.5-7B, adapters: 46 GB of memory, 48 minutes on an A100 (computed, not measured)",
    ),
}
