"""What hostile student code tries on a worker: its exact outcome, in bounded time, nothing left behind.

After each attack no process of its lives, no file of its making is on the host, and a neighbour, started before and
beside it, still answers; after those on resources a fresh worker does too. Bubblewrap has to be here for these:
`pytest -m attack`.
"""

import contextlib
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from grader import confine
from grader.sandbox import Answer, Failure, Limits, Worker, bubblewrap_problem

pytestmark = [pytest.mark.attack, pytest.mark.slow]
ROOT = Path(__file__).resolve().parent.parent
BOTH = pytest.mark.parametrize("isolation", ["bubblewrap", "reduced"])
PATIENCE = 20  # seconds in which a worker has to be gone, and a busy machine be done with what takes a moment
LIMITS = Limits()
CLEAN = ("clean", "def clean(x): return x + 1")
# What an attack has at hand: `everywhere` writes bytes on every descriptor, `frame` makes a frame like the worker's.
TOOLS = """
import ctypes, gc, json, mmap, os, resource, signal, socket, struct, sys, threading, time
import numpy, torch
from contextlib import suppress

def frame(ident, value, kind="answer"):
    body = json.dumps({"id": ident, "kind": kind, "value": value}).encode() + b"\\n"
    return struct.pack(">I", len(body)) + body

def everywhere(data):
    for descriptor in range(256):
        with suppress(OSError):
            os.write(descriptor, data)

def ident():
    "The id of the request being served, from the worker's own frames."
    caller = sys._getframe()
    while type(caller.f_locals.get("ident")) is not str:
        caller = caller.f_back
    return caller.f_locals["ident"]

end_thread = ctypes.CDLL(None).pthread_exit

def hold(size):
    "Memory that is really there."
    return torch.ones(size // 4, dtype=torch.float32)
"""


class Host:
    """A place to attack from, and what has to be untouched afterwards."""

    def __init__(self, monkeypatch, place: Path, neighbour: Worker):
        self.neighbour = neighbour
        self.token = "attack" + secrets.token_hex(8)
        self.place = place
        environment, user = confine.environment, secrets.choice(range(61184, 65534))  # nobody's: no other grader's here
        monkeypatch.setattr(confine, "environment", lambda *args: environment(*args) | {"MARK": self.token})
        monkeypatch.setattr(confine, "USERS", [user])
        self.user = user

    def run(self, source, function="f", arguments=None, *, seconds=PATIENCE, isolation="bubblewrap", limits=LIMITS):
        """The outcome of `function` of the attack."""
        return self.each(source, {function: arguments or {}}, seconds=seconds, isolation=isolation, limits=limits)[0]

    def each(self, source, functions, *, seconds=PATIENCE, isolation="bubblewrap", limits=LIMITS):
        """The outcomes of several functions, in one worker while it lives."""
        cells = [("tools", TOOLS), CLEAN, ("attack", textwrap.dedent(source).replace("TOKEN", self.token))]
        with Worker(cells, isolation=isolation, limits=limits) as self.worker:
            start = time.monotonic()
            outcomes = [self.worker.ask("call", name, given, seconds=seconds) for name, given in functions.items()]
            if self.worker.alive:
                assert self.worker.ask("call", "clean", {"x": 1}, seconds=PATIENCE) == Answer(2)
        self.seconds = time.monotonic() - start  # of the attack and of the end of all that it started
        self.untouched()
        assert self.neighbour.ask("call", "clean", {"x": 1}, seconds=PATIENCE) == Answer(2)
        return outcomes

    def still_works(self):
        with Worker([CLEAN], isolation="bubblewrap") as worker:
            assert worker.ask("call", "clean", {"x": 1}, seconds=PATIENCE) == Answer(2)

    def untouched(self):
        assert self.processes() == []
        folders = ["/", "/tmp", "/dev/shm", "/var/tmp", "/run", "/etc", os.getcwd(), Path.home(), ROOT, self.place]
        assert [f for f in folders if (Path(f) / self.token).exists()] == []

    def processes(self) -> list[str]:
        """Every process on this machine that has our mark or is the user's that attacks run as."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                marked = f"MARK={self.token}".encode() in (folder / "environ").read_bytes()
                if marked or (os.getuid() == 0 and folder.stat().st_uid == self.user):
                    found.append((folder / "cmdline").read_bytes().decode(errors="replace")[:200])
        return found


@pytest.fixture(scope="module")
def neighbour():
    assert not bubblewrap_problem()
    with Worker([CLEAN], isolation="bubblewrap") as worker:
        yield worker


@pytest.fixture
def host(monkeypatch, tmp_path, neighbour) -> Host:
    return Host(monkeypatch, tmp_path, neighbour)


# Ends of the process and of time.


@BOTH
def test_exit_in_a_function_and_at_import(host, isolation):
    assert host.run("def f(): os._exit(0)", isolation=isolation) == Failure("crash")
    assert host.run("os._exit(0)", isolation=isolation) == Failure("crash")


def test_exceptions_of_every_kind(host):
    source = """
    class Base(BaseException): pass
    class Silent(Exception):
        def __str__(self): raise SystemExit
    def f0(): sys.exit(0)
    def f1(): raise Base("a")
    def f2(): raise KeyboardInterrupt
    def f3(): raise Silent
    def f4(): raise ValueError("\\ud800" + "a" * 10**7)
    def f5(): return f5()
    sys.exit(0)
    def lost(): pass
    """
    *shown, deep, lost = host.each(source, dict.fromkeys(("f0", "f1", "f2", "f3", "f4", "f5", "lost"), {}))
    texts = ["SystemExit: 0", "Base: a", "KeyboardInterrupt: ", "an exception that cannot be shown"]
    assert shown == [Failure("error", text) for text in (*texts, "ValueError: ?" + "a" * 1987)]
    assert deep.detail.startswith("RecursionError")
    assert lost == Failure("import", "attack: SystemExit: 0")


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "time.sleep(10**6)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); time.sleep(10**6)",
        "sys.setswitchinterval(10**6); threading.Thread(target=time.sleep, args=[10**6]).start(); (1 << 10**9) ** 3",
        # the main thread ends, and another lives on in a process that looks dead
        "threading.Thread(target=time.sleep, args=[600]).start(); end_thread(None)",
    ],
)
def test_no_end(host, source):
    assert host.run(f"def f():\n    {source}", seconds=1) == Failure("timeout")
    assert host.seconds < PATIENCE


def test_no_end_with_less_isolation(host):
    source = "threading.Thread(target=time.sleep, args=[600]).start(); end_thread(None)"
    assert host.run(f"def f():\n    {source}", seconds=1, isolation="reduced") == Failure("timeout")
    assert host.seconds < PATIENCE


def test_no_end_at_import(host):
    assert host.run("while True: pass", limits=Limits(load_seconds=1)) == Failure("timeout")
    assert host.seconds < PATIENCE


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("os.kill(0, signal.SIGKILL)", "crash"),
        ("ctypes.CDLL(None).kill(-1, 9)\n    return 1", Answer(1)),  # all but itself and the first, which is immune
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(600)", "crash"),
        ("ctypes.string_at(0)", "crash"),
        ("signal.alarm(1); time.sleep(600)", "crash"),
        ("os.kill(1, signal.SIGKILL); os.kill(os.getppid(), signal.SIGSTOP)\n    return 1", Answer(1)),
    ],
)
def test_signals(host, source, outcome):
    assert host.run(f"def f():\n    {source}") == (Failure(outcome) if outcome == "crash" else outcome)


def test_a_death_between_two_requests_is_a_crash(host):
    with Worker(
        [("tools", TOOLS), ("a", "def f(): threading.Timer(0.2, os._exit, [0]).start()")], isolation="bubblewrap"
    ) as w:
        assert w.ask("call", "f", {}, seconds=PATIENCE) == Answer(None)
        time.sleep(1)
        assert w.ask("call", "f", {}, seconds=PATIENCE) == Failure("crash")


@BOTH
def test_orphans_die_with_the_worker(host, isolation):
    source = """
    def f():
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.closerange(0, 256)
                    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
                    os.execve("/usr/bin/sleep", ["sleep", "600"], {})
                os._exit(0)
        return 1
    """
    assert host.run(source, isolation=isolation) == Answer(1)
    host.still_works()


@BOTH
def test_the_grader_gone_the_worker_goes_too(host, isolation):
    script = f"""
from tests.test_attacks import *
confine.environment = lambda *args, real=confine.environment: real(*args) | {{"MARK": "{host.token}"}}
with Worker([("a", "def f(): import time; time.sleep(600)")], isolation="{isolation}") as worker:
    print("started", flush=True)
    worker.ask("call", "f", {{}}, seconds=600)
"""
    grader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert grader.stdout.readline() == b"started\n"
    assert len(host.processes()) >= 2
    grader.kill()
    grader.communicate()
    deadline = time.monotonic() + PATIENCE
    while host.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert host.processes() == []


# Answers that are none.


VALUES = [
    "type('A', (), {'__eq__': lambda self, other: True, '__float__': lambda self: 1.0})()",
    "type('P', (), {'__reduce__': lambda self: (os.system, ('touch /tmp/TOKEN',))})()",
    "float('nan')",
    "float('inf')",
    "[torch.tensor([1.0, float('nan')])]",
    "{1: 2}",
    "torch.zeros(1).expand(1 << 40)",
    "'a' * (1 << 22)",
    "torch.ones(1 << 25)",
]


def test_values_that_are_not_plain(host):
    source = "\n".join(f"def f{at}(): return {value}" for at, value in enumerate(VALUES))
    outcomes = host.each(source, {f"f{at}": {} for at in range(len(VALUES))})
    assert [outcome.kind for outcome in outcomes] == ["protocol"] * len(VALUES)
    assert host.worker.alive  # or all after the first would have failed for that reason alone


def test_subclasses_arrive_as_what_they_are_based_on(host):
    source = """
    equal = {'__eq__': lambda self, other: True, '__hash__': None}
    def number(): return type('F', (float,), equal)(1.0)
    def text(): return type('S', (str,), equal)('a')
    def tensor(): return torch.ones(2).as_subclass(type('T', (torch.Tensor,), equal))
    def array(): return numpy.ones(2).view(type('N', (numpy.ndarray,), equal))
    """
    outcomes = host.each(source, {"number": {}, "text": {}, "tensor": {}, "array": {}})
    assert [type(outcome.value) for outcome in outcomes] == [float, str, torch.Tensor, np.ndarray]
    assert outcomes[0].value != 2.0
    assert outcomes[1].value != "b"
    assert not (outcomes[2].value == 2).any()
    assert not (outcomes[3].value == 2).any()


def test_deep_answers(host):
    deep = "def f():\n    value = []\n    for _ in range(10**6): value = [value]\n    return value"
    assert host.run(deep).kind == "protocol"
    forged = "def f():\n    everywhere(struct.pack('>I', 10**6) + b'{\"value\":' + b'[' * 10**6)\n    time.sleep(600)"
    assert host.run(forged).kind == "protocol"


def test_a_scalar_arrives_as_a_scalar(host):
    assert host.run("def f(x): return 1.0", arguments={"x": torch.ones(3)}) == Answer(1.0)


def test_swapped_functions_are_swapped_in_the_worker_only(host):
    source = """
    torch.allclose = torch.equal = numpy.allclose = lambda *args, **kwargs: True
    json.dumps = lambda *args, **kwargs: '{"id": "0", "kind": "answer", "value": 100}'
    torch.Tensor.__eq__ = lambda self, other: torch.ones(self.shape, dtype=torch.bool)
    def f(): return torch.zeros(2)
    """
    outcome = host.run(source)
    assert type(outcome.value) is torch.Tensor
    assert not torch.allclose(outcome.value, torch.ones(2))
    assert not np.allclose(outcome.value, 1.0)


# Frames that answer nothing. A forged frame is worth no more than an answer: its value is compared all the same.


def test_frames_on_every_descriptor(host):
    assert host.run("def f():\n    everywhere(frame('0' * 32, 42))\n    return 1").kind == "protocol"
    assert host.run("everywhere(frame('0' * 32, 42))\ndef f(): return 1").kind == "protocol"
    assert host.run("everywhere(b'\\0')\ndef f(): return 1").kind == "protocol"


@pytest.mark.parametrize(
    "data",
    [
        "b'\\xff' * 4",
        "struct.pack('>I', 9) + b'[' * 9",
        "struct.pack('>I', 100) + __import__('pickle').dumps({'value': 1}).ljust(100)",
        "frame(ident(), 42, kind='full marks')",
        "frame(ident(), 42, kind='error')",
        "frame(ident(), {'dict': {'a': 1}}).replace(b'\"a\": 1', b'\"a\":1,\"a\":2')",
        "frame(ident(), float('nan'))",
        "frame(ident(), {'numpy': ['float64', [1]]})",
    ],
)
def test_frames_that_are_none(host, data):
    assert host.run(f"def f():\n    everywhere({data})\n    time.sleep(600)").kind == "protocol"


def test_half_a_frame_and_a_slow_one(host):
    assert host.run("def f():\n    everywhere(b'\\3\\0\\0\\0{')\n    time.sleep(600)", seconds=1) == Failure("timeout")
    slow = (
        "def f():\n    everywhere(b'\\3\\0\\0\\0')\n    while True:\n        everywhere(b' ')\n        time.sleep(0.1)"
    )
    assert host.run(slow, seconds=2) == Failure("timeout")


def test_a_forged_frame_with_the_right_id_is_a_candidate_once(host):
    cells = [("tools", TOOLS), ("a", "def f():\n    everywhere(frame(ident(), 42))\n    return 1")]
    with Worker(cells, isolation="bubblewrap") as worker:
        assert worker.ask("call", "f", {}, seconds=PATIENCE) == Answer(42)
        assert worker.ask("call", "f", {}, seconds=PATIENCE).kind == "protocol"
    # sent early, while the cells run: the id is that of loading, and the true frame of loading comes too many
    assert host.run("everywhere(frame(ident(), []))\ndef f(): return 1").kind == "protocol"


def test_threads_that_keep_writing(host):
    source = """
    def write():
        while True: everywhere(frame("0" * 32, 42))
    def f():
        for _ in range(4): threading.Thread(target=write, daemon=True).start()
        return 1
    """
    cells = [("tools", TOOLS), ("attack", textwrap.dedent(source))]
    with Worker(cells, isolation="bubblewrap") as worker:
        outcomes = [worker.ask("call", "f", {}, seconds=PATIENCE) for _ in range(2)]
    assert outcomes[0] == Answer(1) or outcomes[0].kind == "protocol"  # whichever frame was first
    assert outcomes[1].kind == "protocol"
    host.untouched()


def test_a_closed_pipe(host):
    assert host.run("def f(): os.closerange(0, 256)") == Failure("crash")
    daemon = "def f():\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)"  # it holds the pipe open
    assert host.run(daemon) == Failure("crash")
    assert host.run("os.closerange(0, 256)\ndef f(): return 1") == Failure("crash")


# Secrets.


def test_nothing_to_read(host, monkeypatch):
    secret = "expected-" + secrets.token_hex(16)
    (host.place / "other.ipynb").write_text(secret)
    monkeypatch.setenv("GRADER_SEED", secret)
    paths = [
        ROOT / "grader/sandbox.py",
        ROOT / "pyproject.toml",
        host.place / "other.ipynb",
        "/etc/passwd",
        Path.home(),
    ]
    paths += [f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem", f"/proc/{os.getpid()}/root", "/proc/kcore"]
    paths += ["/etc/shadow", "/proc/1/root/etc/passwd", "/proc/1/mem"]
    source = """
    import re
    def f(paths):
        seen = []
        for path in paths:
            with suppress(OSError):
                if os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1): seen.append(path)
        numbers = [name for name in os.listdir("/proc") if name.isdigit()]
        texts, shut = [open(f"/proc/{number}/cmdline", "rb").read() for number in numbers], []
        for number in numbers:
            try: texts.append(open(f"/proc/{number}/environ", "rb").read())
            except PermissionError: shut.append(number)
        texts += [repr(value).encode() for value in gc.get_objects() if type(value) in (dict, list, tuple, str)]
        caller = sys._getframe()
        while caller:
            texts.append(repr(caller.f_locals).encode())
            caller = caller.f_back
        memory = open("/proc/self/mem", "rb", buffering=0)
        for line in open("/proc/self/maps"):
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            with suppress(OSError, ValueError, OverflowError):
                memory.seek(start)
                texts.append(memory.read(end - start))
        found = {hit.decode() for text in texts for hit in re.findall(b"expected-[0-9a-f]{32}", text)}
        names = [line.split("=")[0] for line in open("/proc/self/environ").read().split("\\0") if line]
        return [seen, sorted(found), names, shut]
    """
    seen, found, names, shut = host.run(source, arguments={"paths": [str(p) for p in paths]}, seconds=100).value
    assert secret == os.environ["GRADER_SEED"]
    assert seen == [p for p in seen if p == str(Path.home()) and os.listdir(p)]
    assert found == []
    assert shut == ["1"]
    assert set(names) - {"PWD"} == set(confine.environment("/tmp", 1))


def test_nothing_of_a_submissions_folder_is_imported(host, monkeypatch):
    for name in ("torch", "sitecustomize", "usercustomize", "conftest", "json", "protocol"):
        (host.place / f"{name}.py").write_text(f"open('/tmp/{host.token}', 'w'); raise SystemExit('{name}')")
    monkeypatch.chdir(host.place)
    monkeypatch.setenv("PYTHONPATH", str(host.place))
    monkeypatch.setenv("PYTHONSTARTUP", str(host.place / "torch.py"))
    names = ("conftest", "sitecustomize", "protocol")
    source = f"from importlib.util import find_spec\ndef f(): return [bool(find_spec(name)) for name in {names}]"
    for isolation in ("bubblewrap", "reduced"):
        assert host.run(source, isolation=isolation) == Answer([False, False, False])


@BOTH
def test_the_package_that_holds_the_answers(host, isolation):
    source = """
    def f(names, root):
        sys.path.insert(0, root)
        errors = []
        for name in names:
            try: errors.append(repr(__import__(name)))
            except Exception as error: errors.append(type(error).__name__)
        return errors
    def without_our_finder(**arguments):
        sys.meta_path.pop(0), sys.modules.pop("grader")
        return f(**arguments)
    """
    names = ["minigrpo", "minigrpo.steps", "grader.labs", "grader.sandbox", "grader.exercise"]
    given = {"names": names, "root": str(ROOT)}
    ways = ["f"] if isolation == "reduced" else ["f", "without_our_finder"]
    outcomes = host.each(source, dict.fromkeys(ways, given), isolation=isolation)
    assert outcomes == [Answer(["ModuleNotFoundError"] * len(names))] * len(ways)


def test_an_installed_copy_of_the_package(host, monkeypatch):
    for name in ("minigrpo", "grader"):
        (host.place / "site" / name).mkdir(parents=True)
        (host.place / "site" / name / "answers.py").write_text("ANSWER = 42")
    (host.place / "site" / "library.py").write_text("")
    monkeypatch.setattr(confine, "SITES", [*confine.SITES, str(host.place / "site")])
    source = """
    def f(site):
        import library
        sys.meta_path.pop(0)
        return [os.listdir(f"{site}/{name}") for name in ("minigrpo", "grader")]
    """
    assert host.run(source, arguments={"site": str(host.place / "site")}) == Answer([[], []])


def test_this_repository_in_a_folder_that_is_shown(host, monkeypatch):
    course = host.place / "site" / "course"
    shutil.copytree(confine.HERE, course / "grader", ignore=shutil.ignore_patterns("__pycache__"))
    (course / "solutions").mkdir()
    packages = course / ".venv" / "packages"
    packages.mkdir(parents=True)
    (packages / "library.py").write_text("")
    monkeypatch.setattr(confine, "HERE", course / "grader")
    monkeypatch.setattr(confine, "SITES", [*confine.SITES, str(host.place / "site"), str(packages)])
    source = """
    def f(course):
        import library
        with suppress(OSError): open(course + "/TOKEN", "w")
        return os.listdir(course)
    """
    assert host.run(source, arguments={"course": str(course)}) == Answer([".venv"])


KEYCTL = {"x86_64": (250, 248), "aarch64": (219, 217)}  # keyctl, add_key
filtered = pytest.mark.skipif(platform.machine() not in KEYCTL, reason="the filter of system calls lacks this machine")


@BOTH
@filtered
def test_the_keys_of_whoever_grades(host, isolation):
    """A session keyring survives another user and another user namespace; Kerberos keeps tickets in it."""
    keyctl, add_key = KEYCTL[platform.machine()]
    script = f"""
from tests.test_attacks import *
import ctypes
call = ctypes.CDLL(None).syscall
if call({keyctl}, 1, b"{host.token}") < 0 or call({add_key}, b"user", b"{host.token}", b"secret", 6, -3) < 0:
    sys.exit("no keys")
source = '''
import ctypes
call = ctypes.CDLL(None).syscall
def f():
    done = [call({keyctl}, 10, -3, b"user", b"{host.token}", 0), call({add_key}, b"user", b"left", b"x", 1, -3)]
    return [*done, call({keyctl}, 1, None), "{host.token}" in open("/proc/keys").read()]
'''
with Worker([("a", source)], isolation="{isolation}") as worker:
    print(worker.ask("call", "f", {{}}, seconds=20))
assert call({keyctl}, 10, -3, b"user", b"{host.token}", 0) > 0
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.stderr == "no keys\n":
        pytest.skip("this kernel keeps no keys for us")
    assert (done.stdout, done.stderr) == (f"{Answer([-1, -1, -1, False])}\n", "")


@filtered
def test_process_1_is_out_of_reach_and_as_bound_as_the_rest(host):
    source = """
    def f():
        status = [open(f"/proc/{pid}/status").read() for pid in (1, os.getpid())]
        filters = [text.split("Seccomp:")[1].split()[0] for text in status]
        same = open("/proc/1/limits").read() == open("/proc/self/limits").read()
        libc, opened = ctypes.CDLL(None, use_errno=True), []
        for name in ("mem", "environ", "maps", "fd", "root", "cwd", "map_files"):
            path = "/proc/1/" + name
            with suppress(OSError): opened.append(os.listdir(path) if os.path.isdir(path) else open(path, "rb"))
        place = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
        traced, read = libc.ptrace(0x4206, 1, 0, 0), libc.process_vm_readv(1, place, 1, place, 1, 0)
        return [os.getpid() > 1, filters, same, len(opened), traced, read]
    """
    assert host.run(source) == Answer([True, ["2", "2"], True, 0, -1, -1])


def test_the_orphaned_are_reaped(host):
    source = """
    def f():
        for _ in range(40):
            if os.fork() == 0:
                if os.fork() == 0: time.sleep(0.02)
                os._exit(0)
            os.wait()
            time.sleep(0.05)
        return sum(name.isdigit() for name in os.listdir("/proc")) < 8
    """
    assert host.run(source, seconds=60) == Answer(True)


@BOTH
@filtered
def test_refused_calls(host, isolation):
    source = """
    call = ctypes.CDLL(None, use_errno=True).syscall
    def f(numbers, clone, clone3):
        said = []
        for number, first in [*([n, 0] for n in numbers), [clone, 0x10000000 | 17], [clone3, 0], [463, 0], [1000, 0]]:
            ctypes.set_errno(0)
            said.append([call(number, ctypes.c_ulong(first), 0, 0, 0, 0), ctypes.get_errno()])
        return said
    """
    from grader import restrain  # of Linux alone

    at = list(restrain.MACHINES).index(platform.machine())
    refused = [numbers[at] for calls in restrain.REFUSED.values() for numbers in calls.values()]
    given = {"numbers": [n for n in refused if n is not None], "clone": (56, 220)[at], "clone3": 435}
    said = host.run(source, arguments=given, isolation=isolation).value
    assert said == [[-1, 1]] * (len(given["numbers"]) + 1) + [[-1, 38]] * 3  # EPERM; ENOSYS
    assert len(said) > 50


@BOTH
@filtered
def test_sockets_of_other_families(host, isolation):
    """A socket of AF_VSOCK, 40, reaches the host of a virtual machine, whatever the network namespace."""
    source = """
    def f():
        made = set()
        for family in range(50):
            for kind in (1, 2, 3, 5):
                with suppress(OSError), socket.socket(family, kind): made.add(family)
                with suppress(OSError):
                    for end in socket.socketpair(family, kind): end.close(), made.add(family)
        return sorted(made)
    """
    made = set(host.run(source, isolation=isolation).value)
    assert {1} <= made <= {1, 2, 10, 16}


# Resources.


@BOTH
def test_memory_at_once(host, isolation):
    source = """
    def tensor(): return hold(100 << 30)
    def plain(): return bytearray(100 << 30)
    def untouched(): return len(bytearray(LIMITS.memory + (1 << 30)))
    """.replace("LIMITS.memory", str(LIMITS.memory))
    tensor, *others = host.each(source, {"tensor": {}, "plain": {}, "untouched": {}}, isolation=isolation)
    assert tensor.kind == "error"
    assert [other.detail.partition(":")[0] for other in others] == ["MemoryError"] * 2


@BOTH
@pytest.mark.parametrize(
    "each",
    [
        "kept = hold(160 << 20); time.sleep(600)",
        "kept = mmap.mmap(-1, 160 << 20); kept.write(b'1' * (160 << 20)); time.sleep(600)",
        # in a process whose main thread has ended, which shows no memory of its own
        "threading.Thread(target=lambda: [hold(160 << 20), time.sleep(600)]).start(); end_thread(None)",
    ],
    ids=["private", "shared", "behind a dead thread"],
)
def test_memory_that_grows_over_processes(host, isolation, each):
    source = f"""
    def f():
        for _ in range(40):
            if os.fork() == 0:
                {each}
            time.sleep(0.1)
        time.sleep(600)
    """
    peak = 0

    def watch():
        nonlocal peak
        while not over.wait(0.05):
            available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) << 10
            peak = max(peak, before - available)

    over, before = threading.Event(), int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) << 10
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcome = host.run(source, isolation=isolation, limits=Limits(memory=1 << 30), seconds=60)
    finally:
        over.set()
        watcher.join()
    assert outcome == Failure("memory")
    assert peak < 4 << 30  # others use this machine too: a loose bound
    host.still_works()


@BOTH
def test_memory_that_is_nobodys(host, isolation):
    source = """
    libc = ctypes.CDLL(None, use_errno=True)
    def f(): return [libc.shmget(0, 1 << 30, 0o1600), libc.msgget(0, 0o1600)]
    def g(): os.memfd_create("a")
    """
    calls, memfd = host.each(source, {"f": {}, "g": {}}, isolation=isolation)
    assert calls == Answer([-1, -1])
    assert memfd.detail.startswith("PermissionError")


UNSEEN = """
def f(size, step):
    kept = mmap.mmap(-1, size)
    place = ctypes.addressof(ctypes.c_char.from_buffer(kept))
    for at in range(0, size, step):
        kept[at : at + step] = b"1" * step
        DROP
    time.sleep(600)
"""


@BOTH
@pytest.mark.parametrize(
    "drop",
    [
        "kept.madvise(mmap.MADV_DONTNEED, at, step)",
        "ctypes.CDLL(None).munmap(ctypes.c_void_p(place + at), step - 4096)",  # a page keeps all that was written
    ],
    ids=["dropped from the page table", "no more mapped"],
)
def test_memory_that_no_process_shows(host, isolation, drop):
    given, limits = {"size": 1200 << 20, "step": 40 << 20}, Limits(memory=768 << 20)
    source = UNSEEN.replace("DROP", drop)
    assert host.run(source, arguments=given, isolation=isolation, limits=limits, seconds=60) == Failure("memory")


@BOTH
def test_fork_bomb(host, isolation):
    bomb = """
    def f():
        while True:
            with suppress(OSError): os.fork()
    """
    assert host.run(bomb, seconds=3, isolation=isolation, limits=Limits(memory=64 << 30)) == Failure("timeout")
    count = """
    def f():
        for made in range(1000):
            try:
                if os.fork() == 0: time.sleep(600)
            except OSError:
                return made
    """
    made = host.run(count, isolation=isolation, limits=Limits(processes=20, memory=64 << 30))
    assert 5 < made.value < 20
    host.still_works()


@BOTH
def test_busy_processes_get_one_processor_together(host, isolation):
    source = """
    def spent():
        ticks = [open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[11:13] for pid in made]
        return sum(int(count) for pair in ticks for count in pair) / os.sysconf("SC_CLK_TCK")
    made = []
    def f():
        with suppress(OSError):
            while len(made) < 100:
                made.append(os.posix_spawn("/bin/sh", ["sh", "-c", "while :; do :; done"], {}, setsid=True))
        start, before = time.monotonic(), spent()
        time.sleep(3)
        return [len(made), spent() - before, time.monotonic() - start]
    """
    made, spent, seconds = host.run(source, isolation=isolation).value
    assert 8 <= made < LIMITS.processes
    assert host.worker.crowded  # most of them had to wait, by their own doing
    if "cpu" in host.worker.groups:
        assert spent < 1.2 * seconds


def test_threads_are_limited(host):
    source = "def f():\n    for _ in range(1000): threading.Thread(target=time.sleep, args=[600], daemon=True).start()"
    assert host.run(source).detail.startswith("RuntimeError: can't start new thread")


def test_full_disks(host):
    source = """
    def f(folders):
        sizes = {}
        for folder in folders:
            size, block = 0, b"1" * (1 << 20)
            for part in range(100):
                try:
                    with open(f"{folder}/TOKEN" + str(part) * (part > 0), "wb") as file:
                        while True: size += file.write(block)
                except OSError: pass
            sizes[folder] = size
        return sizes
    """
    folders = ["/tmp", "/dev/shm", "/", "/dev", "/grader", "/proc", "/usr", "/etc", "/var/tmp", "/root", os.getcwd()]
    folders += [str(Path.home()), str(ROOT), str(host.place), confine.BASE, *confine.SITES]
    sizes = host.run(source, arguments={"folders": folders}, limits=Limits(disk=16 << 20)).value
    assert {folder for folder, size in sizes.items() if size} == {"/tmp", "/dev/shm"}
    assert max(sizes.values()) <= 16 << 20
    host.still_works()


@BOTH
def test_files_are_bounded(host, isolation):
    source = "def f():\n    with open('big', 'wb') as file:\n        while True: file.write(b'1' * (1 << 20))"
    outcome = host.run(source, isolation=isolation, limits=Limits(disk=16 << 20))
    assert outcome.detail.startswith("OSError: [Errno 2")  # 27, file too large, or 28, no space


def test_floods_of_fake_scores_reach_nobody(host, capfd):
    source = """
    text = '{"score": 100, "status": "passed"}' * 1000
    def f():
        for _ in range(20000): print(text), os.write(1, text.encode()), os.write(2, text.encode())
        return 1
    """
    assert host.run(source) == Answer(1)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_no_network(host):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + host.token)
        abstract.listen()
        source = """
        def f(port):
            reached = []
            places = [(2, ("127.0.0.1", port)), (2, ("1.1.1.1", 53)), (2, ("169.254.169.254", 80)), (1, "\\0TOKEN")]
            for family, address in places:
                with socket.socket(family) as s, suppress(OSError):
                    s.settimeout(2)
                    s.connect(address)
                    reached.append(repr(address))
            return [reached, sorted(name for _, name in socket.if_nameindex())]
        """
        assert host.run(source, arguments={"port": server.getsockname()[1]}) == Answer([[], ["lo"]])


def test_no_further_namespaces_and_no_privileges(host):
    source = """
    def f():
        libc = ctypes.CDLL(None, use_errno=True)
        caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
        mounted = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
        return [libc.unshare(0x10000000), mounted, libc.setuid(0), sorted(set(caps))]
    """
    assert host.run(source) == Answer([-1, -1, -1, ["0" * 16]])
    raised = "def f(): resource.setrlimit(resource.RLIMIT_NPROC, (10**4, 10**4))"
    assert host.run(raised).detail.startswith("ValueError")


# Cells.


@pytest.mark.parametrize(
    "cell", ["def f(:", "f = 1 +", "a\0b", "(" * 10_000, "x" * (2 << 20), "\ud800", "é = 1; ñ = ", "%matplotlib"]
)
def test_cells_that_are_not_python(host, cell):
    outcome = host.run(cell)
    assert outcome.kind == "import"
    assert host.worker.alive == (len(cell) < 1 << 20 and cell != "\ud800")


# Controls: right answers that make noise.


@BOTH
def test_controls(host, isolation):
    source = """
    class Noise:
        def __del__(self): raise RuntimeError("in __del__")
    def f(x):
        Noise()
        print("warning", file=sys.stderr)
        os.system("echo noise >&2")
        import warnings; warnings.warn("noise")
        threading.Thread(target=lambda: 1 / 0).start()
        return {"sum": x.sum(), "shape": tuple(x.shape), "none": None}
    """
    outcome = host.run(source, arguments={"x": torch.ones(2, 3)}, isolation=isolation)
    assert outcome.value["sum"] == 6
    assert (outcome.value["shape"], outcome.value["none"]) == ([2, 3], None)


@pytest.fixture
def other_user(host):
    """Runs a script as a grader who is not root: the supervisor makes the way, and nobody gives it control groups."""
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")

    def run(script: str) -> subprocess.CompletedProcess:
        script = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}]; sys.path += {confine.SITES!r}
import os
from grader import confine
from grader.sandbox import Answer, Failure, Limits, Worker
confine.SITES = {confine.SITES!r}
{script}"""
        plan = {"command": [confine.PYTHON, "-I", "-S", "-B", "-c", script], "user": host.user, "memory": 4 << 30}
        plan["needed"] = [str(ROOT), confine.BASE, *confine.SITES]
        command = [confine.PYTHON, "-I", str(ROOT / "grader/supervisor.py"), json.dumps(plan)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=confine.environment("/tmp", 1))
        assert json.loads(done.stdout)["why"] == "exit"
        host.untouched()
        return done

    return run


@BOTH
def test_a_grader_that_is_not_root(other_user, host, isolation):
    done = other_user(f"""
source = "def f(): import os; return os.getuid()\\ndef g(): os._exit(0)"
with Worker([("a", source)], isolation="{isolation}") as worker:
    assert worker.ask("call", "f", {{}}, seconds=20) == Answer(os.getuid()), worker.cell_errors
    assert worker.ask("call", "g", {{}}, seconds=20).kind == "error"
    os.write(2, b"as %d" % os.getuid())
""")
    assert done.stderr == f"as {host.user}"


@BOTH
def test_memory_that_no_process_shows_without_control_groups(other_user, isolation):
    """The machine's shared memory tells; whose it is can't be known, so it may be asked again alone."""
    source = "import ctypes, mmap, time\n" + UNSEEN.replace("DROP", "kept.madvise(mmap.MADV_DONTNEED, at, step)")
    done = other_user(f"""
with Worker([("a", {source!r})], isolation="{isolation}", limits=Limits(memory=768 << 20)) as worker:
    said = worker.ask("call", "f", {{"size": 1200 << 20, "step": 40 << 20}}, seconds=60)
    os.write(2, repr((said, worker.groups, worker.crowded)).encode())
""")
    assert done.stderr == repr((Failure("memory"), [], True))
