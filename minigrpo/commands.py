"""What all command lines do alike: a user's mistake becomes one sentence, and Ctrl-C ends without a traceback."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable

OURS = ("minigrpo", "grader")
INTERRUPTED = 130  # exit code after Ctrl-C


def run(arguments: argparse.Namespace, call: Callable[[argparse.Namespace], int], program: str, left: str) -> int:
    """Call a command with its arguments.

    Args: program: named before `arguments.command` in messages; left: what is said after Ctrl-C.
    Returns: the command's code; 2 after one sentence for a user's mistake or a missing package; INTERRUPTED for Ctrl-C.
    """
    name = f"{program} {arguments.command}"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's own takes every letter
            stream.reconfigure(errors="backslashreplace")  # one that lacks a letter shows its number
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
