"""Student code in a process of its own, asked over a pipe: what it may reach, how long, with how much memory.

    with Worker([("lab02.1", source)], isolation=best_isolation()) as worker:
        answer = worker.ask("call", "step_sizes", {"completion_ids": ids}, seconds=5.0)

Three processes: the grader (here) → `supervisor.py` (trusted: another user, control groups, the watchdog, the end of
all of it) → `worker.py` (hostile from the first cell on), which sees what `confine.py` shows and can't undo what
`restrain.py` has set. For Linux.

- "bubblewrap": namespaces of its own for users, processes, network and mounts. Of the host it sees, read-only, the
  interpreter, programs, libraries and a copy of a few of our files; it writes to small tmpfs. Needs bubblewrap 0.8.
- "reduced", where that does not work: another user if we are root, limits, the filter of system calls, the watchdog, a
  scrubbed environment. Code can read what that user can, use the network and fill /tmp; if we are not root it is the
  grader's own user, and can do whatever the grader can. It keeps accidents apart, not attacks, and the report says so.
"""

import contextlib
import functools
import glob
import itertools
import json
import os
import platform
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from grader import confine
from grader.protocol import MAX_FRAME, ProtocolError, pack, unpack

_TURN = itertools.count(os.getpid())


@dataclass(frozen=True)
class Limits:
    """What a worker may use."""

    memory: int = 2 << 30  # bytes, of all its processes together
    processes: int = 16  # threads count, and the sandbox's own first process
    files: int = 256  # open descriptors of a process
    disk: int = 64 << 20  # bytes of /tmp, of /dev/shm, and of any file
    load_seconds: float = 30.0  # to run the cells
    start_seconds: float = 120.0  # to import torch, before student code runs; a cold disk is slow
    threads: int = 1  # of each library for mathematics


@dataclass(frozen=True)
class Answer:
    """A candidate answer: plain, finite, and not to be believed."""

    value: object


@dataclass(frozen=True)
class Failure:
    """Why there is no answer."""

    kind: str  # "crash", "timeout", "memory", "error", "protocol", "missing" or "import"
    detail: str = ""  # student text: only ever shown for public cases


class SandboxError(RuntimeError):
    """The sandbox itself does not work here: nobody's submission is to blame."""


class Worker:
    """A sandboxed process that holds one submission's cells and answers for them; not `alive` once it had to be ended.

    cells: (label, source) in the order in which they run, in one namespace, after `setup`. A cell that raises does not
    stop the next; `cell_errors` says which did.
    """

    def __init__(self, cells, *, isolation: str, setup: str = "", limits: Limits = Limits()):
        if isolation not in ("bubblewrap", "reduced"):
            raise ValueError(f'isolation: got {isolation!r}, expected "bubblewrap" or "reduced"')
        self._cells = [["setup", setup], *map(list, cells)]
        self._isolation, self._limits = isolation, limits
        self._failure: Failure | None = None  # what ended the worker
        self.cell_errors: list[str] = []
        self.loaded = False  # the cells ran to their end, raising or not
        # it was ended, and the machine may be to blame: others had the processors, or the memory
        self.crowded = False
        self.groups: list[str] = []  # control groups that it was in, known at its end

    @property
    def alive(self) -> bool:
        return self._failure is None

    def __enter__(self) -> "Worker":
        with contextlib.ExitStack() as stack:
            self._start(stack)
            ready = self._exchange(b"", "", time.monotonic() + self._limits.start_seconds)
            assert self._supervisor.stderr is not None
            with self._supervisor.stderr as pipe:  # closed before student code can write to it
                if isinstance(ready, Failure):
                    reason = pipe.read(4000).decode(errors="replace").strip()
                    raise SandboxError(
                        f"isolation {self._isolation!r} fails here ({ready.kind}): {reason}"
                    )
            try:
                loaded = self.ask(
                    "load", "", {"cells": self._cells}, seconds=self._limits.load_seconds
                )
            except ProtocolError as error:
                loaded = self._fail("import", f"the cells cannot be sent: {error}")
            if isinstance(loaded, Answer) and type(loaded.value) is list:
                self.loaded = True
                self.cell_errors = [text for text in loaded.value if type(text) is str and text]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def ask(
        self, driver: str, function: str, arguments: dict, *, seconds: float
    ) -> Answer | Failure:
        """What the student's `function` gives for `arguments` by way of a driver, within `seconds`.

        Raises ProtocolError where the arguments cannot be sent.

        Args:
            driver: of DRIVERS.
            function: the name that the student defines.
            arguments: of the case.
            seconds: after which it is late.
        """
        if self._failure:
            return self._failure
        deadline, ident = time.monotonic() + seconds, secrets.token_hex(16)
        frame = pack({"id": ident, "driver": driver, "function": function}, arguments, finite=False)
        if _poll(self._answers, select.POLLIN, 0) & select.POLLIN:
            return self._fail("protocol", "it wrote before it was asked")
        return self._exchange(frame, ident, deadline)

    def _exchange(self, frame: bytes, ident: str, deadline: float) -> Answer | Failure:
        """Send a frame and receive the one with this id; whatever else comes ends the worker."""
        try:
            self._write(frame, deadline)
            size = int.from_bytes(self._read(4, deadline), "big")
            if size > MAX_FRAME:
                raise ProtocolError(f"a frame of {size} bytes")
            head, value = unpack(self._read(size, deadline), finite=True)
            if head.keys() != {"id", "kind"} or head["id"] != ident:
                raise ProtocolError("a frame that answers no request")
        except (EOFError, BrokenPipeError):
            return self._fail("crash")
        except TimeoutError:
            return self._fail("timeout")
        except ProtocolError as error:
            return self._fail("protocol", str(error))
        except BlockingIOError:  # it opened our end anew by way of /proc, and was quicker
            return self._fail("protocol", "it reads or fills the grader's end of a pipe")
        match head["kind"], value:
            case "answer", _:
                return Answer(value)
            case "missing", _:
                return (
                    Failure("import", "\n".join(self.cell_errors))
                    if self.cell_errors
                    else Failure("missing")
                )
            case ("error" | "protocol") as kind, str(detail):
                return Failure(kind, detail)
        return self._fail("protocol", "a frame of no known kind")

    def _fail(self, kind: str, detail: str = "") -> Failure:
        self._failure = Failure("memory") if self._end() == "memory" else Failure(kind, detail)
        return self._failure

    def _start(self, stack: contextlib.ExitStack) -> None:
        stage = tempfile.mkdtemp(prefix="minigrpo-worker-")
        stack.callback(shutil.rmtree, stage, ignore_errors=True)
        user = confine.USERS[next(_TURN) % len(confine.USERS)] if os.getuid() == 0 else None
        home = confine.fill(Path(stage), user)
        bare = self._isolation == "reduced"
        ours, self._requests = os.pipe()
        self._answers, theirs = os.pipe()
        for descriptor in (self._requests, self._answers):
            stack.callback(os.close, descriptor)
            os.set_blocking(descriptor, False)
        # no site: no .pth file, no sitecustomize, no user's own
        python = [confine.PYTHON, "-I", "-S", "-B"]
        command = [
            *python,
            "-c",
            confine.program(stage if bare else "/grader", ours, theirs, self._rlimits(), not bare),
        ]
        if not bare:
            command = [*confine.bubblewrap(stage, self._limits.disk), *command]
        plan = {
            "command": command,
            "stage": stage,
            "user": user,
            "needed": [stage, confine.BASE, *confine.SITES],
            "memory": self._limits.memory,
            "disk": 2 * self._limits.disk,  # of /tmp and of /dev/shm
        }
        self._supervisor = subprocess.Popen(
            [*python, str(confine.HERE / "supervisor.py"), json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(ours, theirs),
            cwd=home if bare else "/",
            env=confine.environment(str(home) if bare else "/tmp", self._limits.threads),
            start_new_session=True,  # a Ctrl-C is for the grader, which then ends this
        )
        os.close(ours)
        os.close(theirs)
        stack.callback(self._end)

    def _end(self) -> str:
        """End every process of the worker; the supervisor's word for why it ended."""
        if self._supervisor.returncode is None:
            self._supervisor.terminate()
            assert self._supervisor.stdout is not None
            with self._supervisor.stdout as pipe:
                # it was killed itself
                said = json.loads(pipe.read() or '{"why": "", "crowded": true, "groups": []}')
            self._word, self.crowded, self.groups = said["why"], said["crowded"], said["groups"]
            self._supervisor.wait()
        return self._word

    def _rlimits(self) -> dict[str, int]:
        limits, others = self._limits, 0
        # then the kernel counts all that this user runs
        if self._isolation == "reduced" and os.getuid() != 0:
            for thread in glob.iglob("/proc/[0-9]*/task/[0-9]*"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    others += os.stat(thread).st_uid == os.getuid()
        return {
            "RLIMIT_NPROC": limits.processes + others,
            "RLIMIT_NOFILE": limits.files,
            "RLIMIT_FSIZE": limits.disk,
            "RLIMIT_DATA": limits.memory,  # at once, before the watchdog looks
            "RLIMIT_CORE": 0,
        }

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not _poll(self._answers, select.POLLIN, deadline - time.monotonic()):
                raise TimeoutError
            part = os.read(self._answers, size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _write(self, frame: bytes, deadline: float) -> None:
        rest = memoryview(frame)
        while rest:
            if not _poll(self._requests, select.POLLOUT, deadline - time.monotonic()):
                raise TimeoutError
            rest = rest[os.write(self._requests, rest) :]


def _poll(descriptor: int, event: int, seconds: float) -> int:
    """The events that came within `seconds`: 0 for none."""
    poll = select.poll()
    poll.register(descriptor, event)
    return dict(poll.poll(max(0.0, seconds) * 1000)).get(descriptor, 0)


@functools.cache
def _tried(isolation: str) -> tuple[str, list[str]]:
    """Why a worker does not start here, empty if one does; and the control groups that it was in."""
    worker = Worker([], isolation=isolation)
    try:
        with worker:
            pass
    except SandboxError as error:
        return str(error), []
    return "", worker.groups


def bubblewrap_problem() -> str:
    """Why bubblewrap does not work here, from starting a worker in it once; empty if it does."""
    if sys.platform != "linux":
        return f"grading needs Linux, and this is {platform.system()}: use WSL 2, a virtual machine or another computer"
    if shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    return _tried("bubblewrap")[0]


def best_isolation() -> str:
    """ "bubblewrap" where that works, else "reduced"; "none" where not even that does, on other systems than Linux."""
    if sys.platform != "linux":
        return "none"
    return "reduced" if bubblewrap_problem() else "bubblewrap"


def weaknesses() -> list[str]:
    """What this machine's kernel does not do for the best isolation that works here, and what stands in its place."""
    if (isolation := best_isolation()) == "none":
        return [bubblewrap_problem()]
    from grader.restrain import MACHINES  # of Linux alone

    groups, found = _tried(isolation)[1], []
    if "memory" not in groups:
        found.append(
            "no control group of memory, so what no process shows is judged by the whole machine's"
        )
    if "cpu" not in groups:
        found.append(
            "no control group of the processor, so workers slow each other and are asked again alone"
        )
    if platform.machine() not in MACHINES:
        found.append(f"no filter of system calls for {platform.machine()}")
    return found
