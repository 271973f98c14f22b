"""Lab 09's files: an adapter is read strictly, put into its base model, and evaluated again on fresh problems.

Nothing that a student sent is executed, unpickled or handed to a library before its sizes, names and shapes are known
to be right. An adapter is numbers: W + (alpha / r)·B·A of each layer it names.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import struct
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minigrpo.files import METRICS, write_bytes, write_json, write_text
from minigrpo.llm.evaluation import evaluate
from minigrpo.llm.models import load_model
from minigrpo.llm.runs import checkpoint_weights, read_settings
from minigrpo.llm.tasks import Task, load_task

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FILES = (WEIGHTS, CONFIG, METRICS)  # that a student hands in
PREFIX = "base_model.model."  # of PEFT's names
MAX_WEIGHTS = 64 << 20  # bytes
MAX_HEADER = 1 << 20  # bytes of the JSON in front of the tensors
MAX_TEXT = 4 << 20  # bytes of a JSON file
FIXED = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
RANKS, ALPHAS = range(1, 65), range(1, 513)
LARGEST = 1e4  # of a weight
NEW_TOKENS = 16
# of accuracy over the base, on fresh problems; grader/thresholds/lab09.json is the distribution behind it
GAIN = 0.10
DEVIATIONS = 3.5  # standard errors within which a claim has to lie
LEAST_CLAIMED = 50  # held-out problems behind a claim: of fewer, any claim would hold
# transformers loads a model by way of settings that all threads share
ONE_AT_A_TIME = threading.Lock()
POINTS = {"a valid adapter": 1, "better than its base": 3, "claims that hold": 2}


class ArtifactError(ValueError):
    """A file that can't be accepted; the text is for the student."""


@dataclass(frozen=True)
class Base:
    """A model to start from, and its problems."""

    fresh: int  # held-out problems that the grader draws
    largest: int | None  # of the sums; None: the tiny model's own task


BASES = {"tiny": Base(400, None), "smollm2-135m": Base(120, 49)}


def write_task(base: str, folder: Path) -> str:
    """Say what `Settings.task` has to be for a base model; a file of problems is written where one is needed."""
    largest = BASES[base].largest
    if largest is None:
        return "arithmetic"
    path = folder / "problems.jsonl"
    numbers = range(2, largest + 1)
    rows = (
        {"prompt": f"What is {a} + {b}? Reply with the number only.", "answer": str(a + b)}
        for a in numbers
        for b in numbers
    )
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@cache
def load_base_task(base: str) -> Task:
    """A base model's task with all its held-out problems."""
    with tempfile.TemporaryDirectory() as folder:
        return load_task(write_task(base, Path(folder)), heldout_size=100_000)


def fresh_task(base: str, seed: int) -> Task:
    """A base model's task, with held-out problems drawn from the seed."""
    task = load_base_task(base)
    places = random.Random(f"{base} {seed}").sample(range(len(task.heldout)), BASES[base].fresh)
    return dataclasses.replace(task, heldout=task.heldout.select(places))


def save_adapter(run: Path, out: Path) -> None:
    """Write a run's adapter as PEFT does, from its last checkpoint, beside a copy of its metrics.

    Args: run: a folder that `minigrpo.llm.training.train` left, of a run with adapters; out: the folder to write.
    Raises: ValueError for a run without adapters, OSError for one without a checkpoint.
    """
    settings = read_settings(run)
    # PEFT's files leave out the name that an adapter has in the model.
    weights = {
        name.replace(".default.", "."): weight for name, weight in checkpoint_weights(run).items()
    }
    if not settings.lora_rank:
        raise ValueError(
            f"{run} trained every weight: set lora_rank, so that there is an adapter to save"
        )
    layers = sorted({name.split(".")[-3] for name in weights})
    shape = {"r": settings.lora_rank, "lora_alpha": settings.lora_alpha, "target_modules": layers}
    write_bytes(out / WEIGHTS, safetensors.torch.save(weights))
    write_json(out / CONFIG, FIXED | {"base_model_name_or_path": settings.model} | shape)
    write_text(out / METRICS, (run / METRICS).read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------------------
# Reading what came
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter says of itself."""

    base: str
    r: int
    alpha: int
    targets: tuple[str, ...]


def read_json(content: bytes, name: str) -> Any:
    """JSON without NaN and without a key twice. Raises ArtifactError."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    def unique(pairs: list) -> dict:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not the JSON that the run writes") from error


def read_config(content: bytes | None) -> AdapterConfig:
    """Read adapter_config.json: six known keys and no other. Raises ArtifactError."""
    if content is None or len(content) > MAX_TEXT:
        raise ArtifactError(f"{CONFIG} is missing, or too large")
    found = read_json(content, CONFIG)
    keys = {*FIXED, "base_model_name_or_path", "r", "lora_alpha", "target_modules"}
    if (
        not isinstance(found, dict)
        or set(found) != keys
        or any(found[key] != FIXED[key] for key in FIXED)
    ):
        raise ArtifactError(
            f"{CONFIG} must have the keys {', '.join(sorted(keys))} as save_adapter writes them"
        )
    base, r, alpha, targets = (
        found[key] for key in ("base_model_name_or_path", "r", "lora_alpha", "target_modules")
    )
    if not isinstance(base, str) or base not in BASES:
        raise ArtifactError(f"base_model_name_or_path must be one of {', '.join(BASES)}")
    for name, value, allowed in (("r", r, RANKS), ("lora_alpha", alpha, ALPHAS)):
        if type(value) is not int or value not in allowed:
            raise ArtifactError(f"{name} must be a whole number from {allowed[0]} to {allowed[-1]}")
    if (
        not isinstance(targets, list)
        or not targets
        or not all(isinstance(name, str) for name in targets)
    ):
        raise ArtifactError("target_modules must be a list of names")
    return AdapterConfig(base, r, alpha, tuple(targets))


def targeted(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Linear]:
    """The layers that a configuration names. Raises ArtifactError for a name that no linear layer has."""
    head = model.get_output_embeddings()
    linear = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and part is not head
    }
    if not set(config.targets) <= {name.rpartition(".")[2] for name in linear}:
        raise ArtifactError(f"target_modules must name linear layers of {config.base}")
    return {
        name: layer for name, layer in linear.items() if name.rpartition(".")[2] in config.targets
    }


def read_weights(
    content: bytes | None, layers: Mapping[str, nn.Linear], r: int
) -> dict[str, Tensor]:
    """Read the adapter: float32, exactly the names and shapes that its configuration gives. Raises ArtifactError.

    Args:
        content: of the file; None where it is missing.
        layers: that its configuration names.
        r: the rank.
    """
    if content is None:
        raise ArtifactError(f"{WEIGHTS} is missing")
    _check_header(weights_header(content), layers, r)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{WEIGHTS} can't be read as safetensors") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() or tensor.abs().max() > LARGEST:
            raise ArtifactError(f"{name} holds NaN, infinity or a number above {LARGEST:g}")
    if not any(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name):
        raise ArtifactError(
            "every B of the adapter is 0: it was never trained, or no completion earned a reward (is max_new_tokens "
            "long enough for an answer?)"
        )
    return tensors


def weights_header(content: bytes, most: int = MAX_WEIGHTS, file: str = WEIGHTS) -> dict[str, Any]:
    """The JSON in front of the tensors: its length in eight bytes, then its text. Raises ArtifactError.

    Args:
        content: of a safetensors file.
        most: bytes that it may have.
        file: its name, for the message.
    """
    if not 8 < len(content) <= most:
        raise ArtifactError(f"{file} must be at most {most >> 20} MB, and not empty")
    (size,) = struct.unpack("<Q", content[:8])
    if size > min(MAX_HEADER, len(content) - 8):
        raise ArtifactError(f"{file} is not a safetensors file")
    header = read_json(content[8 : 8 + size], file)
    if not isinstance(header, dict):
        raise ArtifactError(f"{file} is not a safetensors file")
    return header


def _check_header(header: Mapping[str, Any], layers: Mapping[str, nn.Linear], r: int) -> None:
    """Require exactly the tensors of a configuration: two a layer, A and B."""
    wanted = {}
    for name, layer in layers.items():
        wanted[f"{PREFIX}{name}.lora_A.weight"] = [r, layer.in_features]
        wanted[f"{PREFIX}{name}.lora_B.weight"] = [layer.out_features, r]
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if set(tensors) != set(wanted):
        raise ArtifactError(
            f"{WEIGHTS} must hold the {len(wanted)} tensors of its configuration and no others"
        )
    for name, shape in wanted.items():
        entry = tensors[name]
        if (
            not isinstance(entry, dict)
            or entry.get("dtype") != "F32"
            or entry.get("shape") != shape
        ):
            raise ArtifactError(f"{name} must be float32 of shape {tuple(shape)}")


@dataclass(frozen=True)
class Claims:
    """What metrics.jsonl says of held-out accuracy: before the first update, and after the last."""

    before: float
    after: float
    problems: int


def read_claims(content: bytes | None) -> Claims:
    """Read metrics.jsonl: one row an update, from 0 on, the first and the last evaluated. Raises ArtifactError."""
    if content is None or len(content) > MAX_TEXT:
        raise ArtifactError(f"{METRICS} is missing, or too large")
    rows = [read_json(line, METRICS) for line in content.splitlines()]
    if not all(isinstance(row, dict) for row in rows) or [
        row.get("update") for row in rows
    ] != list(range(len(rows))):
        raise ArtifactError(f"{METRICS} must hold one row for each update, from 0 on")
    if len(rows) < 2:
        raise ArtifactError(f"{METRICS} holds no update")
    ends = rows[0], rows[-1]
    for row in ends:
        accuracy, problems = row.get("eval_accuracy"), row.get("eval_problems")
        if type(accuracy) is not float or not 0 <= accuracy <= 1:
            raise ArtifactError("the first and the last row need an eval_accuracy from 0 to 1")
        if type(problems) is not int or problems < LEAST_CLAIMED:
            raise ArtifactError(f"evaluate on at least {LEAST_CLAIMED} problems (eval_size)")
    return Claims(
        ends[0]["eval_accuracy"],
        ends[1]["eval_accuracy"],
        min(row["eval_problems"] for row in ends),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Evaluating again
# ---------------------------------------------------------------------------------------------------------------------


@cache
def base_accuracy(base: str, seed: int) -> float:
    """Greedy accuracy of a base model on the seed's problems; of one seed it is measured once."""
    loaded = load_model(base)
    return evaluate(
        loaded.model, loaded.tokenizer, fresh_task(base, seed), max_new_tokens=NEW_TOKENS
    )["accuracy"]


@torch.no_grad()
def merge(
    layers: Mapping[str, nn.Linear], tensors: Mapping[str, Tensor], config: AdapterConfig
) -> None:
    """Put an adapter into its base: W ← W + (alpha / r)·B·A.

    Args:
        layers: of the base model; they are changed.
        tensors: the adapter.
        config: its configuration.
    """
    for name, layer in layers.items():
        A, B = (tensors[f"{PREFIX}{name}.lora_{letter}.weight"] for letter in "AB")
        layer.weight += (config.alpha / config.r) * (B @ A)


def adapter_accuracy(config: AdapterConfig, content: bytes | None, seed: int) -> float:
    """Greedy accuracy of an adapter on the seed's problems. Raises ArtifactError for one that can't be accepted.

    Args:
        config: of the adapter.
        content: of its weights.
        seed: of the fresh problems.
    """
    loaded = load_model(config.base)
    layers = targeted(loaded.model, config)
    merge(layers, read_weights(content, layers, config.r), config)
    task = fresh_task(config.base, seed)
    with torch.no_grad():
        probe = loaded.model(torch.arange(1, 9).unsqueeze(0)).logits
    if not probe.isfinite().all():
        raise ArtifactError("the model gives NaN or infinity with this adapter")
    return evaluate(loaded.model, loaded.tokenizer, task, max_new_tokens=NEW_TOKENS)["accuracy"]


def deviation(claimed: float, n: int, found: float, m: int) -> float:
    """How many standard errors of their difference lie between two shares, of n and of m problems.

    |p − q| / √( s(1 − s)(1/n + 1/m) ), where s is the share of both together, not closer to 0 or 1 than 1/(n + m).

    Args:
        claimed: a share of n problems.
        n: how many problems are behind the claim.
        found: a share of m problems.
        m: how many the grader solved.
    """
    share = min(max((claimed * n + found * m) / (n + m), 1 / (n + m)), 1 - 1 / (n + m))
    return abs(claimed - found) / math.sqrt(share * (1 - share) * (1 / n + 1 / m))


def grade(contents: Mapping[str, bytes | None], seed: int) -> list[dict]:
    """Grade lab 09's files. Args: contents: raw bytes by name, None where missing; seed: the instructor's secret."""
    with ONE_AT_A_TIME:
        return _grade(contents, seed)


def _grade(contents: Mapping[str, bytes | None], seed: int) -> list[dict]:
    refused = dict.fromkeys(POINTS, "")
    try:
        config = read_config(contents.get(CONFIG))
        after = adapter_accuracy(config, contents.get(WEIGHTS), seed)
    except ArtifactError as error:
        return [_part(name, str(error)) for name in refused]
    before, fresh = base_accuracy(config.base, seed), BASES[config.base].fresh
    said = f"on {fresh} fresh problems it solves {after:.0%}, its base {before:.0%}"
    gained = after - before >= GAIN
    refused["better than its base"] = (
        "" if gained else f"{said}; a gain of {100 * GAIN:.0f} points was asked"
    )
    try:
        claims = read_claims(contents.get(METRICS))
    except ArtifactError as error:
        refused["claims that hold"] = str(error)
    else:
        pairs = (("before training", claims.before, before), ("after it", claims.after, after))
        false = [
            f"{METRICS} claims {claimed:.0%} {when}, we found {found:.0%}"
            for when, claimed, found in pairs
            if deviation(claimed, claims.problems, found, fresh) > DEVIATIONS
        ]
        refused["claims that hold"] = "; ".join(false)
    return [_part(name, why) for name, why in refused.items()]


def _part(name: str, why: str) -> dict:
    points = POINTS[name]
    return {
        "name": name,
        "points": points,
        "earned": 0 if why else points,
        "passed": not why,
        "feedback": why,
    }
