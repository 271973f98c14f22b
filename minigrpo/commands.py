"""What all command lines do alike: a user's mistake becomes one sentence, and Ctrl-C ends without a traceback."""

from __future__ import annotations

import argparse
import io
import sys

OURS = ("minigrpo", "grader")
INTERRUPTED = 130  # exit code after Ctrl-C


def run(arguments: argparse.Namespace, program: str, interrupted: str) -> int:
    """Call `arguments.run(arguments)`.

    Args: program: named before `arguments.command` in messages; interrupted: what Ctrl-C leaves, in words.
    Returns: its code; 2 after one sentence for a user's mistake or a missing package; INTERRUPTED after Ctrl-C.
    """
    name = f"{program} {arguments.command}"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's own takes every letter
            stream.reconfigure(errors="replace")  # one that has no λ shows ? for it
    try:
        return arguments.run(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in OURS:
            raise  # no package that one could install
        print(f"{name}: the package {missing} is missing: pip install 'minigrpo[plots,llm,notebooks]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
