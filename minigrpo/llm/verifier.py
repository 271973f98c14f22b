"""A helper process for other people's parsers: what hangs, crashes or eats memory there gives a reward of 0 here.

math-verify and reasoning_gym read a model's text with sympy, which evaluates it: a short text such as 9**9**9**9 runs
for hours. math-verify's own time limit is SIGALRM: it works in the main thread only, undoes an alarm that the caller
has set, and doesn't interrupt a long operation on integers. So the work is done in one process that is started on
first use, killed when a call takes too long, and started again. It is no sandbox: don't score texts of an enemy.

The process has a fixed hash seed, as some of reasoning_gym's problems depend on the order of a set: the same seed gives
the same problems on every run.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

MEMORY = 4 << 30  # bytes the helper may map, on Linux
GYM = "pip install 'minigrpo[gym]', which takes a C compiler"  # for pycosat, which has no wheel
CHUNK = 1000  # reasoning_gym's `size`: a few data sets depend on it, and can't go on past it


class HelperError(RuntimeError):
    """An exception inside the helper: its kind and message."""


class MissingPackage(ValueError):
    """A package that the helper would need, and what to do about it."""


# This side: start the helper, ask it, end it.

_lock = threading.Lock()
# by our own process id: a fork must not share its parent's pipes
_helpers: dict[int, subprocess.Popen[bytes]] = {}


def _helper() -> subprocess.Popen[bytes]:
    """The running helper of this process, started where there is none."""
    running = _helpers.get(os.getpid())
    if running is None or running.poll() is not None:  # none yet, or someone else killed it
        _end()
        # not `-m`: that would import torch; not the path alone: that would put minigrpo/llm before every other module
        code = (
            f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')"
        )
        environment = os.environ | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        _helpers[os.getpid()] = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    return _helpers[os.getpid()]


@atexit.register
def _end() -> None:
    """End this process's helper, where there is one."""
    helper = _helpers.pop(os.getpid(), None)
    if helper is not None:
        helper.kill()
        helper.communicate()  # closes the pipes and waits


def call(function: str, *arguments: Any, seconds: float | None = None) -> Any:
    """Run one of FUNCTIONS in the helper; None where it raised, died or took longer than `seconds` (None: no limit).

    A call without a limit is ours, not a completion's: it raises HelperError instead.

    Raises: MissingPackage where math-verify or reasoning_gym, or what they need, is not installed.
    """
    with _lock:
        helper = _helper()
        late = threading.Event()
        assert helper.stdin is not None  # both are pipes
        assert helper.stdout is not None

        def stop() -> None:
            late.set()
            helper.kill()

        timer = threading.Timer(seconds or 0.0, stop)
        reply = b""
        try:
            if seconds is not None:
                timer.start()
            helper.stdin.write(json.dumps([function, *arguments]).encode() + b"\n")
            helper.stdin.flush()
            reply = helper.stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            if seconds is not None:
                timer.cancel()
                timer.join()
            # also after Ctrl-C: the answer to this question must not meet the next one
            if not reply or late.is_set():
                _end()
    result, error, missing = (
        json.loads(reply) if reply else (None, "the helper process ended", None)
    )
    if missing is not None and (seconds is None or missing in ("math_verify", "reasoning_gym")):
        advice = "pip install 'minigrpo[llm]'" if missing == "math_verify" else GYM
        raise MissingPackage(f"{missing} is not installed: {advice}")
    if error is not None and seconds is None:
        raise HelperError(error)
    return result


# The other side: what runs in the helper.


def load(module: str) -> None:
    """Import a module, so that a later call under a time limit doesn't pay for it."""
    __import__(module)


@cache
def _gold(answer: str) -> list[Any]:
    """The right answer as math-verify parses it."""
    from math_verify import parse

    return parse(answer, parsing_timeout=None)


def math_equal(completion: str, answer: str) -> bool:
    """Whether math-verify finds both equal, the answer in a box or in $…$, without its own time limits."""
    from math_verify import parse, verify

    return bool(
        verify(_gold(answer), parse(completion, parsing_timeout=None), timeout_seconds=None)
    )


def gym_names() -> list[str]:
    """Names of reasoning_gym's data sets, but "composite", which mixes others."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


@cache
def _gym(name: str, options: str, seed: int) -> Any:
    """One of reasoning_gym's data sets; options as JSON."""
    import reasoning_gym

    return reasoning_gym.create_dataset(
        name, **(json.loads(options) | {"seed": seed, "size": CHUNK})
    )


@cache
def _gym_entry(name: str, options: str, seed: int, item: int) -> dict[str, Any]:
    """One problem with its metadata."""
    return _gym(name, options, seed)[item]


def gym_items(name: str, options: str, seed: int, start: int, stop: int) -> list[list[str | None]]:
    """Some problems: [question, answer] for each.

    Args:
        name: of reasoning-gym's data set.
        options: of the data set.
        seed: of the data set.
        start: the first item.
        stop: the one after the last.
    """
    entries = [_gym_entry(name, options, seed, item) for item in range(start, stop)]
    return [[entry["question"], entry["answer"]] for entry in entries]


def gym_score(name: str, options: str, seed: int, item: int, text: str) -> float:
    """The data set's own score of an answer to one problem, from 0 to 1.

    Args:
        name: of reasoning-gym's data set.
        options: of the data set.
        seed: of the data set.
        item: which problem.
        text: the completion.
    """
    return float(
        _gym(name, options, seed).score_answer(text, _gym_entry(name, options, seed, item))
    )


FUNCTIONS = {f.__name__: f for f in (load, math_equal, gym_names, gym_items, gym_score)}


def serve() -> None:
    """Answer questions, one JSON line each, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # some data sets print
    for line in sys.stdin.buffer:
        function, *arguments = json.loads(line)
        result = error = missing = None
        try:
            result = FUNCTIONS[function](*arguments)
        except Exception as problem:  # noqa: BLE001  whatever a parser raises is an answer here
            error = f"{type(problem).__name__}: {problem}"
            missing = problem.name if isinstance(problem, ModuleNotFoundError) else None
        replies.write(json.dumps([result, error, missing]).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    serve()
