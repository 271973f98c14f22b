"""SIGTERM, Ctrl-C and the end of one's time as a wish to stop, so that a run can finish what it is at."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Callable, Generator
from types import FrameType

from tqdm.auto import tqdm


@contextlib.contextmanager
def stop_signals() -> Generator[list[int]]:
    """Collect SIGTERM and Ctrl-C in a list instead of ending at once; a second one ends at once, as Ctrl-C does."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, frame)
        received.append(number)
        tqdm.write("stopping after this update, with a checkpoint (once more: stop now)")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def deadline(max_minutes: float | None) -> Callable[[], bool]:
    """Begin to count. What is returned is called after each round, and says whether another fits into the time.

    A round takes as long as the longest so far; the time before the first is no round. The answer no is told.

    Args: max_minutes: from now on; None: there is no end.
    Raises: ValueError where it is not above 0.
    """
    if max_minutes is not None and not max_minutes > 0:
        raise ValueError(f"max_minutes must be above 0, got {max_minutes:g}")
    end = time.monotonic() + 60 * (math.inf if max_minutes is None else max_minutes)
    rounds: list[float] = []  # when each ended

    def in_time() -> bool:
        rounds.append(time.monotonic())
        longest = max((b - a for a, b in itertools.pairwise(rounds)), default=0.0)
        fits = rounds[-1] + longest < end
        if not fits:
            tqdm.write(
                f"stopping with a checkpoint: another update may not end within {max_minutes:g} minutes"
            )
        return fits

    return in_time
