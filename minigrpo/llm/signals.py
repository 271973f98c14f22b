"""SIGTERM and Ctrl-C as a wish to stop, so that a run can finish what it is at."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator
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
