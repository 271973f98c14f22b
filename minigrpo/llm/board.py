"""All runs at a glance: what each is, how far it got, what it warns of, and when it will be done.

A board is read while runs are written, copied and killed: what can't be read becomes a line that says so. Runs of
labs/gpu/train.py are found by the state that TRL saves with a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.files import METRICS
from minigrpo.llm.runs import CHECKPOINT, MANIFEST, read_manifest, saved_settings
from minigrpo.text import sparkline, text_table

STATE = "trainer_state.json"  # TRL's, in each checkpoint
RECIPE = "recipe.json"  # labs/gpu/train.py's
RECENT = 10  # updates whose mean is shown
PATIENCE = 120  # seconds without a word, and as many updates' time as `SLOW` says, after which a run is silent
SLOW = 5
DEEP = 4  # folders below the one named
MOST = 50_000_000  # bytes of a file that are read
LARGEST = 1e12  # of what is shown
SHOWN = (
    *("update", "reward", "seconds", "tokens_per_second"),
    *("eval_accuracy", "eval_ci_low", "eval_ci_high"),
)


@dataclass(frozen=True)
class Line:
    """A run on the board; None where it is not known."""

    name: str
    state: str  # running, done, stopped, silent, starting, unreadable
    objective: str = "?"
    seed: int | None = None
    update: int | None = None
    updates: int | None = None
    reward: float | None = None  # mean of the last RECENT updates
    rewards: list[float] = field(default_factory=list)
    accuracy: float | None = None  # held out, the last
    ci_low: float | None = None
    ci_high: float | None = None
    first: float | None = None  # held out, before training
    tokens_per_second: float | None = None
    minutes_left: float | None = None
    resumed: int = 0  # times
    notes: tuple[str, ...] = ()  # warnings of the last update, and what is wrong with the folder


# ---------------------------------------------------------------------------------------------------------------------
# Find and read
# ---------------------------------------------------------------------------------------------------------------------


def read_board(paths: Sequence[Path], now: float | None = None) -> list[Line]:
    """Read all runs in and below some folders.

    Args:
        paths: folders; links inside them are not followed.
        now: seconds since 1970, to tell a running run from a silent one; None: now.

    Returns: a line a run, perhaps none.

    Raises: ValueError for a path that is no folder.
    """
    now = time.time() if now is None else now
    lines = []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder: name one that holds runs")
        for run in _runs_below(path):
            relative = run.relative_to(path).as_posix()
            lines.append(_line(run, path.name if relative == "." else relative, now))
    return lines


def _runs_below(folder: Path) -> Iterator[Path]:
    """Folders that look like a run's, in order."""
    for place, inside, files in os.walk(folder):
        here = Path(place)
        inside.sort()
        if {MANIFEST, METRICS, RECIPE} & set(files) or any(
            name.startswith("checkpoint-") for name in inside
        ):
            inside.clear()
            yield here
        elif len(here.relative_to(folder).parts) >= DEEP:
            inside.clear()


def _line(run: Path, name: str, now: float) -> Line:
    """A run, or why it can't be read."""
    try:
        if (run / MANIFEST).exists() or (run / METRICS).exists():
            return _own(run, name, now)
        return _trl(run, name, now)
    except (ValueError, OSError, TypeError, LookupError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        return Line(name, "unreadable", notes=(f"{type(error).__name__}: {why}",))


def _own(run: Path, name: str, now: float) -> Line:
    """A run of `llm train`."""
    _check_files(run / MANIFEST, run / METRICS)
    settings, notes = _settings(run)
    rows, cut = _rows(run / METRICS)
    notes += cut
    updates = _whole(settings.get("updates"))
    line = Line(
        name,
        "starting",
        objective=str(settings.get("objective", "?")),
        seed=_whole(settings.get("seed")),
        updates=updates,
        resumed=len(read_manifest(run).get("resumed", [])) if settings else 0,
        notes=notes,
    )
    quiet = now - max(
        file.stat().st_mtime for file in (run / MANIFEST, run / METRICS) if file.exists()
    )
    if not rows:
        return line if quiet < PATIENCE else dataclasses.replace(line, state="silent")
    return _with_rows(line, rows, quiet, (run / CHECKPOINT).exists())


def _check_files(*files: Path) -> None:
    """Require regular files of a size that can be read. Raises: ValueError."""
    for file in files:
        if file.exists() and not file.is_file():
            raise ValueError(f"{file.name} is no regular file")
        if file.exists() and file.stat().st_size > MOST:
            raise ValueError(f"{file.name} has {file.stat().st_size / 1e6:.0f} MB: it is no run's")


def _settings(run: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the manifest says, or why it says nothing."""
    try:
        return saved_settings(run), ()
    except ValueError as error:
        return {}, (str(error),)


def _rows(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The rows of metrics so far. The last line may be half written; of any other that is no row there is a note."""
    if not path.exists():
        return [], ()
    rows, bad = [], []
    lines = path.read_bytes().splitlines()
    for number, text in enumerate(lines, start=1):
        row = _row(text)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            bad.append(number)
    notes = (f"{path.name}, line {bad[0]}: no row of a run",) if bad else ()
    return rows, notes


def _row(text: bytes) -> dict[str, Any] | None:
    """A row with the numbers that a board needs, or None; what else it shows and is no number is left out."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    row |= {name: _finite(row.get(name)) for name in SHOWN}
    return None if row["update"] is None or row["reward"] is None else row


def _finite(value: Any) -> Any:
    """A number as it is, None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and abs(value) < LARGEST else None


def _whole(value: Any) -> int | None:
    """A whole number as it is, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _with_rows(line: Line, rows: list[dict[str, Any]], quiet: float, saved: bool) -> Line:
    """Fill in what the rows say.

    Args:
        line: what the manifest says.
        rows: of metrics, at least one.
        quiet: seconds since something was written.
        saved: whether there is a checkpoint.
    """
    last, recent = rows[-1], rows[-RECENT:]
    evaluated = [row for row in rows if row["eval_accuracy"] is not None]
    seconds = [row["seconds"] for row in recent if row["seconds"] is not None]
    speeds = [row["tokens_per_second"] for row in recent if row["tokens_per_second"] is not None]
    pace = float(np.mean(seconds)) if seconds else None
    left = None if line.updates is None else line.updates - last["update"]
    held_out = evaluated[-1] if evaluated else {}
    running = quiet < max(PATIENCE, SLOW * (pace or 0))
    if left == 0:
        state = "done"
    elif running:
        state = "running"
    else:
        state = "stopped" if saved else "silent"
    return dataclasses.replace(
        line,
        state=state,
        update=last["update"],
        reward=float(np.mean([row["reward"] for row in recent])),
        rewards=[row["reward"] for row in rows],
        accuracy=held_out.get("eval_accuracy"),
        ci_low=held_out.get("eval_ci_low"),
        ci_high=held_out.get("eval_ci_high"),
        first=evaluated[0]["eval_accuracy"] if evaluated else None,
        tokens_per_second=float(np.mean(speeds)) if speeds else None,
        minutes_left=left * pace / 60 if running and left and pace else None,
        notes=(*line.notes, *_warnings(last), *_stopped(state, quiet)),
    )


def _warnings(row: dict[str, Any]) -> list[str]:
    """What the last update warned of."""
    warnings = row.get("warnings", [])
    return [str(warning) for warning in warnings] if isinstance(warnings, list) else []


def _stopped(state: str, quiet: float) -> list[str]:
    """What to do about a run that no longer moves."""
    if state == "stopped":
        return [
            "it has a checkpoint: a queue goes on by itself, else the same command does, resumed"
        ]
    if state == "silent":
        return [f"no checkpoint, and no word for {quiet / 60:.0f} minutes: look at its log first"]
    return []


def _trl(run: Path, name: str, now: float) -> Line:
    """A run of TRL, as of its last checkpoint."""
    told = run / RECIPE
    _check_files(told)
    recipe = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
    line = Line(
        name,
        "starting",
        objective=str(recipe.get("objective", "?")),
        seed=_whole(recipe.get("seed")),
        notes=("of TRL: as of its last checkpoint",),
    )
    files = [file for file in run.glob(f"checkpoint-*/{STATE}") if file.is_file()]
    if not files:
        return line
    file = max(files, key=lambda path: path.stat().st_mtime)
    _check_files(file)
    state = json.loads(file.read_text(encoding="utf-8"))
    log = state["log_history"]
    rewards = [row["reward"] for row in log if _finite(row.get("reward")) is not None]
    times = [row["step_time"] for row in log[-RECENT:] if _finite(row.get("step_time")) is not None]
    validated = [row["eval_reward"] for row in log if _finite(row.get("eval_reward")) is not None]
    pace = float(np.mean(times)) if times else 0.0
    left = state["max_steps"] - state["global_step"]
    # between two checkpoints nothing is written
    between = state["global_step"] / len(files) * pace
    running = now - file.stat().st_mtime < max(PATIENCE, SLOW * between)
    if left == 0:
        shown = "done"
    else:
        shown = "running" if running else "stopped"
    return dataclasses.replace(
        line,
        state=shown,
        update=state["global_step"],
        updates=state["max_steps"],
        reward=float(np.mean(rewards[-RECENT:])) if rewards else None,
        rewards=rewards,
        accuracy=validated[-1] if validated else None,
        first=validated[0] if validated else None,
        minutes_left=left * pace / 60 if running and left and pace else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Show
# ---------------------------------------------------------------------------------------------------------------------

# what is asked first stands first: a phone shows the first four
HEADER = ("run", "state", "update", "reward", "held out", "left", "objective", "seed", "tok/s", "")


def cells(line: Line, width: int = 12) -> tuple[str, ...]:
    """A run under HEADER.

    Args:
        line: the run.
        width: letters of its curve of rewards.
    """
    rewards = line.rewards
    curve = ""
    if len(rewards) >= width:  # drawn between their own smallest and largest
        low, high = min(rewards), max(rewards)
        curve = sparkline([(value - low) / ((high - low) or 1) for value in rewards], width)
    again = f" ×{line.resumed + 1}" if line.resumed else ""
    return (
        line.name,
        line.state + again,
        "–" if line.update is None else f"{line.update}/{_number(line.updates, 'd')}",
        _number(line.reward, ".2f"),
        _held_out(line),
        "–" if line.minutes_left is None else _time(line.minutes_left),
        line.objective,
        _number(line.seed, "d"),
        _number(line.tokens_per_second, ".0f"),
        curve,
    )


def _number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def _held_out(line: Line) -> str:
    """Accuracy before and now, and the interval of what is now."""
    if line.accuracy is None:
        return "–"
    bounded = line.ci_low is not None and line.ci_high is not None
    span = "" if not bounded else f" [{line.ci_low:.2f}, {line.ci_high:.2f}]"
    return f"{_number(line.first, '.2f')} → {line.accuracy:.2f}{span}"


def _time(minutes: float) -> str:
    """A time that is left."""
    if minutes >= 120:
        return f"{minutes / 60:.0f} h"
    return f"{minutes:.0f} min" if minutes >= 1 else "< 1 min"


def counts(lines: Sequence[Line]) -> str:
    """How many runs there are, and how many in each state."""
    states = [line.state for line in lines]
    each = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{len(lines)} run{'s' * (len(lines) != 1)}: {each}" if lines else "no run yet"


def board_text(lines: Sequence[Line]) -> str:
    """The board for a terminal: a line a run, then what they warn of."""
    if not lines:
        return counts(lines)
    table = text_table(HEADER, [cells(line) for line in lines])
    notes = [f"{line.name}: {note}" for line in lines for note in line.notes]
    return "\n".join([counts(lines), "", table, *([""] if notes else []), *notes])


def write_page(
    path: Path, lines: Sequence[Line], folders: Sequence[Path], refresh: int | None
) -> Path:
    """Write the board as one page with the curves of its runs, for a projector and for a phone.

    Args:
        path: of the page.
        lines: of the board.
        folders: of the runs, for their curves.
        refresh: seconds after which a browser reads it again; None: never.

    Raises: OSError where it can't be written.
    """
    from minigrpo.report import Picture, Table, report

    when = time.strftime("%Y-%m-%d %H:%M")
    blocks: list[Any] = []
    curves = _curves(lines, folders)
    if curves is not None:
        alt = "Held-out accuracy and reward of the runs that are done, a line an objective, over updates."
        blocks.append(Picture(curves, alt))
    blocks.append(Table(HEADER, [cells(line, width=20) for line in lines], when))
    sections = [(counts(lines), blocks)]
    notes = [(line.name, note) for line in lines for note in line.notes]
    if notes:
        sections.append(("What they say", [Table(("run", "note"), notes)]))
    return report(path, sections, "Runs", refresh=refresh, wide=True)


def _curves(lines: Sequence[Line], folders: Sequence[Path]) -> Any:
    """The figure of `llm plot` for the runs that can be read whole; None where there are none."""
    from minigrpo.llm.plots import plot_curves, read_curves

    # of those that are done: the mean of runs that got to different updates would have none in common
    names = {line.name for line in lines if line.accuracy is not None and line.state == "done"}
    runs: list[dict] = []
    for folder in folders:
        for run in _runs_below(folder):
            relative = run.relative_to(folder).as_posix()
            if (folder.name if relative == "." else relative) not in names:
                continue
            try:
                runs += read_curves([run])
            except (ValueError, OSError):
                continue  # the table says what is wrong with it
    return plot_curves(runs) if runs else None
