"""What a run on a GPU needs, computed from the model's shape: nothing here was measured.

The one calculator, for both ways to train. `memory` and `minutes` are of `llm train`, which keeps float32 weights and
samples with them; `recipe_memory`, `recipe_seconds` and `validation_seconds` are of the recipes in labs/gpu, which
train with TRL in bfloat16 and sample with vLLM. Good for choosing a card and a micro-batch. What is assumed stands in
constants, on the cautious side where there is a choice; time can be off by a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigrpo.llm.settings import Settings

# tokens with chat template and system prompt; problems of GSM8K and open-rs are mostly shorter
PROMPT = 200
UTILISATION = 0.3  # of a card's peak in the training passes
BANDWIDTH = 0.5  # of a card's peak in decoding
WEIGHT = 4  # bytes of float32: weights, gradients, Adam's moments, and the KV cache of `llm train`
HALF = 2  # bytes of bfloat16
TRAINED = 4 * WEIGHT  # bytes of a weight that is trained: itself, its gradient, two moments
PER_LOGIT = 24  # bytes: the logits, their float32 copy, log-softmax, and the gradients of the three
RESERVED = 1.0  # GB of CUDA's context and of the allocator's gaps
LAUNCH = 0.8e-3  # seconds a layer of one decoding pass takes whatever its size, without CUDA graphs
EVAL_BATCH = 64  # completions at a time, as `evaluate` does


@dataclass(frozen=True)
class Shape:
    """Of a Llama-like transformer: what its config.json says."""

    layers: int
    hidden: int
    inner: int  # of the gated MLP
    keys: int  # key-value heads × head size
    vocabulary: int
    tied: bool  # one matrix for embedding and logits

    @property
    def parameters(self) -> int:
        """Of all matrices and norms; biases are left out."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.keys
        mlp = 3 * self.hidden * self.inner
        norms = 2 * self.hidden
        embeddings = (2 - self.tied) * self.vocabulary * self.hidden
        return self.layers * (attention + mlp + norms) + self.hidden + embeddings

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters on all linear layers: r·(in + out) of each."""
        attention = 2 * (2 * self.hidden) + 2 * (self.hidden + self.keys)
        mlp = 3 * (self.hidden + self.inner)
        return self.layers * rank * (attention + mlp)


@dataclass(frozen=True)
class Card:
    """A GPU, from its data sheet; the price is a guess."""

    name: str
    memory: float  # GB
    flops: float  # a second, of matrix products in the dtype of the training passes
    bandwidth: float  # bytes a second
    dollars: float = 0.0  # an hour


SHAPES = {
    "tiny": Shape(4, 128, 344, 128, 21, True),
    "smollm2-135m": Shape(30, 576, 1536, 192, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Shape(24, 2048, 8192, 2048, 49152, True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Shape(28, 1536, 8960, 256, 151936, False),
    "meta-llama/Llama-3.2-1B-Instruct": Shape(16, 2048, 8192, 512, 128256, True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(28, 1536, 8960, 256, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(28, 3584, 18944, 512, 152064, False),
    "Qwen/Qwen2.5-14B-Instruct": Shape(48, 5120, 13824, 1024, 152064, False),
}
T4 = Card("T4", 16, 8.1e12, 0.32e12)
A10 = Card("A10", 24, 125e12, 0.6e12, 1.0)
A100 = Card("A100", 80, 312e12, 2.0e12, 2.0)
H100 = Card("H100", 80, 989e12, 3.35e12, 3.0)
# by the name that `llm plan --card` takes; prices are rough guesses, 0 where a card is rather owned
CARDS = {
    "t4": T4,
    "l4": Card("L4", 24, 121e12, 0.3e12, 0.8),
    "a10": A10,
    "rtx3090": Card("RTX 3090", 24, 71e12, 0.94e12),
    "rtx4090": Card("RTX 4090", 24, 165e12, 1.0e12),
    "a100-40": Card("A100 40 GB", 40, 312e12, 1.56e12, 1.5),
    "a100": A100,
    "h100": H100,
    "cpu": Card("laptop's CPU, a thread", 16, 120e9, 30e9),
}


def shape_of(model: str) -> Shape:
    """The shape of a model. Raises: ValueError for one that is not in SHAPES."""
    if model not in SHAPES:
        raise ValueError(f"the shape of model {model!r} is not known, only of {', '.join(SHAPES)}")
    return SHAPES[model]


# ---------------------------------------------------------------------------------------------------------------------
# llm train
# ---------------------------------------------------------------------------------------------------------------------


def memory(settings: Settings, prompt: int = PROMPT) -> dict[str, float]:
    """GB that a run of `llm train` needs at most: weights, and the larger of its KV cache and its training pass.

        weights = 16·trained + 4·frozen;   KV = 2·4·layers·keys·P·G·(prompt + T)
        logits = 24·B·T·V;   activations = 4·B·(prompt + T)·Σ over layers of what backward needs

    Args:
        settings: of the run.
        prompt: tokens of a prompt, with template and system prompt.

    Raises: ValueError for a model whose shape is not in SHAPES.
    """
    shape = shape_of(settings.model)
    T = settings.max_new_tokens
    completions = settings.prompts * settings.group_size
    trained = shape.adapters(settings.lora_rank) if settings.lora_rank else shape.parameters
    # under adapters, or as the reference
    frozen = shape.parameters if settings.lora_rank or settings.beta else 0
    # floats a token that backward needs
    layer = 10 * shape.hidden + 4 * shape.inner + 2 * shape.keys
    if settings.gradient_checkpointing:
        floats = shape.layers * shape.hidden + layer  # each layer's input, and one layer made again
    else:
        floats = shape.layers * layer
    parts = {
        "weights": TRAINED * trained + WEIGHT * frozen,
        "KV cache": 2 * WEIGHT * shape.layers * shape.keys * completions * (prompt + T),
        "logits": PER_LOGIT * settings.micro_batch * T * shape.vocabulary,
        "activations": WEIGHT * settings.micro_batch * (prompt + T) * floats,
    }
    parts = {name: value / 1e9 for name, value in parts.items()}
    largest = max(parts["KV cache"], parts["logits"] + parts["activations"])
    return parts | {"all": RESERVED + parts["weights"] + largest}


def minutes(settings: Settings, card: Card, prompt: int = PROMPT) -> float:
    """Minutes of a run of `llm train`: decoding bound by launches, reading or products, training by products.

        decoding = T · max(launch · layers, (4·parameters + cache) / (0.5 · bandwidth), products)
        products of decoding = 2 · parameters · P·G / (0.3 · flops)
        training = products · parameters · P·G·(prompt + T) / (0.3 · flops)

    A token costs 2 products a parameter forward, twice that backward; a frozen weight has no gradient of its own.

    Args:
        settings: of the run.
        card: it runs on.
        prompt: tokens of a prompt, with template and system prompt.
    """
    shape = shape_of(settings.model)
    T = settings.max_new_tokens

    def decoding(completions: float) -> float:
        cache = 2 * WEIGHT * shape.layers * shape.keys * completions * (prompt + T / 2)
        reading = (WEIGHT * shape.parameters + cache) / (BANDWIDTH * card.bandwidth)
        products = 2 * shape.parameters * completions / (UTILISATION * card.flops)
        return T * max(LAUNCH * shape.layers, reading, products)

    completions = settings.prompts * settings.group_size
    products = (
        (4 if settings.lora_rank else 6)
        + 2 * settings.gradient_checkpointing
        + 2 * (settings.beta > 0)
    )
    flops = products * shape.parameters * completions * (prompt + T)
    training = settings.iterations * flops / (UTILISATION * card.flops)
    evaluations = settings.updates // settings.eval_every + 1
    evaluation = settings.eval_size / EVAL_BATCH * decoding(EVAL_BATCH)
    return (settings.updates * (decoding(completions) + training) + evaluations * evaluation) / 60


# ---------------------------------------------------------------------------------------------------------------------
# TRL with vLLM
# ---------------------------------------------------------------------------------------------------------------------


def recipe_memory(recipe: Mapping[str, Any], shape: Shape, card: Card, cards: int) -> float:
    """GB of one card under a recipe: weights, gradients and Adam, activations, and vLLM's share.

    Logits are left out: from 1.15 on TRL makes them in parts. Where there is a validation its batch may be the larger.

    Args:
        recipe: as its YAML says.
        shape: of the model.
        card: of each process.
        cards: over which full weights are sharded.
    """
    if "lora" in recipe:
        states = HALF * shape.parameters + TRAINED * shape.adapters(recipe["lora"]["r"])
    else:
        states = TRAINED * shape.parameters / cards
    inputs = HALF * shape.hidden * shape.layers  # a token, of every layer, kept for checkpointing
    inside = HALF * (12 * shape.hidden + 4 * shape.inner)  # a token, of one layer, computed again
    training = recipe["per_device_train_batch_size"] * (inputs + inside)
    validation = recipe["per_device_eval_batch_size"] * inside if "validation" in recipe else 0
    activations = max(training, validation) * (PROMPT + recipe["max_completion_length"])
    return (states + activations) / 1e9 + recipe["vllm_gpu_memory_utilization"] * card.memory


def recipe_seconds(recipe: Mapping[str, Any], shape: Shape, card: Card, cards: int) -> float:
    """Seconds of one update under a recipe: generation, and training, every completion at its full length.

    Training: FLOPs a weight and token are 2 forward, 4 backward (2 under LoRA), 2 for the recomputed forward, 2 for the
    pass of π_old and, where β > 0, 2 for that of π_ref.

    Args:
        recipe: as its YAML says.
        shape: of the model.
        card: of each process.
        cards: how many.
    """
    completions = recipe["prompts"] * recipe["num_generations"]
    at_once = recipe.get("generation_batch_size", completions)
    generation = completions / at_once * _sampling(recipe, shape, card, at_once / cards)
    products = (6 if "lora" in recipe else 8) + 2 + (2 if recipe["beta"] else 0)
    flops = products * shape.parameters * completions * (PROMPT + recipe["max_completion_length"])
    return generation + flops / cards / (UTILISATION * card.flops)


def validation_seconds(recipe: Mapping[str, Any], shape: Shape, card: Card, cards: int) -> float:
    """Seconds of one validation under a recipe: a batch after the other, every completion at its full length.

    FLOPs a weight and token: 2 for TRL's loss, 2 for the pass of π_old and, where β > 0, 2 for that of π_ref.

    Args:
        recipe: as its YAML says.
        shape: of the model.
        card: of each process.
        cards: how many.
    """
    completions = recipe["validation"] * recipe["num_generations_eval"]
    at_once = recipe["per_device_eval_batch_size"]  # of a card
    batches = math.ceil(completions / (at_once * cards))
    products = 4 + (2 if recipe["beta"] else 0)
    flops = products * shape.parameters * at_once * (PROMPT + recipe["max_completion_length"])
    return batches * (_sampling(recipe, shape, card, at_once) + flops / (UTILISATION * card.flops))


def _sampling(recipe: Mapping[str, Any], shape: Shape, card: Card, sequences: float) -> float:
    """Seconds of vLLM: a token of every sequence reads the weights once, and the sequence's keys and values.

    Args:
        recipe: as its YAML says.
        shape: of the model.
        card: of each process.
        sequences: a card, at a time.
    """
    T = recipe["max_completion_length"]
    # cards that hold one copy of the weights
    parallel = recipe.get("vllm_tensor_parallel_size", 1)
    cache = 2 * HALF * shape.layers * shape.keys * sequences * parallel * (PROMPT + T / 2)
    return T * (HALF * shape.parameters + cache) / parallel / (BANDWIDTH * card.bandwidth)
