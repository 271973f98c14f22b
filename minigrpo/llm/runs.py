"""The folder of a run, both ways: what `train` writes, and what everything else reads. No other module knows its files.

    manifest.json             settings, model, versions, costs: what one needs to know to run it again
    metrics.jsonl             a row per update; docs/metrics.md explains each column
    rollouts.jsonl            the first group of each update at which the model was evaluated
    checkpoint.safetensors    weight.NAME of each trained weight, and AdamW's step.NAME, exp_avg.NAME, exp_avg_sq.NAME

A folder can be read without transformers and safetensors, so they are imported where they are needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigrpo import __version__
from minigrpo.files import METRICS, write_bytes, write_json
from minigrpo.llm.settings import Settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from minigrpo.llm.forward import ForwardCosts
    from minigrpo.llm.models import LoadedModel

MANIFEST = "manifest.json"
ROLLOUTS = "rollouts.jsonl"
CHECKPOINT = "checkpoint.safetensors"

# columns without which a run can't go on
NEEDED = ("update", "reward", "entropy", "capped", "zero_variance")
RENAMED = {"update": "forward"}  # settings by the names that manifests of earlier versions have


# ---------------------------------------------------------------------------------------------------------------------
# Start, and go on
# ---------------------------------------------------------------------------------------------------------------------


def check_new(run: Path) -> None:
    """Refuse a folder that holds a run already. Raises: FileExistsError; ValueError where it is a file."""
    _refuse_file(run)
    if has_manifest(run):
        raise FileExistsError(f"{run} holds a run already: resume it, or name another folder")
    for name in (METRICS, ROLLOUTS, CHECKPOINT):
        # without its manifest: rows would be added to those of another run
        if (run / name).exists():
            raise FileExistsError(f"{run} holds {name} of another run: name another folder")


def check_resumable(run: Path, settings: Settings) -> None:
    """Refuse to go on with a folder that holds no run, or one with other settings. Raises: ValueError."""
    _refuse_file(run)
    if not has_manifest(run):
        raise ValueError(f"{run} holds no run to resume: {MANIFEST} is missing")
    # a field that came later has its default
    saved = dataclasses.asdict(Settings()) | saved_settings(run)
    ours = dataclasses.asdict(settings)
    other = [
        f"{name} {saved[name]!r}, not {value!r}"
        for name, value in ours.items()
        if saved[name] != value
    ]
    if other:
        raise ValueError(f"{run} was made with other settings: {'; '.join(other)}")


def _refuse_file(run: Path) -> None:
    """Refuse a file in the place of a folder. Raises: ValueError."""
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file, expected a folder")


def has_checkpoint(run: Path) -> bool:
    """Whether a run has written a checkpoint yet."""
    return (run / CHECKPOINT).exists()


@contextlib.contextmanager
def held(run: Path) -> Generator[None]:
    """Keep a run's folder to this process, so that no other writes into it; made where it is missing.

    Windows has no lock of this kind: there nothing is kept.

    Raises: ValueError where another process has it, or where it is a file; OSError where it can't be made.
    """
    _refuse_file(run)
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    folder = None
    try:
        if fcntl is not None:
            folder = os.open(run, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{run} is being trained by another process: wait for it, or name another folder"
                ) from error
        yield
    finally:
        if folder is not None:
            os.close(folder)
        if made and not any(run.iterdir()):  # refused before anything was written
            run.rmdir()


def can_resume(run: Path) -> bool:
    """Whether a folder holds a run with a checkpoint to go on from."""
    return has_manifest(run) and has_checkpoint(run)


def is_done(run: Path, settings: Settings) -> bool:
    """Whether a folder holds all rows of these settings' run, with its last checkpoint or without."""
    if not (has_manifest(run) and has_metrics(run)):
        return False
    check_resumable(run, settings)
    last = (run / METRICS).read_bytes().splitlines()[-1:]  # a run that was killed may have cut it
    return any(_whole_row(line, settings.updates, NEEDED) is not None for line in last)


def clear_unsaved(run: Path) -> None:
    """Clear away what a run left that has no checkpoint: it can only begin anew. Rows without a manifest stay."""
    if not has_manifest(run) or has_checkpoint(run):
        return
    for name in (
        METRICS,
        ROLLOUTS,
        MANIFEST,
    ):  # the manifest last: without it the others would stay
        (run / name).unlink(missing_ok=True)


def rewind(run: Path, update: int, settings: Settings) -> list[dict[str, Any]]:
    """Drop the rows of updates that come after a checkpoint, which will be made again.

    Args:
        run: the folder.
        update: the one to go on from.
        settings: the run's.

    Returns:
        The rows of metrics.jsonl that stay.

    Raises:
        ValueError: before anything is dropped, where a row of an update before it is missing or damaged.
    """
    updates = list(range(update))
    evaluated = [k for k in updates if k == settings.updates or k % settings.eval_every == 0]
    metrics = _rows_of(run / METRICS, updates, NEEDED)
    rollouts = _rows_of(run / ROLLOUTS, evaluated, ("update",))
    for name, rows in ((METRICS, metrics), (ROLLOUTS, rollouts)):
        write_bytes(run / name, b"".join(line + b"\n" for line, _ in rows))
    return [row for _, row in metrics]


def _rows_of(
    path: Path, updates: list[int], columns: tuple[str, ...]
) -> list[tuple[bytes, dict[str, Any]]]:
    """The first lines of a file, one for each of some updates, with their rows; what comes after them may be cut."""
    if not path.exists():
        raise ValueError(f"{path} is missing: the run can't go on without its rows")
    rows = []
    lines = path.read_bytes().splitlines()
    for number, (update, line) in enumerate(zip(updates, lines, strict=False), start=1):
        row = _whole_row(line, update, columns)
        if row is None:
            raise ValueError(
                f"{path}, line {number}: not the row of update {update}, so the run can't go on"
            )
        rows.append((line, row))
    if len(rows) < len(updates):
        missing = updates[len(rows)]
        raise ValueError(
            f"{path} ends before update {missing}, and the checkpoint is of later: the run can't go on"
        )
    return rows


def _whole_row(line: bytes, update: int, columns: tuple[str, ...]) -> dict[str, Any] | None:
    """The row of an update, with numbers as columns, or None where a line is anything else."""
    try:
        row = json.loads(line)
        numbers = all(isinstance(row[name], int | float) for name in columns)
        return row if numbers and row["update"] == update else None
    except (ValueError, TypeError, LookupError):  # no JSON, no object, no such column
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Write
# ---------------------------------------------------------------------------------------------------------------------


def write_manifest(
    run: Path,
    settings: Settings,
    loaded: LoadedModel,
    costs: ForwardCosts,
    date: datetime.date,
    found: Mapping[str, Any],
) -> None:
    """Write down what one needs to know to run it again.

    Args:
        run: the folder, made where it is missing.
        settings: the run's.
        loaded: the model that it starts from.
        costs: by which the cheapest forward is chosen, so that a resumed run chooses alike.
        date: the day that a chat template shows as today.
        found: facts about model, template and prompts, of `found`.

    Raises:
        OSError: with the path, where it can't be written.
    """
    on_cuda = settings.device.startswith("cuda")
    versions = {
        "python": platform.python_version(),
        "minigrpo": __version__,
        "torch": str(torch.__version__),
    }
    versions |= {name: version(name) for name in ("transformers", "datasets")}
    content = {
        "settings": dataclasses.asdict(settings),
        "model_source": loaded.source,
        "model_note": loaded.note,
        "device": torch.cuda.get_device_name(settings.device) if on_cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "costs": dataclasses.asdict(costs),
        "date": date.isoformat(),
        "git_revision": _git_revision(),
        "versions": versions,
        "found": dict(found),
    }
    write_json(run / MANIFEST, content)


def note_resumed(run: Path, update: int) -> None:
    """Add the update from which a run goes on to `resumed` in its manifest. Raises: ValueError, OSError."""
    manifest = read_manifest(run)
    write_json(run / MANIFEST, manifest | {"resumed": [*manifest.get("resumed", []), update]})


def _git_revision() -> str | None:
    """The commit of this checkout; None where there is no git, or no checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "rev-parse", "HEAD"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return done.stdout.strip() or None


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Add the row of an update. Raises: OSError, with the path, where there is no space left."""
    _append(run / METRICS, row)


def append_rollout(run: Path, group: Mapping[str, Any]) -> None:
    """Add a group: update, prompt, completions, completion_ids and rewards. Raises: as `append_metrics`."""
    _append(run / ROLLOUTS, group)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OSError(
            f"{path} can't be written: {error.strerror}; the last checkpoint is whole"
        ) from error


def save_checkpoint(
    run: Path, update: int, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Write weights and the optimiser's moments as one safetensors file, whole, and drop the one before.

    Args:
        run: the folder.
        update: the one to go on from.
        trained: the trained weights by name.
        optimizer: AdamW over them.

    Raises:
        OSError: with the path, where there is no space left; the checkpoint before stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"weight.{name}": weight.detach().contiguous() for name, weight in trained.items()}
    for name, weight in trained.items():
        tensors |= {
            f"{key}.{name}": value.contiguous() for key, value in optimizer.state[weight].items()
        }
    path = run / CHECKPOINT
    unfinished = run / f".{CHECKPOINT}"
    try:
        save_file(tensors, unfinished, metadata={"update": str(update)})
    except (SafetensorError, OSError) as error:
        unfinished.unlink(missing_ok=True)  # free the space that the partial file takes
        raise OSError(
            f"{path} can't be written: {error}; the one before stays, if there is one"
        ) from error
    os.chmod(
        unfinished, 0o644
    )  # safetensors leaves it to the owner alone; a class's runs are collected by another
    os.replace(unfinished, path)


# ---------------------------------------------------------------------------------------------------------------------
# Read
# ---------------------------------------------------------------------------------------------------------------------


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run. Raises: ValueError, with the path, where it is missing or not a run's."""
    path = run / MANIFEST
    if not path.exists():
        raise ValueError(f"{path} is missing: {run} is not the folder of a run")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(f"{path} is not whole: {error}") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("settings"), dict):
        raise ValueError(f"{path} holds no settings of this version of minigrpo: it is not a run's")
    return saved


def saved_settings(run: Path) -> dict[str, Any]:
    """The settings in a manifest, by the names of today. Raises: as `read_manifest`."""
    saved = read_manifest(run)["settings"]
    return {RENAMED.get(name, name): value for name, value in saved.items()}


def read_settings(run: str | Path) -> Settings:
    """The settings of a run. Raises: ValueError where its manifest is missing or not whole."""
    saved = saved_settings(Path(run))
    try:
        return Settings(**saved)
    except (TypeError, ValueError) as error:
        path = Path(run) / MANIFEST
        raise ValueError(
            f"{path} holds no settings of this version of minigrpo: {error}"
        ) from error


def read_model_name(run: Path) -> str:
    """The model that the manifest of a run, of whatever version, names. Raises: ValueError where it names none."""
    path = run / MANIFEST
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["settings"]["model"])
    except FileNotFoundError as error:
        raise ValueError(f"{path}, which names the model, is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} names no model") from error


def read_costs(run: Path) -> ForwardCosts | None:
    """The costs by which a run chooses its forwards; None where there are none, as in older runs.

    Raises: ValueError, with the path, where they are not those of this version.
    """
    from minigrpo.llm.forward import ForwardCosts

    saved = read_manifest(run)
    if "costs" not in saved:
        return None
    try:
        return ForwardCosts(**{name: float(value) for name, value in saved["costs"].items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{run / MANIFEST} holds no costs of this version of minigrpo: {error}"
        ) from error


def read_date(run: Path) -> datetime.date:
    """The day on which a run was started; today for one that is older than this entry. Raises: ValueError."""
    saved = read_manifest(run)
    if "date" not in saved:
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(saved["date"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{run / MANIFEST} holds no date: {error}") from error


def read_metrics(
    run: str | Path, columns: Sequence[str] = ("update", "reward")
) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl.

    Args:
        run: its folder.
        columns: what each row must have.

    Raises:
        ValueError: for a file that is missing, empty, or at a line no JSON, or no row with these columns.
    """
    path = Path(run) / METRICS
    if not path.exists():
        raise ValueError(f"{path} is missing: {run} is not the folder of a run")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:  # no UTF-8, or no JSON
            raise ValueError(f"{path}, line {number}: {error}") from error
        missing = [name for name in columns if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(
                f"{path}, line {number}: {missing[0]!r} is missing, so it is no row of a run"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: the run in {run} has made no update yet")
    return rows


def has_manifest(run: Path) -> bool:
    """Whether a folder says what run it holds."""
    return (run / MANIFEST).exists()


def has_metrics(run: Path) -> bool:
    """Whether a folder holds rows of a run, with a manifest or without."""
    return (run / METRICS).exists()


def run_folders(folder: Path) -> list[Path]:
    """The folders of runs inside a folder, those that have metrics."""
    return sorted(file.parent for file in folder.glob(f"*/{METRICS}"))


def read_groups(path: str | Path) -> list[dict[str, Any]]:
    """All groups of a run's rollouts.jsonl, each as `read_group` returns it. Raises: as `read_group`."""
    path, lines = _group_lines(path)
    return [_group(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def read_group(path: str | Path, number: int | None = None) -> tuple[dict[str, Any], int, int]:
    """Read one group out of the rollouts.jsonl of a run.

    Args:
        path: that file, or the run's folder.
        number: which line, from 1; None: the first whose rewards differ, or else the first.

    Returns:
        The group, with completion_ids, rewards, and update, prompt where they are; its number; how many there are.

    Raises:
        ValueError: for a file that holds no groups, a line that is none, or a number it does not have.
        OSError: for a file that can't be read.
    """
    path, lines = _group_lines(path)
    if number is not None and not 1 <= number <= len(lines):
        raise ValueError(
            f"group must be from 1 to {len(lines)}, the groups of {path}, got {number}"
        )
    numbers = range(1, len(lines) + 1) if number is None else (number,)
    for k in numbers:
        group = _group(lines[k - 1], f"{path}, line {k}")
        if len(set(group["rewards"])) > 1:
            return group, k, len(lines)
    return _group(lines[numbers[0] - 1], f"{path}, line {numbers[0]}"), numbers[0], len(lines)


def _group_lines(path: str | Path) -> tuple[Path, list[str]]:
    """The file of a run's groups, and its lines."""
    path = Path(path)
    path = path / ROLLOUTS if path.is_dir() else path
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no {ROLLOUTS} of a run: it is not text in UTF-8") from error
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: name a run's folder or its {ROLLOUTS}") from error
    if not lines:
        raise ValueError(f"{path} holds no group: it is empty")
    return path, lines


def _group(line: str, place: str) -> dict[str, Any]:
    """Read a line. Raises: ValueError that begins with the place."""
    try:
        group = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is no JSON: {error}") from error
    if not isinstance(group, dict) or not {"completion_ids", "rewards"} <= set(group):
        raise ValueError(f"{place} is no group: expected an object with completion_ids and rewards")
    ids = group["completion_ids"]
    rewards = group["rewards"]
    if not _is_list(ids, list) or not all(_is_list(row, int) for row in ids):
        raise ValueError(f"{place}: completion_ids must be lists of token ids, got {str(ids)[:60]}")
    if not _is_list(rewards, (int, float)) or len(rewards) != len(ids):
        raise ValueError(
            f"{place}: rewards must be {len(ids)} numbers, one a completion, got {str(rewards)[:60]}"
        )
    return group


def _is_list(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is a list of one kind of thing; True and False are no numbers."""
    return isinstance(value, list) and all(
        isinstance(x, kind) and not isinstance(x, bool) for x in value
    )


def load_checkpoint(
    run: Path, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Take weights and moments from a checkpoint.

    Args:
        run: the folder.
        trained: the model's trained weights by name; they are overwritten.
        optimizer: AdamW over them; its state is overwritten.

    Returns:
        The update to go on from.

    Raises:
        ValueError: for a file that is missing, cut short or another model's.
    """
    path = run / CHECKPOINT
    if not path.exists():
        raise ValueError(f"{run} holds no checkpoint yet: start it anew in another folder")
    tensors, update = _read_checkpoint(path)
    if not update.isdecimal() or int(update) == 0:
        raise ValueError(
            f"{path} doesn't say of which update it is: it was saved by another program"
        )
    if {key: tensor.shape for key, tensor in tensors.items()} != _checkpoint_shapes(
        trained, tensors
    ):
        raise ValueError(f"{path} is another model's: its weights have other names or shapes")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(tensors[f"weight.{name}"])
            if f"step.{name}" in tensors:
                # Copied: what was read stands in the file, which the next checkpoint replaces.
                moments = {
                    key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
                optimizer.state[weight] = {
                    key: moment.to(weight.device, copy=True) for key, moment in moments.items()
                }
    return int(update)


def checkpoint_weights(run: Path) -> dict[str, Tensor]:
    """The trained weights of a run's last checkpoint by name, on the CPU. Raises: OSError where there is none."""
    from safetensors import safe_open

    with safe_open(run / CHECKPOINT, framework="pt") as file:
        names = [key.removeprefix("weight.") for key in file.keys() if key.startswith("weight.")]
        return {name: file.get_tensor(f"weight.{name}") for name in names}


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a checkpoint, and what it says of its update."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            update = (file.metadata() or {}).get("update", "")
            return {key: file.get_tensor(key) for key in file.keys()}, update
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read, it may be cut short: {error}") from error


def _checkpoint_shapes(
    trained: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The keys and shapes that a checkpoint of these weights has; a weight without a gradient so far has no moments."""
    shapes: dict[str, Any] = {}
    for name, weight in trained.items():
        shapes[f"weight.{name}"] = weight.shape
        if f"step.{name}" in tensors:
            shapes |= {
                f"step.{name}": (),
                f"exp_avg.{name}": weight.shape,
                f"exp_avg_sq.{name}": weight.shape,
            }
    return shapes


def load_run(run: str | Path, settings: Settings) -> tuple[LoadedModel, int]:
    """The model of a run with the weights, or the adapters, of its last checkpoint.

    Args:
        run: its folder.
        settings: its own, on whatever device.

    Returns:
        The model, and the number of updates behind it.

    Raises:
        ValueError: for a checkpoint that is missing, cut short or another model's; as `load_model`.
    """
    from minigrpo.llm.models import load_model
    from minigrpo.llm.prompts import fix_date
    from minigrpo.llm.update import prepare, trained_weights

    run = Path(run)
    if not has_checkpoint(run):
        raise ValueError(f"{run / CHECKPOINT} is missing: the run has written none yet")
    loaded = load_model(settings.model, device=settings.device)
    loaded = fix_date(loaded, read_date(run))
    model = prepare(loaded.model, settings)
    trained = trained_weights(model)
    update = load_checkpoint(run, trained, torch.optim.AdamW(trained.values()))
    return dataclasses.replace(loaded, model=model.eval()), min(update, settings.updates)
