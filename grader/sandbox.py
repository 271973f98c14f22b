"""Student code in a process of its own, asked over a pipe: what it may reach, how long, with how much memory.

    with Worker([("lab02.1", source)], isolation=best_isolation()) as worker:
        answer = worker.ask("call", "step_sizes", {"completion_ids": ids}, seconds=5.0)

Three processes: the grader (here) → `supervisor.py` (trusted; another user, limits, watchdog, the end of all of it) →
`worker.py` (hostile from the first cell on).

- "bubblewrap": namespaces of its own for users, processes, network and mounts. Of the host it sees, read-only, the
  interpreter, its libraries and a copy of three of our files; it writes to small tmpfs. Needs bubblewrap 0.8.
- "reduced", where that does not work: another user if we are root, limits, the watchdog, a scrubbed environment. Code
  can read what that user can, use the network and fill /tmp; if we are not root it is the grader's own user, and can
  do whatever the grader can. It keeps accidents apart, not attacks, and the report says so.
"""

import contextlib
import functools
import glob
import itertools
import json
import os
import secrets
import select
import shutil
import site
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from grader.protocol import MAX_FRAME, ProtocolError, pack, unpack

HERE = Path(__file__).resolve().parent
USERS = range(60578, 61184)  # ids that systemd's table of users leaves free; one for each worker in turn
_TURN = itertools.count(os.getpid())
PYTHON = os.path.realpath(sys._base_executable)
BASE = os.path.realpath(sys.base_prefix)
SITES = [os.path.realpath(p) for p in (*site.getsitepackages(), site.getusersitepackages()) if p in sys.path]


@dataclass(frozen=True)
class Limits:
    """What a worker may use."""

    memory: int = 2 << 30  # bytes, of all its processes together
    processes: int = 64  # threads count
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
    stop the next; `cell_errors` says which did. `allow` names modules of minigrpo that the code may import.
    """

    def __init__(self, cells, *, isolation: str, setup: str = "", limits: Limits = Limits(), allow=()):
        if isolation not in ("bubblewrap", "reduced"):
            raise ValueError(f'isolation: got {isolation!r}, expected "bubblewrap" or "reduced"')
        self._cells = [["setup", setup], *map(list, cells)]
        self._isolation, self._limits, self._allow = isolation, limits, allow
        self._failure: Failure | None = None  # what ended the worker
        self.cell_errors: list[str] = []

    @property
    def alive(self) -> bool:
        return self._failure is None

    def __enter__(self) -> "Worker":
        with contextlib.ExitStack() as stack:
            self._start(stack)
            ready = self._answer("", time.monotonic() + self._limits.start_seconds)
            with self._supervisor.stderr as pipe:  # closed before student code can write to it
                if isinstance(ready, Failure):
                    reason = pipe.read(4000).decode(errors="replace").strip()
                    raise SandboxError(f"isolation {self._isolation!r} fails here ({ready.kind}): {reason}")
            loaded = self._ask("load", "", self._cells, self._limits.load_seconds)
            if isinstance(loaded, Answer) and type(loaded.value) is list:
                self.cell_errors = [text for text in loaded.value if type(text) is str and text]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def ask(self, driver: str, function: str, arguments: dict, *, seconds: float) -> Answer | Failure:
        """What the student's `function` gives for `arguments` by way of a driver, within `seconds`."""
        return self._ask(driver, function, arguments, seconds)

    def _ask(self, driver: str, function: str, value, seconds: float) -> Answer | Failure:
        if self._failure:
            return self._failure
        deadline, ident = time.monotonic() + seconds, secrets.token_hex(16)
        try:
            frame = pack({"id": ident, "driver": driver, "function": function}, value)
        except ProtocolError as error:
            if driver != "load":
                raise
            return self._fail("import", f"the cells cannot be sent: {error}")
        if _poll(self._answers, select.POLLIN, 0) & select.POLLIN:
            return self._fail("protocol", "it wrote before it was asked")
        try:
            self._write(frame, deadline)
        except BrokenPipeError:
            return self._fail("crash")
        except TimeoutError:
            return self._fail("timeout")
        return self._answer(ident, deadline)

    def _answer(self, ident: str, deadline: float) -> Answer | Failure:
        """The answer with this id; whatever else comes ends the worker."""
        try:
            size = int.from_bytes(self._read(4, deadline), "big")
            if size > MAX_FRAME:
                raise ProtocolError(f"a frame of {size} bytes")
            head, value = unpack(self._read(size, deadline), finite=True)
        except EOFError:
            return self._fail("crash")
        except TimeoutError:
            return self._fail("timeout")
        except ProtocolError as error:
            return self._fail("protocol", str(error))
        match head:
            case {"id": str(given), "kind": str(kind)} if given == ident and len(head) == 2:
                pass
            case _:
                return self._fail("protocol", "a frame that answers no request")
        if kind in ("answer", "ready"):
            return Answer(value)
        if kind == "missing":
            return Failure("import", "\n".join(self.cell_errors)) if self.cell_errors else Failure("missing")
        if kind in ("error", "protocol") and type(value) is str:
            return Failure(kind, value)
        return self._fail("protocol", "a frame of no known kind")

    def _fail(self, kind: str, detail: str = "") -> Failure:
        ended = self._end()
        self._failure = Failure("memory") if ended == "memory" else Failure(kind, detail)
        return self._failure

    def _start(self, stack: contextlib.ExitStack) -> None:
        stage = tempfile.mkdtemp(prefix="minigrpo-worker-")
        stack.callback(shutil.rmtree, stage, ignore_errors=True)
        user = USERS[next(_TURN) % len(USERS)] if os.getuid() == 0 else None
        home = _fill(Path(stage), self._allow, user)
        bare = self._isolation == "reduced"
        ours, self._requests = os.pipe()
        self._answers, theirs = os.pipe()
        for descriptor in (self._requests, self._answers):
            stack.callback(os.close, descriptor)
            os.set_blocking(descriptor, False)
        python = [PYTHON, "-I", "-S", "-B"]  # no site: no .pth file, no sitecustomize, no user's own
        command = [*python, "-c", _program(stage if bare else "/grader", ours, theirs, self._rlimits())]
        if not bare:
            command = [*_bubblewrap(stage, self._limits.disk), *command]
        plan = {"command": command, "user": user, "needed": [stage, BASE, *SITES], "memory": self._limits.memory}
        self._supervisor = subprocess.Popen(
            [*python, str(HERE / "supervisor.py"), json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(ours, theirs),
            cwd=home if bare else "/",
            env=_environment(home if bare else "/tmp", self._limits.threads),
            start_new_session=True,  # a Ctrl-C is for the grader, which then ends this
        )
        os.close(ours)
        os.close(theirs)
        stack.callback(self._end)

    def _end(self) -> str:
        """End every process of the worker; the supervisor's word for why it ended."""
        if self._supervisor.returncode is None:
            self._supervisor.terminate()
            with self._supervisor.stdout as pipe:
                self._word = pipe.read().decode()
            self._supervisor.wait()
        return self._word

    def _rlimits(self) -> dict[str, int]:
        limits, others = self._limits, 0
        if self._isolation == "reduced" and os.getuid() != 0:  # then the kernel counts all that this user runs
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
def bubblewrap_problem() -> str:
    """Why bubblewrap does not work here, from starting a worker in it once; empty if it does."""
    if shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    try:
        with Worker([], isolation="bubblewrap"):
            return ""
    except SandboxError as error:
        return str(error)


def best_isolation() -> str:
    """ "bubblewrap" where that works, else "reduced"."""
    return "reduced" if bubblewrap_problem() else "bubblewrap"


def _fill(stage: Path, allow, user: int | None) -> Path:
    """Copy into `stage` what of ours the worker may read; the folder that it may write to."""
    names = [
        "grader/protocol.py",
        "grader/worker.py",
        *(f"grader/drivers/{p.name}" for p in (HERE / "drivers").glob("*.py")),
    ]
    for name in (*names, *(f"{module.replace('.', '/')}.py" for module in allow)):
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in list(target.relative_to(stage).parents)[:-1]:
            (stage / folder / "__init__.py").touch()
        shutil.copyfile(HERE.parent / name, target)
    for path in (stage, *stage.rglob("*")):
        path.chmod(0o755)
    home = stage / "home"
    home.mkdir(mode=0o700)
    if user is not None:
        os.chown(home, user, user)
    return home


def _program(place: str, requests: int, answers: int, rlimits: dict[str, int]) -> str:
    path = f"import sys; sys.path[:0] = [{place!r}]; sys.path += {SITES!r}"
    return f"{path}\nfrom grader.worker import main; main({requests}, {answers}, {rlimits!r})"


def _bubblewrap(stage: str, disk: int) -> list[str]:
    options = ["--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"]
    options += ["--cap-drop", "ALL", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            options += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            options += ["--ro-bind", folder, folder]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):
        options += ["--size", str(disk), "--tmpfs", folder]
    options += ["--ro-bind", BASE, BASE]
    if any(HERE.is_relative_to(folder) for folder in ("/usr", BASE)):
        options += _cover(str(HERE.parent))
    for folder in SITES:
        options += ["--ro-bind", folder, folder]
        for name in ("minigrpo", "grader"):
            if os.path.isdir(f"{folder}/{name}"):
                options += _cover(f"{folder}/{name}")
    options += ["--ro-bind", stage, "/grader", "--chdir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]
    return [shutil.which("bwrap"), *options, "--"]


def _cover(folder: str) -> list[str]:
    """Options that lay an empty folder over one that would show."""
    return ["--tmpfs", folder, "--remount-ro", folder]


def _environment(home: str, threads: int) -> dict[str, str]:
    libraries = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
    fixed = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": home, "USER": "student", "MPLBACKEND": "Agg"}
    return fixed | {f"{library}_NUM_THREADS": str(threads) for library in libraries}
