"""What all command lines do alike: a user's mistake becomes one sentence, and Ctrl-C keeps what was finished.

One protocol for work that may be interrupted, in the toy experiments and on language models:
- What returns one thing says in it whether it reached its end: `TrainResult.finished`, the bool of llm's `train`.
- What makes rows is a generator that *returns* whether it reached its end: False after a signal that a piece of its
  work caught to keep what it had. `collect` takes its rows, and ends as well at a Ctrl-C that comes between them.
- No function raises KeyboardInterrupt by itself: where it arrives, somebody pressed Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

OURS = ("minigrpo", "grader")
INTERRUPTED = 130  # exit code after Ctrl-C

Row = TypeVar("Row")


def run(
    arguments: argparse.Namespace,
    call: Callable[[argparse.Namespace], int],
    program: str,
    left: str,
) -> int:
    """Call a command with its arguments.

    Args:
        arguments: of the command line; `command` is its name.
        call: what to do with them; it returns the exit code.
        program: named before the command in messages.
        left: what is said after Ctrl-C.

    Returns:
        The command's code; 2 after one sentence for a user's mistake or a missing package; INTERRUPTED for Ctrl-C.
    """
    name = f"{program} {arguments.command}"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's own takes every letter
            # one that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        return call(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in OURS:
            raise  # no package that one could install
        advice = "pip install 'minigrpo[plots,llm,notebooks]' brings what the commands need"
        print(f"{name}: the package {missing} is missing; {advice}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {left}", file=sys.stderr)
        return INTERRUPTED


def collect(
    work: Generator[Row, None, bool], seen: Callable[[Row], object] = lambda row: None
) -> tuple[list[Row], bool]:
    """Take rows as they are finished.

    Args:
        work: makes the rows, and returns whether it reached its end.
        seen: called with each row at once.

    Returns:
        The rows, and whether they are all.

    Raises:
        KeyboardInterrupt: for a Ctrl-C before the first row.
    """
    rows: list[Row] = []
    finished = False

    def whole() -> Iterator[Row]:
        nonlocal finished
        finished = yield from work

    try:
        for row in whole():
            rows.append(row)
            seen(row)
    except KeyboardInterrupt:
        if not rows:
            raise
    return rows, finished
