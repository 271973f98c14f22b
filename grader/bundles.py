"""Lab 10's files: six runs, packed by their student, read strictly, and each checkpoint evaluated again.

    runs.json           of each run its manifest.json and metrics.jsonl as they stand, and the update of its checkpoint
    runs.safetensors    of each run RUN/NAME of each weight, in half precision and without the optimiser's moments

Nothing that a student sent is executed, unpickled or handed to a library before its sizes, names and shapes are known
to be right. What is wrong with one run is said by its name.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from grader.adapters import (
    ONE_AT_A_TIME,
    ArtifactError,
    deviation,
    fresh_task,
    read_json,
    weights_header,
)
from minigrpo.files import METRICS
from minigrpo.llm.evaluation import evaluate
from minigrpo.llm.models import load_model
from minigrpo.llm.runs import CHECKPOINT, MANIFEST, NEEDED
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import Task, load_task

RUNS, WEIGHTS = "runs.json", "runs.safetensors"
FILES = (RUNS, WEIGHTS)  # that a student hands in
MAX_MANIFEST, MAX_METRICS = 256 << 10, 1 << 20  # bytes of one run
MAX_CHECKPOINT = 64 << 20  # bytes of the file that is packed
MAX_RUNS, MAX_WEIGHTS = 8 << 20, 16 << 20  # bytes of what is handed in
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of a run's folder
OBJECTIVES = ("grpo", "lambda_grpo")
PAIRS = 3
MODEL, TASK = "tiny", "arithmetic"
# what settings may be: what the grader has to compute again stays small
UPDATES, NEW_TOKENS = range(20, 401), range(12, 25)
PROBLEMS, TRAINED_ON = range(100, 401), range(100, 10_001)
SEEDS = range(10**6)
LARGEST = 1e4  # of a weight
FRESH = 200  # problems that the grader draws
# grader/thresholds/lab10.json is the distribution behind the next three
OWN = 0.03  # by which the accuracy on a run's own problems may be off: half precision, another machine
DEVIATIONS = 4.0  # standard errors within which the accuracy on fresh problems has to lie
# a copy is nearer to its original than this share of the way that training went
COPY = 0.1
POINTS = {
    "six whole runs": 2,
    "a fair comparison": 1,
    "interrupted and resumed": 1,
    "claims that hold": 2,
}
HOW = "python -m grader submit lab10 --runs DIR makes it"


# ---------------------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------------------


def pack_runs(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Pack the runs in a folder, finished or not.

    Args: folder: that holds the folders of the runs.
    Returns: the files to hand in by name, and a sentence for whatever could not be packed.
    Raises: ValueError for a folder that is missing or holds no run, or too many.
    """
    if not folder.is_dir():
        raise ValueError(f"--runs must be a folder with the folders of the runs, got {folder}")
    found = sorted(path for path in folder.iterdir() if (path / MANIFEST).exists())
    if not found:
        raise ValueError(f"{folder} holds no run: none of its folders has a {MANIFEST}")
    if len(found) > 4 * PAIRS:
        raise ValueError(
            f"{folder} holds {len(found)} runs, where the lab asks for {2 * PAIRS}: move the others away"
        )
    runs: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    said = []
    for path in found:
        name = path.name
        if not NAME.fullmatch(name):
            said.append(f"{name} is left out: name it with letters, digits, and - _ . alone")
            continue
        try:
            texts = (
                _read_text(path / MANIFEST, MAX_MANIFEST),
                _read_text(path / METRICS, MAX_METRICS),
            )
        except ArtifactError as error:
            said.append(f"{name} is left out: {error}")
            continue
        update, weights = "", {}
        try:
            update, weights = _read_checkpoint(path / CHECKPOINT)
        except ArtifactError as error:  # unfinished work is packed, too
            said.append(f"{name} is packed without weights: {error}")
        runs[name] = {"manifest": texts[0], "metrics": texts[1], "update": update}
        tensors |= {f"{name}/{key}": weight for key, weight in weights.items()}
    contents = {RUNS: json.dumps(runs, indent=1).encode(), WEIGHTS: safetensors.torch.save(tensors)}
    return contents, said


def _read_text(path: Path, most: int) -> str:
    """A small file as text. Raises ArtifactError."""
    return _read(path, most).decode("utf-8", errors="replace")


def _read(path: Path, most: int) -> bytes:
    """A file of a run. Raises ArtifactError for a link, and for one that is missing or too large."""
    if path.is_symlink() or path.parent.is_symlink():
        raise ArtifactError(f"{path.name} is a link: copy the run itself")
    if not path.is_file():
        raise ArtifactError(f"{path.name} is missing")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ArtifactError(f"{path.name} can't be read") from error
    if len(content) > most:
        raise ArtifactError(f"{path.name} is larger than {most >> 10} KiB, so it is not this lab's")
    return content


def _read_checkpoint(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The update that a checkpoint is of, and its weights in half precision. Raises ArtifactError."""
    _read(path, MAX_CHECKPOINT)  # a link or a file of another size is refused before it is opened
    try:
        with safe_open(path, framework="pt") as file:
            update = (file.metadata() or {}).get("update", "")
            names = [key for key in file.keys() if key.startswith("weight.")]
            weights = {key.removeprefix("weight."): file.get_tensor(key).half() for key in names}
    except SafetensorError as error:
        raise ArtifactError(f"{path.name} can't be read, it may be cut short") from error
    return update, weights


# ---------------------------------------------------------------------------------------------------------------------
# Reading what came
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run, as far as it can be read, and a sentence for each thing that is wrong with it."""

    name: str
    settings: Settings | None
    resumed: tuple[int, ...]
    claims: tuple[float, float]  # its accuracy before the first update, and after the last
    weights: Mapping[str, Tensor]
    wrong: tuple[str, ...]  # what keeps it from being whole


def read_runs(contents: Mapping[str, bytes | None]) -> list[Run]:
    """Read both files. Raises: ArtifactError where no run can be read at all.

    Args: contents: raw bytes by name, None where missing.
    """
    content = contents.get(RUNS)
    if content is None:
        raise ArtifactError(f"{RUNS} is missing: {HOW}")
    if len(content) > MAX_RUNS:
        raise ArtifactError(f"{RUNS} is larger than {MAX_RUNS >> 20} MiB: {HOW}")
    found = read_json(content, RUNS)
    if not isinstance(found, dict) or not all(NAME.fullmatch(name) for name in found):
        raise ArtifactError(f"{RUNS} must hold runs by name: {HOW}")
    if len(found) != 2 * PAIRS:
        raise ArtifactError(f"{2 * PAIRS} runs are asked for, {len(found)} are there")
    weights = read_weights(contents.get(WEIGHTS), list(found))
    return [read_run(name, found[name], weights[name]) for name in found]


def read_run(name: str, entry: Any, weights: Mapping[str, Tensor] | str) -> Run:
    """Read one run; what is wrong with it stands in it.

    Args:
        name: of its folder.
        entry: what runs.json holds of it.
        weights: by name, or why there are none.
    """
    wrong: list[str] = [weights] if isinstance(weights, str) else []
    settings, resumed, claims = None, (), (math.nan, math.nan)
    try:
        keys = {"manifest", "metrics", "update"}
        if not isinstance(entry, dict) or set(entry) != keys:
            raise ArtifactError(f"{RUNS} must hold {', '.join(sorted(keys))}: {HOW}")
        if not all(isinstance(value, str) for value in entry.values()):
            raise ArtifactError(f"{RUNS} must hold texts: {HOW}")
        settings, resumed = read_manifest(entry["manifest"])
        claims = read_metrics(entry["metrics"], settings)
        if entry["update"] != str(settings.updates + 1):
            raise ArtifactError(f"{CHECKPOINT} is not that of the last update: finish the run")
    except ArtifactError as error:
        wrong.append(str(error))
    tensors = {} if isinstance(weights, str) else weights
    return Run(name, settings, resumed, claims, tensors, tuple(wrong))


def read_manifest(text: str) -> tuple[Settings, tuple[int, ...]]:
    """The settings of a run, and the updates at which it went on. Raises ArtifactError."""
    if len(text) > MAX_MANIFEST:
        raise ArtifactError(f"{MANIFEST} is too large")
    found = read_json(text.encode(errors="replace"), MANIFEST)
    saved = found.get("settings") if isinstance(found, dict) else None
    names = {field.name for field in dataclasses.fields(Settings)}
    if not isinstance(saved, dict) or set(saved) != names:
        raise ArtifactError(f"{MANIFEST} does not hold the settings of this version of minigrpo")
    try:
        settings = Settings(**saved)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{MANIFEST} holds settings that no run has") from error
    if (settings.model, settings.task, settings.lora_rank) != (MODEL, TASK, 0):
        raise ArtifactError(f"the runs are of {MODEL} on {TASK}, with lora_rank 0")
    for name, allowed in (
        ("updates", UPDATES),
        ("max_new_tokens", NEW_TOKENS),
        ("eval_size", PROBLEMS),
        ("train_size", TRAINED_ON),
        ("seed", SEEDS),
    ):
        if getattr(settings, name) not in allowed:
            raise ArtifactError(f"{name} must be from {allowed[0]} to {allowed[-1]}")
    return settings, read_resumed(found.get("resumed", []), settings.updates)


def read_resumed(resumed: Any, updates: int) -> tuple[int, ...]:
    """The updates at which a run went on. Raises ArtifactError.

    Args:
        resumed: as the manifest has it.
        updates: of the run.
    """
    if not isinstance(resumed, list) or len(resumed) > 10 * UPDATES[-1]:
        raise ArtifactError(f"resumed in {MANIFEST} must be a list of updates")
    if not all(type(update) is int and 1 <= update <= updates for update in resumed):
        raise ArtifactError(f"resumed in {MANIFEST} must hold updates, from 1 to the last")
    if resumed != sorted(resumed):
        raise ArtifactError(f"resumed in {MANIFEST} must hold updates in order")
    return tuple(resumed)


def read_metrics(text: str, settings: Settings) -> tuple[float, float]:
    """The first and the last accuracy; each update has to be there once, in order. Raises ArtifactError.

    Args:
        text: of the file.
        settings: of the run.
    """
    if len(text) > MAX_METRICS:
        raise ArtifactError(f"{METRICS} is too large")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) > 10 * UPDATES[-1]:
        raise ArtifactError(f"{METRICS} holds {len(lines)} lines, more than a run has updates")
    rows = [read_json(line.encode(errors="replace"), METRICS) for line in lines]
    for row in rows:
        if not isinstance(row, dict) or not all(_is_number(row.get(name)) for name in NEEDED):
            raise ArtifactError(f"{METRICS} must hold rows of a run, with {', '.join(NEEDED)}")
    updates = [row["update"] for row in rows]
    twice = [a for a, b in itertools.pairwise(updates) if b <= a]
    if twice:
        raise ArtifactError(f"{METRICS} goes back after update {twice[0]}: rows are there twice")
    if updates != list(range(settings.updates + 1)):
        raise ArtifactError(f"{METRICS} must hold each update from 0 to {settings.updates} once")
    for row in (rows[0], rows[-1]):
        accuracy, problems = row.get("eval_accuracy"), row.get("eval_problems")
        if not _is_number(accuracy) or not 0 <= accuracy <= 1 or problems != settings.eval_size:
            raise ArtifactError(
                f"the first and the last row of {METRICS} need an eval_accuracy on {settings.eval_size} problems"
            )
    return float(rows[0]["eval_accuracy"]), float(rows[-1]["eval_accuracy"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_weights(content: bytes | None, names: list[str]) -> dict[str, Mapping[str, Tensor] | str]:
    """The weights of each run, or a sentence where they can't be taken. Raises: ArtifactError for the whole file.

    Args:
        content: of the file; None where it is missing.
        names: of the runs.
    """
    if content is None:
        raise ArtifactError(f"{WEIGHTS} is missing: {HOW}")
    header = weights_header(content, MAX_WEIGHTS, WEIGHTS)
    shapes = {name: list(weight.shape) for name, weight in first_weights().items()}
    wanted = {f"{run}/{name}": shape for run in names for name, shape in shapes.items()}
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if not set(entries) <= set(wanted):
        raise ArtifactError(f"{WEIGHTS} holds other tensors than those of the runs: {HOW}")
    for name, entry in entries.items():
        kind = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else None
        if kind != ("F16", wanted[name]):
            raise ArtifactError(f"{WEIGHTS} holds weights of another shape or precision: {HOW}")
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{WEIGHTS} can't be read as safetensors") from error
    return {run: _weights_of(run, tensors, list(shapes)) for run in names}


def _weights_of(
    run: str, tensors: Mapping[str, Tensor], names: list[str]
) -> Mapping[str, Tensor] | str:
    """The weights of a run in float32, or why they can't be taken."""
    own = {name: tensors.get(f"{run}/{name}") for name in names}
    missing = [name for name, weight in own.items() if weight is None]
    if missing:
        return f"{len(missing)} of its weights are missing"
    found = {name: weight.float() for name, weight in own.items() if weight is not None}
    for name, weight in found.items():
        if not weight.isfinite().all() or weight.abs().max() > LARGEST:
            return f"{name} holds NaN, infinity or a number above {LARGEST:g}"
    return found


@cache
def first_weights() -> dict[str, Tensor]:
    """The weights that each run begins with, by name."""
    model = load_model(MODEL).model
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


# ---------------------------------------------------------------------------------------------------------------------
# Grading
# ---------------------------------------------------------------------------------------------------------------------


def grade(contents: Mapping[str, bytes | None], seed: int) -> list[dict]:
    """Grade lab 10's files. Args: contents: raw bytes by name, None where missing; seed: the instructor's secret."""
    with ONE_AT_A_TIME:
        return _grade(contents, seed)


def _grade(contents: Mapping[str, bytes | None], seed: int) -> list[dict]:
    try:
        runs = read_runs(contents)
    except ArtifactError as error:
        return [_part(name, str(error)) for name in POINTS]
    broken = [f"{run.name}: {why}" for run in runs for why in run.wrong]
    refused = {
        "six whole runs": _several(broken),
        "a fair comparison": unfair(runs),
        "interrupted and resumed": unbroken(runs),
    }
    # a run that is not whole has nothing to be measured against, and copies would be measured twice
    said = broken or copies(runs)
    found = {} if said else measured(runs, seed)
    refused["claims that hold"] = _several(said or false_claims(runs, found))
    parts = [_part(name, refused[name]) for name in POINTS]
    if not any(refused.values()):  # for the class's comparison, on the fresh problems
        parts[-1]["records"] = tuple(
            {
                "objective": run.settings.objective,
                "seed": run.settings.seed,
                "accuracy": found[run.name][1],
            }
            for run in runs
            if run.settings is not None
        )
    return parts


def unfair(runs: list[Run]) -> str:
    """Why the runs can't be compared; empty where they can."""
    settings = {run.name: run.settings for run in runs}
    read = [found for found in settings.values() if found is not None]
    if len(read) < len(runs):
        return f"no settings of {', '.join(name for name, found in settings.items() if not found)}"
    seeds = {
        objective: sorted(found.seed for found in read if found.objective == objective)
        for objective in OBJECTIVES
    }
    if any(len(set(found)) != PAIRS for found in seeds.values()):
        return f"asked are {PAIRS} seeds of {OBJECTIVES[0]} and {PAIRS} of {OBJECTIVES[1]}"
    if seeds[OBJECTIVES[0]] != seeds[OBJECTIVES[1]]:
        return f"the seeds are not pairs: {seeds[OBJECTIVES[0]]} and {seeds[OBJECTIVES[1]]}"
    rest = [_but_for(found) for found in read]
    other = sorted(name for name in rest[0] if len({repr(values[name]) for values in rest}) > 1)
    return f"settings differ in more than the objective: {', '.join(other)}" if other else ""


def unbroken(runs: list[Run]) -> str:
    """Which runs were never interrupted; empty where all were."""
    unread = [run.name for run in runs if run.settings is None]
    never = [run.name for run in runs if not run.resumed]
    if unread:
        return f"no settings of {', '.join(unread)}"
    return f"never interrupted: {', '.join(never)}" if never else ""


def _but_for(settings: Settings) -> dict[str, Any]:
    """The settings that have to be equal."""
    saved = dataclasses.asdict(settings)
    return {name: value for name, value in saved.items() if name not in ("objective", "seed")}


def copies(runs: list[Run]) -> list[str]:
    """A sentence for each checkpoint that was not trained, or is another run's."""
    first = first_weights()
    half = {name: weight.half().float() for name, weight in first.items()}
    said = []
    ways = {run.name: distance(run.weights, half) for run in runs}
    for name, way in ways.items():
        if way == 0:
            said.append(f"{name}: its weights were never trained")
    for one, other in itertools.combinations(runs, 2):
        shorter = min(ways[one.name], ways[other.name])
        if shorter and distance(one.weights, other.weights) < COPY * shorter:
            said.append(f"{one.name} and {other.name} have the same weights")
    return said


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """‖w − w′‖ over all weights.

    Args:
        one: weights by name.
        other: those of another model of this shape.
    """
    return math.sqrt(sum(float((one[name] - other[name]).pow(2).sum()) for name in one))


def measured(runs: list[Run], seed: int) -> dict[str, list[float]]:
    """The accuracy of each run after training: on its own problems and on fresh ones.

    Args:
        runs: whole ones.
        seed: of the fresh problems.
    """
    fresh = fresh_problems(seed)
    found = {}
    for run in runs:
        assert run.settings is not None
        tasks = [own_problems(run.settings.eval_size), fresh]
        found[run.name] = accuracies(run.weights, run.settings.max_new_tokens, tasks)
    return found


def false_claims(runs: list[Run], found: Mapping[str, list[float]]) -> list[str]:
    """A sentence for each run whose accuracy is not what the model does, before training or after.

    Args:
        runs: whole ones.
        found: what was measured of each.
    """
    said = []
    for run in runs:
        assert run.settings is not None
        size = run.settings.eval_size
        before, after = run.claims
        own, again = found[run.name]
        start = first_accuracy(run.settings.max_new_tokens, size)
        claimed = f"{run.name}: {METRICS} claims {after:.1%} after training, we found"
        # so that NaN is too far, too
        if not abs(own - after) <= OWN:
            said.append(f"{claimed} {own:.1%} on the same problems")
        elif not deviation(after, size, again, FRESH) <= DEVIATIONS:
            said.append(f"{claimed} {again:.1%} on {FRESH} fresh problems")
        elif not abs(start - before) <= OWN:
            said.append(
                f"{run.name}: {METRICS} claims {before:.1%} before it, we found {start:.1%}"
            )
    return said


@cache
def first_accuracy(new_tokens: int, size: int) -> float:
    """Greedy accuracy of the model before training, on the problems of a run. Args: tokens of an answer; problems."""
    return accuracies(first_weights(), new_tokens, [own_problems(size)])[0]


def accuracies(weights: Mapping[str, Tensor], new_tokens: int, tasks: list[Task]) -> list[float]:
    """Greedy accuracy on the held-out problems of each task; NaN where the model gives NaN.

    Args:
        weights: of the model, by name.
        new_tokens: of an answer at most.
        tasks: with held-out problems.
    """
    loaded = load_model(MODEL)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            weight.copy_(weights[name])
        if not loaded.model(torch.arange(1, 9).unsqueeze(0)).logits.isfinite().all():
            return [math.nan] * len(tasks)
    return [
        evaluate(loaded.model, loaded.tokenizer, task, max_new_tokens=new_tokens)["accuracy"]
        for task in tasks
    ]


@cache
def own_problems(size: int) -> Task:
    """The problems on which a run evaluates itself."""
    return load_task(TASK, heldout_size=size)


@cache
def fresh_problems(seed: int) -> Task:
    """Problems drawn from the instructor's seed."""
    task = fresh_task(MODEL, seed)
    return dataclasses.replace(task, heldout=task.heldout.select(range(FRESH)))


def _several(said: list[str]) -> str:
    """The first sentences, and how many more there are."""
    more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
    return "; ".join(said[:3]) + more


def _part(name: str, why: str) -> dict:
    points = POINTS[name]
    return {
        "name": name,
        "points": points,
        "earned": 0 if why else points,
        "passed": not why,
        "feedback": why,
    }
