"""GRPO, its process-reward twin and λ-GRPO on a language model: the loop, its files, and how it goes on.

The objectives and the loss are those of the toy trainer. The prompts and samples of an update follow from the seed and
the update's number alone, so that a run that was resumed repeats one that was not interrupted.

Shapes: P prompts, G completions of a group, T tokens; rows are the P·G completions.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import functools
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from minigrpo import __version__
from minigrpo.files import write_bytes, write_json
from minigrpo.llm.evaluation import decode, evaluate
from minigrpo.llm.forward import (
    FORWARDS,
    TREE,
    Costs,
    choose,
    costs_of,
    draws_dropout,
    micro_batches,
    packed_logps,
    padded_logps,
    probe,
    select,
    shared_logps,
    ways_of,
)
from minigrpo.llm.found import found, found_lines
from minigrpo.llm.models import LoadedModel, load_model, reason_of
from minigrpo.llm.prompts import encode_prompts, fix_date, longest_prompt
from minigrpo.llm.sampling import Samples, sample_completions, window_of
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import Task, load_task
from minigrpo.losses import kl_k3, policy_loss
from minigrpo.objectives import OBJECTIVES
from minigrpo.packing import PackedGroups, pack, tree_loss, unpack
from minigrpo.steps import intermediate_proportion, path_depth, step_sizes

PATIENCE = 5  # updates that must go wrong before a warning
MISMATCH = {"float32": 1e-3, "bfloat16": 0.1}  # nats a token; rounding was up to 1e-6 and 0.02 on small models
CHECKPOINT = "checkpoint.safetensors"
COLUMNS = ("update", "reward", "entropy", "capped", "zero_variance")  # that a run needs of its metrics to go on


def train(
    settings: Settings, out: str | Path, *, resume: bool = False, progress: bool = True, tell: bool = False
) -> bool:
    """Fine-tune a model and leave `manifest.json`, `metrics.jsonl`, `rollouts.jsonl` and checkpoints in a folder.

    A row of metrics describes the model after `update` optimiser rounds: its samples, what the next round did with
    them, and its held-out accuracy where it was evaluated; the last row, `update` = updates, has no round after it.
    SIGTERM and Ctrl-C end the run after the round in progress, with a checkpoint.

    Args: settings; out: the run's folder; resume: go on from its last checkpoint; progress: show a bar; tell: say on
        stderr what was found at the start.
    Returns: whether the run reached its end.
    Raises: ValueError for a model or task that can't be had, a prompt that leaves no room for an answer, settings other
        than the checkpoint's, a run that is not whole, or a loss that is no number; FileExistsError where `out` holds a
        run and `resume` is False; OSError where it can't be written.
    """
    out = Path(out)
    check_folder(out, settings, resume)
    saved = read_manifest(out) if resume else {}
    date = date_of(saved, out)
    torch.manual_seed(settings.seed)  # of the adapters' first weights
    task = load_task(settings.task, train_size=settings.train_size, heldout_size=settings.eval_size)
    loaded = load_model(settings.model, device=settings.device)
    loaded = fix_date(loaded, date)
    facts = found(loaded, task, settings, longest_prompt(loaded, task, settings.max_new_tokens))
    set_attention(loaded.model, settings.attention)
    model, tokenizer, eos_ids = prepare(loaded.model, settings), loaded.tokenizer, loaded.eos_ids
    reference = reference_of(model, settings)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    with autocast(settings):
        ways, reason = ways_of(loaded.model, settings)
        dropout = settings.lora_dropout > 0 or draws_dropout(loaded.model, probe(loaded.model))
    costs = saved_costs(saved, out) or costs_of(loaded.model)
    why = reason or ("as asked" if len(ways) == 1 else "whichever is cheapest")
    facts |= {"updates": f"{' or '.join(ways)}, {why}"}
    if resume:
        first = load_checkpoint(out, trained, optimizer)
        history = truncate(out, first, settings)
    else:
        first, history = 0, []
        write_json(out / "manifest.json", manifest(settings, loaded, costs, date) | {"found": facts})
    way_of = functools.partial(choose, costs=costs, ways=ways, window=window_of(loaded.model))
    learner = Learner(model, reference, optimizer, settings, way_of)
    if tell:
        for line in found_lines(facts):
            tqdm.write(line, file=sys.stderr)
    elif reason:
        tqdm.write(f"updates are computed {' or '.join(ways)}: {reason}")
    micro_batch = settings.micro_batch
    bar = tqdm(total=settings.updates, initial=first, disable=not progress, desc=settings.objective, unit=" updates")
    with bar, stop_signals() as stop:
        for update in range(first, settings.updates + 1):
            started, last = time.perf_counter(), update == settings.updates
            row: dict[str, Any] = {"update": update}
            evaluated = last or update % settings.eval_every == 0
            if evaluated:
                row |= held_out(model, tokenizer, task, settings)
                started = time.perf_counter()

            # 1. Sample a group for each prompt, and let the verifier reward it.
            torch.manual_seed(settings.seed * 1_000_003 + update)  # of dropout
            problems = problems_of(task, settings, update)
            model.eval()
            samples = sample_completions(
                model,
                encode_prompts(tokenizer, problems["prompt"], task.system_prompt),
                group_size=settings.group_size,
                max_new_tokens=settings.max_new_tokens,
                eos_ids=eos_ids,
                pad_id=tokenizer.pad_token_id,
                temperature=settings.temperature,
                top_p=settings.top_p,
                generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + update),
            )
            texts = decode(tokenizer, samples.completion_ids, samples.completion_mask, eos_ids)
            answers = [answer for answer in problems["answer"] for _ in range(settings.group_size)]
            scores = [task.reward(text, answer) for text, answer in zip(texts, answers, strict=True)]
            rewards = torch.tensor(scores, device=samples.old_logps.device).view(-1, settings.group_size)  # (P, G)
            row |= describe(samples, rewards, eos_ids)
            if evaluated:
                append(out / "rollouts.jsonl", first_group(update, problems, texts, samples, rewards))

            # 2. The objective turns rewards and shared prefixes into advantages and step weights; 3. descend, μ times.
            gaps: list[float] = []
            if not last:
                objective = OBJECTIVES[settings.objective]
                tensors = objective(rewards, samples.completion_ids, samples.completion_mask, scale=settings.scale)
                model.train()
                for _ in range(settings.iterations):
                    learned, micro_batch = descend(learner, samples, tensors, micro_batch)
                    gaps.append(learned.pop("gap"))
                row |= learned
            seconds = time.perf_counter() - started
            row |= {"tokens_per_second": row["tokens"] / seconds, "seconds": seconds, "memory_gb": memory_gb(settings)}
            history.append(row)
            row["warnings"] = warnings_of(history, settings) + mismatch(gaps, settings, dropout)
            append(out / "metrics.jsonl", row)
            for warning in row["warnings"]:
                tqdm.write(f"update {update}: {warning}")
            bar.set_postfix({name: f"{row[name]:.2f}" for name in ("reward", "eval_accuracy") if name in row})
            bar.update(not last)
            if stop or last or (update + 1) % settings.save_every == 0:
                save_checkpoint(out, update + 1, trained, optimizer)
            if stop and not last:
                return False
    return True


@dataclass(frozen=True)
class Learner:
    """What stays the same from update to update."""

    model: nn.Module  # with its adapters
    reference: nn.Module | None  # where the KL term needs one and there are no adapters
    optimizer: torch.optim.Optimizer
    settings: Settings
    way_of: Callable[[Samples, PackedGroups], str]  # names one of FORWARDS


def descend(
    learner: Learner, samples: Samples, tensors: tuple[Tensor, Tensor], micro_batch: int
) -> tuple[dict[str, float], int]:
    """One optimiser step on a batch, in micro-batches with one denominator: the whole batch's tokens.

    Args: tensors: advantages and step_weights (P, G, T); micro_batch: rows at a time.
    Returns: loss, gradient norm, mean ratio, gap and KL, and the micro-batch that fitted: where memory runs out it is
        halved and the step begins anew, with the same gradient.
    Raises: ValueError for a loss or gradient that is no number; torch.OutOfMemoryError where one row is too much.
    """
    optimizer, settings = learner.optimizer, learner.settings
    while True:
        try:
            learned = _accumulate(learner, samples, tensors, micro_batch)
            break
        except torch.OutOfMemoryError:
            if micro_batch == 1:
                raise
            micro_batch = -(-micro_batch // 2)
            tqdm.write(f"out of memory: going on with micro_batch {micro_batch}, which leaves the gradient as it is")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, settings.max_grad_norm).item()
    if not (math.isfinite(learned["loss"]) and math.isfinite(norm)):
        raise ValueError(
            f"learning_rate {settings.learning_rate:g} broke the run: loss {learned['loss']}, gradient norm {norm}; "
            "the last checkpoint is whole"
        )
    optimizer.step()
    return learned | {"grad_norm": norm}, micro_batch


def _accumulate(learner: Learner, samples: Samples, tensors: tuple[Tensor, Tensor], micro_batch: int) -> dict[str, Any]:
    """Leave the gradient of the whole batch's loss in the weights; return loss, ratio, KL and the passes of each way.

    And the gap, the mean of |ln π_θ − ln π_old|: the mean ratio is 1 on average even where the two are different.

    Groups whose advantages are all 0 have no gradient where β is 0: they are left out, of the ratio too.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    settings = learner.settings
    causal = learner.model.get_base_model() if settings.lora_rank else learner.model
    advantages, step_weights = tensors
    mask = samples.completion_mask
    num_tokens = mask.sum()
    if settings.aggregation == "seq-mean":  # each row's mean: the token mean of weights that make rows count alike
        step_weights = step_weights * num_tokens / (mask.sum(dim=-1, keepdim=True) * mask[..., 0].numel())
    pushed = (advantages != 0).flatten(1).any(dim=1) | (settings.beta > 0)  # (P,), the other groups have no gradient
    pushed[0] |= ~pushed.any()
    seen = mask[pushed].sum()
    totals = dict.fromkeys(("loss", "ratio", "gap") + ("kl",) * (settings.beta > 0), 0.0)
    passes = dict.fromkeys(FORWARDS, 0)
    for groups, completions in micro_batches(samples, pushed.nonzero()[:, 0], micro_batch):
        part = select(samples, groups, completions)
        T = part.completion_ids.shape[2]
        pushes = [tensor[groups][:, completions, :T] for tensor in (advantages, step_weights)]
        packed = pack(part.prompt_ids, part.prompt_mask, part.completion_ids, part.completion_mask)
        way = learner.way_of(part, packed)
        with autocast(settings):
            logps = logps_of(causal, part, packed, way, settings)
            ref_logps = reference_logps(learner, part, packed, way)
        options = {"epsilon": settings.epsilon, "beta": settings.beta, "ref_logps": ref_logps}
        if way == "packed":
            loss = tree_loss(logps, part.old_logps, *pushes, packed, **options, num_tokens=num_tokens)
            logps, ref_logps = (x if x is None else unpack(x, packed) for x in (logps.detach(), ref_logps))
        else:
            loss = policy_loss(logps, part.old_logps, *pushes, part.completion_mask, **options, num_tokens=num_tokens)
        loss.backward()
        passes[way] += 1
        kept = part.completion_mask
        totals["loss"] += loss.item()
        change = (logps.detach() - part.old_logps)[kept]
        totals["ratio"] += (change.exp().sum() / seen).item()
        totals["gap"] += (change.abs().sum() / seen).item()
        if ref_logps is not None:
            totals["kl"] += (kl_k3(logps.detach(), ref_logps)[kept].sum() / seen).item()
    return totals | {"passes": passes}


def autocast(settings: Settings) -> torch.autocast:
    """bfloat16 in matrix products where the settings ask for it."""
    return torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=settings.dtype == "bfloat16")


def logps_of(model: PreTrainedModel, part: Samples, packed: PackedGroups, way: str, settings: Settings) -> Tensor:
    """ln π_θ by one of FORWARDS: (P, N), of the nodes, where packed, else (P, G, T)."""
    if way == "packed":
        return packed_logps(model, packed, temperature=settings.temperature)
    forward = {"padded": padded_logps, "shared": shared_logps}[way]
    return forward(model, part, temperature=settings.temperature)


def prepare(model: nn.Module, settings: Settings) -> nn.Module:
    """Put LoRA adapters on all linear layers where asked, and turn on gradient checkpointing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names, here and in peft, that work in all of transformers 5
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        if settings.lora_rank:
            from peft import LoraConfig, get_peft_model  # heavy, and only some runs need it

            config = LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            return get_peft_model(model, config)
    return model.requires_grad_(True)


def set_attention(model: PreTrainedModel, kind: str) -> None:
    """Switch the model's attention; "default" is its own, with blocks for packed trees where that is sdpa.

    Raises: ValueError for one that it lacks.
    """
    if kind == "default":
        own = model.config._attn_implementation
        kind = TREE if own == "sdpa" else own
    try:
        model.set_attn_implementation(kind)
    except ValueError as error:
        raise ValueError(f"attention {kind!r} is not there for {type(model).__name__}: leave it at default") from error


def reference_of(model: nn.Module, settings: Settings) -> nn.Module | None:
    """A frozen copy of the model that starts, where the KL term needs one: LoRA has it in the disabled adapter."""
    if settings.beta == 0 or settings.lora_rank:
        return None
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def reference_logps(learner: Learner, part: Samples, packed: PackedGroups, way: str) -> Tensor | None:
    """ln π_ref in the shape of `logps_of`, or None where β is 0."""
    model, settings = learner.model, learner.settings
    if settings.beta == 0:
        return None
    if learner.reference is not None:
        return logps_of(learner.reference, part, packed, way, settings)
    model.eval()  # the reference draws no dropout
    with model.disable_adapter():
        ref_logps = logps_of(model.get_base_model(), part, packed, way, settings)
    model.train()
    return ref_logps


def problems_of(task: Task, settings: Settings, update: int) -> dict[str, list[str]]:
    """The prompts of one update: the training problems in an order that is shuffled anew for each pass."""
    size = len(task.train)
    places = range(update * settings.prompts, (update + 1) * settings.prompts)

    def order(epoch: int) -> Tensor:
        return torch.randperm(size, generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))

    return task.train[[int(order(place // size)[place % size]) for place in places]]


def held_out(model: nn.Module, tokenizer: Any, task: Task, settings: Settings) -> dict[str, float]:
    """Greedy accuracy on the held-out problems, as columns of metrics."""
    result = evaluate(model, tokenizer, task, max_new_tokens=settings.max_new_tokens)
    return {f"eval_{name}": result[name] for name in ("accuracy", "ci_low", "ci_high", "problems")}


def describe(samples: Samples, rewards: Tensor, eos_ids: Collection[int]) -> dict[str, float]:
    """What the samples are like: reward, entropy (−mean ln π, an estimate), length, and how much a group shares.

    A completion is capped where none of `eos_ids` ended it.
    """
    ids, mask = samples.completion_ids, samples.completion_mask
    lengths = mask.sum(dim=-1).float()
    ended = (torch.isin(ids, torch.tensor(sorted(eos_ids), dtype=ids.dtype, device=ids.device)) & mask).any(dim=-1)
    columns = {
        "reward": rewards.mean(),
        "entropy": -samples.old_logps[mask].mean(),
        "length": lengths.mean(),
        "capped": (~ended).float().mean(),
        "zero_variance": (rewards == rewards[:, :1]).all(dim=1).float().mean(),
        "path_depth": path_depth(ids, mask).float().mean(),
        "intermediate_proportion": intermediate_proportion(ids, mask).mean(),
        "step_size": step_sizes(ids, mask)[mask].float().mean(),
        "tokens": mask.sum(),
    }
    return {name: value.item() for name, value in columns.items()}


def warnings_of(history: list[dict], settings: Settings) -> list[str]:
    """Say in plain words what keeps a run from learning, once it has lasted PATIENCE updates."""
    last = history[-PATIENCE:]
    if len(last) < PATIENCE:
        return []
    found = []
    if all(row["zero_variance"] == 1 for row in last):
        found.append(
            f"in the last {PATIENCE} updates every group had equal rewards, so the loss is exactly 0 and nothing is "
            "learned: take easier or harder problems, larger groups or a higher temperature"
        )
    if all(row["entropy"] < 0.01 for row in last):
        found.append("the entropy is gone: all completions of a group are alike; lower the learning rate or raise beta")
    if all(row["capped"] > 0.9 for row in last):
        found.append(
            f"nearly all completions end at max_new_tokens ({settings.max_new_tokens}) and not by themselves: raise it"
        )
    return found


def mismatch(gaps: list[float], settings: Settings, dropout: bool) -> list[str]:
    """Say where the first pass on a batch gives other log-probs than its sampling did, beyond what rounding does.

    Args: gaps: mean |ln π_θ − ln π_old| in nats of each pass, of which the first has the weights that sampled; dropout:
        whether the model draws any, which makes a difference of its own.
    """
    limit = MISMATCH[settings.dtype]
    if not gaps or dropout or gaps[0] <= limit:
        return []
    return [
        f"the log-probs of sampling and of training differ by {gaps[0]:.2g} nats a token under the same weights, and "
        f"rounding in {settings.dtype} explains {limit:g}: the gradient is not that of the policy that sampled"
    ]


def first_group(
    update: int, problems: dict[str, list[str]], texts: list[str], samples: Samples, rewards: Tensor
) -> dict[str, Any]:
    """One group as a line of rollouts.jsonl."""
    lengths = samples.completion_mask[0].sum(dim=-1).tolist()
    rows = zip(samples.completion_ids[0].tolist(), lengths, strict=True)
    return {
        "update": update,
        "prompt": problems["prompt"][0],
        "completions": texts[: len(lengths)],
        "completion_ids": [ids[:length] for ids, length in rows],
        "rewards": rewards[0].tolist(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The run's folder
# ---------------------------------------------------------------------------------------------------------------------


def check_folder(out: Path, settings: Settings, resume: bool) -> None:
    """Refuse a folder that holds a run, or, to resume, one that holds none or another run's."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder")
    if not resume:
        if (out / "manifest.json").exists():
            raise FileExistsError(f"{out} holds a run already: resume it, or name another folder")
        rest = [name for name in ("metrics.jsonl", "rollouts.jsonl", CHECKPOINT) if (out / name).exists()]
        if rest:  # without its manifest.json: rows would be added to those of another run
            raise FileExistsError(f"{out} holds {rest[0]} of another run: name another folder")
        return
    if not (out / "manifest.json").exists():
        raise ValueError(f"{out} holds no run to resume: manifest.json is missing")
    ours = dataclasses.asdict(settings)
    saved = dataclasses.asdict(Settings()) | read_manifest(out)["settings"]  # a field that came later has its default
    other = [f"{name} {saved[name]!r}, not {value!r}" for name, value in ours.items() if saved[name] != value]
    if other:
        raise ValueError(f"{out} was made with other settings: {'; '.join(other)}")


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest.json of a run. Raises: ValueError, with the path in it, where it is missing or not a run's."""
    path = run / "manifest.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: {run} is not the folder of a run")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(f"{path} is not whole: {reason_of(error)}") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("settings"), dict):
        raise ValueError(f"{path} holds no settings of this version of minigrpo: it is not a run's")
    return saved


def saved_costs(saved: dict[str, Any], run: Path) -> Costs | None:
    """The costs in a manifest, None where there are none, as in older runs."""
    if "costs" not in saved:
        return None
    try:
        return Costs(**{name: float(value) for name, value in saved["costs"].items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{run / 'manifest.json'} holds no costs of this version of minigrpo: {error}") from error


def date_of(saved: dict[str, Any], run: Path) -> datetime.date:
    """The day on which a run was started; today for one that starts, or is older than this entry."""
    if "date" not in saved:
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(saved["date"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{run / 'manifest.json'} holds no date: {error}") from error


def manifest(settings: Settings, loaded: LoadedModel, costs: Costs, date: datetime.date) -> dict[str, Any]:
    """What one needs to know to run it again."""
    revision = ""
    if git := shutil.which("git"):
        command = [git, "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
        revision = done.stdout.strip()
    device = torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else platform.machine()
    return {
        "settings": dataclasses.asdict(settings),
        "model_source": loaded.source,
        "model_note": loaded.note,
        "device": device,
        "threads": torch.get_num_threads(),
        "costs": dataclasses.asdict(costs),
        "date": date.isoformat(),
        "git_revision": revision or None,
        "versions": {"python": platform.python_version()}
        | {"minigrpo": __version__, "torch": str(torch.__version__)}
        | {name: version(name) for name in ("transformers", "datasets")},
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a line of JSON to a file. Raises: OSError, with the path in it, where there is no space left."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror}; the last checkpoint is whole") from error


def truncate(out: Path, first: int, settings: Settings) -> list[dict[str, Any]]:
    """Drop the rows of updates that come after a checkpoint, which will be made again; return those of metrics.jsonl.

    Args: first: the update to go on from.
    Raises: ValueError, before anything is dropped, where a row of an update before it is missing or damaged.
    """
    evaluated = [k for k in range(first) if k == settings.updates or k % settings.eval_every == 0]
    metrics = rows_before(out / "metrics.jsonl", list(range(first)), COLUMNS)
    rollouts = rows_before(out / "rollouts.jsonl", evaluated, ("update",))
    for name, rows in (("metrics.jsonl", metrics), ("rollouts.jsonl", rollouts)):
        write_bytes(out / name, b"".join(line + b"\n" for line, _ in rows))
    return [row for _, row in metrics]


def rows_before(path: Path, updates: list[int], columns: tuple[str, ...]) -> list[tuple[bytes, dict[str, Any]]]:
    """The first lines of a file, one for each of some updates, with their rows; what comes after them may be cut.

    Raises: ValueError with the path, and the line where it is not the row of its update with numbers as columns.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: the run can't go on without its rows")
    lines = path.read_bytes().splitlines()
    found = []
    for number, (update, line) in enumerate(zip(updates, lines, strict=False), start=1):
        try:
            row = json.loads(line)
            whole = row["update"] == update and all(isinstance(row[name], int | float) for name in columns)
        except (ValueError, TypeError, LookupError):  # no JSON, no object, no such column
            whole = False
        if not whole:
            raise ValueError(f"{path}, line {number}: not the row of update {update}, so the run can't go on")
        found.append((line, row))
    if len(found) < len(updates):
        missing = updates[len(found)]
        raise ValueError(f"{path} ends before update {missing}, and the checkpoint is of later: the run can't go on")
    return found


def save_checkpoint(out: Path, update: int, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Write weights and the optimiser's moments as one safetensors file, whole, and drop the one before.

    Raises: OSError, with the path in it, where there is no space left.
    """
    tensors = {f"weight.{name}": weight.detach().contiguous() for name, weight in trained.items()}
    for name, weight in trained.items():
        tensors |= {f"{key}.{name}": value.contiguous() for key, value in optimizer.state[weight].items()}
    path, unfinished = out / CHECKPOINT, out / f".{CHECKPOINT}"
    try:
        save_file(tensors, unfinished, metadata={"update": str(update)})
    except (SafetensorError, OSError) as error:
        unfinished.unlink(missing_ok=True)  # it takes the space that there is
        raise OSError(f"{path} can't be written: {error}; the one before stays, if there is one") from error
    os.replace(unfinished, path)


def load_checkpoint(out: Path, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Take weights and moments from a checkpoint; return the update to go on from.

    Raises: ValueError for a file that is missing, cut short or another model's.
    """
    path = out / CHECKPOINT
    if not path.exists():
        raise ValueError(f"{out} holds no checkpoint yet: start it anew in another folder")
    try:
        with safe_open(path, framework="pt") as file:
            update = (file.metadata() or {}).get("update", "")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read, it may be cut short: {error}") from error
    if not update.isdecimal() or int(update) == 0:
        raise ValueError(f"{path} doesn't say of which update it is: it was saved by another program")
    shapes = {f"weight.{name}": weight.shape for name, weight in trained.items()}
    for name, weight in trained.items():
        if f"step.{name}" in tensors:
            shapes |= {f"step.{name}": (), f"exp_avg.{name}": weight.shape, f"exp_avg_sq.{name}": weight.shape}
    if {key: tensor.shape for key, tensor in tensors.items()} != shapes:
        raise ValueError(f"{path} is another model's: its weights have other names or shapes")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(tensors[f"weight.{name}"])
            if f"step.{name}" in tensors:  # copied: what is read stands in the file, which the next checkpoint replaces
                moments = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {key: moment.to(weight.device, copy=True) for key, moment in moments.items()}
    return int(update)


def memory_gb(settings: Settings) -> float | None:
    """The most memory the run has held: the device's on CUDA, the process's elsewhere, None where that isn't known."""
    if settings.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(settings.device) / 1e9
    if sys.platform == "win32":
        return None
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C in a list instead of ending at once; a second Ctrl-C ends at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        tqdm.write("stopping after this update, with a checkpoint (once more: stop now)")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
