"""A worker answers, says why where it does not, and is gone afterwards; tests/test_attacks.py has the hostile ones."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from grader import confine, sandbox
from grader.grade import grade_folder
from grader.results import Grading
from grader.sandbox import Answer, Failure, SandboxError, Worker, best_isolation, bubblewrap_problem

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
ROOT = Path(__file__).resolve().parent.parent
SETUP = "import torch\n"
SOURCE = """
def double(x): return 2 * x
def square(x): return (x**2).sum()
def raises(): raise ValueError("x = 3")
def sleeps(): import time; time.sleep(600)
def exits(): import os; os._exit(0)
def uid(): import os; return os.getuid()
def number(): import numpy; return numpy.float64(1)
def unordered(): return {1, 2}
def threads(): return torch.get_num_threads()
"""


@pytest.fixture(scope="module", params=["bubblewrap", "reduced"])
def isolation(request) -> str:
    if request.param == "bubblewrap" and bubblewrap_problem():
        pytest.skip(bubblewrap_problem())
    return request.param


@pytest.fixture(scope="module")
def worker(isolation):
    broken = [("lab02.1", "1 +"), ("lab02.2", "1 / 0\ndef lost(): pass"), ("lab02.3", "def later(): return 3")]
    with Worker([("lab02.0", SOURCE), *broken], setup=SETUP, isolation=isolation) as worker:
        yield worker


def test_answers(worker):
    x = torch.arange(3.0)
    answer = worker.ask("call", "double", {"x": x}, seconds=5)
    assert isinstance(answer, Answer)
    assert torch.equal(answer.value, 2 * x)
    answer = worker.ask("loss_and_grads", "square", {"x": x, "wrt": ["x"]}, seconds=5)
    assert answer.value["loss"] == 5
    assert torch.equal(answer.value["grads"]["x"], 2 * x)
    big = torch.zeros(1 << 20)  # more than a pipe holds
    assert torch.equal(worker.ask("call", "double", {"x": big}, seconds=5).value, big)
    assert worker.ask("call", "threads", {}, seconds=5) == Answer(1)


def test_failures_that_leave_it_alive(worker):
    assert worker.ask("call", "raises", {}, seconds=5) == Failure("error", "ValueError: x = 3")
    assert worker.ask("call", "double", {"y": 1}, seconds=5).kind == "error"
    assert worker.ask("call", "number", {}, seconds=5) == Answer(1.0)
    said = "set is none of numbers, text, lists, dicts, tensors and arrays"
    assert worker.ask("call", "unordered", {}, seconds=5) == Failure("protocol", said)
    assert worker.ask("call", "later", {}, seconds=5) == Answer(3)
    assert [text.partition(":")[0] for text in worker.cell_errors] == ["lab02.1", "lab02.2"]
    assert worker.ask("call", "lost", {}, seconds=5) == Failure("import", "\n".join(worker.cell_errors))
    assert worker.alive


@pytest.mark.parametrize(("function", "kind"), [("sleeps", "timeout"), ("exits", "crash")])
def test_failures_that_end_it(isolation, function, kind):
    with Worker([("lab02.0", SOURCE)], isolation=isolation) as worker:
        assert worker.ask("call", "missing", {}, seconds=5) == Failure("missing")
        start = time.monotonic()
        assert worker.ask("call", function, {}, seconds=0.5) == Failure(kind)
        assert time.monotonic() - start < 5
        assert not worker.alive
        assert worker.ask("call", "double", {"x": 1}, seconds=5) == Failure(kind)


def test_root_hands_over_to_another_user(worker):
    if os.getuid() == 0:
        assert worker.ask("call", "uid", {}, seconds=5).value in confine.USERS


def test_the_best_isolation_is_tried():
    assert best_isolation() == ("reduced" if bubblewrap_problem() else "bubblewrap")
    with pytest.raises(ValueError, match="isolation: got 'none'"):
        Worker([], isolation="none")


def test_a_sandbox_that_does_not_start_is_nobodys_fault(monkeypatch, isolation):
    monkeypatch.setattr(confine, "program", lambda *_: "raise SystemExit('no torch')")
    with (
        pytest.raises(SandboxError, match=f"'{isolation}' fails here .crash.: no torch$"),
        Worker([], isolation=isolation),
    ):
        pass


def test_code_that_empties_the_graders_pipe_is_its_own_loss(worker, monkeypatch):
    """By way of /proc/self/fd it can open the other end, and be quicker than the grader."""
    monkeypatch.setattr(sandbox, "_poll", lambda descriptor, event, seconds: event if seconds else 0)
    assert worker.ask("call", "sleeps", {}, seconds=5).kind == "protocol"


def test_no_module_of_the_package(isolation):
    source = "def f(): import minigrpo.checks\ndef g(): import minigrpo.steps"
    with Worker([("a", source)], isolation=isolation) as worker:
        said = [worker.ask("call", function, {}, seconds=5).detail for function in "fg"]
    assert all(text.startswith("ModuleNotFoundError: ") and "minigrpo" in text for text in said)


def test_what_the_sandbox_shows():
    if bubblewrap_problem():
        pytest.skip(bubblewrap_problem())
    source = "import os\ndef f(paths): return [sorted(os.listdir(path)) for path in paths]"
    with Worker([("a", source)], isolation="bubblewrap") as worker:
        root, usr, base, ours = worker.ask(
            "call", "f", {"paths": ["/", "/usr", confine.BASE, "/grader"]}, seconds=5
        ).value
    places = {"bin", "lib", "lib32", "lib64"}
    on_the_way = {path.split("/")[1] for path in (confine.BASE, *confine.SITES)}
    assert set(root) <= {*places, *on_the_way, "usr", "etc", "proc", "dev", "tmp", "grader"}
    assert set(usr) <= {*places, "local"}
    assert set(base) <= places | ({"local"} if confine.BASE == "/usr" else set())
    assert ours == ["grader", "home"]


def test_submissions_and_grades_that_workers_would_see_are_refused(tmp_path, monkeypatch):
    shown, hidden = tmp_path / "site", tmp_path / "hidden"
    for folder in (shown / "in", hidden / "in"):
        folder.mkdir(parents=True)
        (folder / "anna.ipynb").write_text("no notebook")
    (tmp_path / "link").symlink_to(shown)
    monkeypatch.setattr(confine, "SITES", [str(shown)])

    def grade(folder: Path, out: Path, isolation: str = "bubblewrap") -> list[dict]:
        entry = {"notebook": "lab.ipynb", "exercises": []}
        return list(grade_folder(folder, Grading("lab02", entry, 5, isolation), out, progress=False))

    for folder, out in [
        (shown / "in", hidden / "out"),
        (hidden / "in", shown / "grades" / "out"),
        (tmp_path / "link" / "in", hidden / "out"),
        (hidden / "in", Path("/usr/lib/grades")),
    ]:
        with pytest.raises(ValueError, match=r"lies in .*, where student code can read it: put it somewhere else"):
            grade(folder, out)
    assert len(grade(hidden / "in", hidden / "out")) == len(grade(shown / "in", shown / "out", "reduced")) == 1


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root hands over to another user")
def test_the_way_through_a_private_folder(tmp_path):
    place = tmp_path / "needed"
    place.mkdir()
    (place / "file").write_text("here")
    (tmp_path / "secret").touch()
    tmp_path.chmod(0o700)

    def run(*before: str) -> str:
        plan = {"command": ["/bin/sh", "-c", f"cat {place}/file >&2; ls {tmp_path} >&2"], "memory": 1 << 30}
        plan |= {"user": confine.USERS[0], "needed": [str(place)]}
        command = [*before, sys.executable, str(ROOT / "grader/supervisor.py"), json.dumps(plan)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60).stderr

    assert run() == "hereneeded\n"
    if shutil.which("setpriv"):  # as in a container whose root may not mount
        assert "closed to the user that student code runs as" in run("setpriv", "--bounding-set", "-sys_admin")


GROUPS = {  # what /proc/self says of a machine's control groups; what is offered there; what a worker is to get
    "version 2, delegated": (
        "0::/user.slice/course/leaf\n",
        "42 30 0:39 / MOUNT rw - cgroup2 cgroup2 rw,nsdelegate\n",
        {"user.slice/course": "cpuset cpu memory pids", "": "cpu memory"},
        {"cpu": "user.slice/course", "memory": "user.slice/course"},
        {"memory.max": "300", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "100000 100000"},
    ),
    "version 2, with both controllers further out": (
        "0::/user.slice/some.scope\n",
        "42 30 0:39 / MOUNT rw - cgroup2 cgroup2 rw\n",
        {"user.slice/some.scope": "", "user.slice": "memory pids", "": "cpuset cpu io memory pids"},
        {"cpu": "", "memory": ""},
        {"memory.max": "300", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "100000 100000"},
    ),
    "version 2 in a container": (
        "0::/docker/abc\n",
        "42 30 0:39 /docker MOUNT rw - cgroup2 cgroup rw\n",
        {"": "memory"},
        {"memory": ""},
        {"memory.max": "300", "memory.swap.max": "0", "memory.oom.group": "1"},
    ),
    "version 1 beside an empty version 2": (
        "9:name=systemd:/\n4:memory:/a:b\n1:cpu,cpuacct:/\n0::/\n",
        "41 31 0:38 / MOUNT/unified rw shared:9 - cgroup2 cgroup2 rw\n"
        "35 31 0:32 / MOUNT/memory rw - cgroup cgroup rw,memory\n"
        "32 31 0:29 / MOUNT/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
        {"memory/a:b": "", "cpu": "", "unified": ""},
        {"cpu": "cpu", "memory": "memory/a:b"},
        {"memory.limit_in_bytes": "300", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"},
    ),
    "none that is ours": ("0::/\n", "42 30 0:39 / /proc rw - cgroup2 cgroup2 ro\n", {}, {}, {}),
    "none": ("", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", {}, {}, {}),
}


@pytest.mark.parametrize("machine", GROUPS)
def test_control_groups(machine, tmp_path, monkeypatch):
    from grader import supervisor  # of Linux alone

    own, mounts, offered, homes, limits = GROUPS[machine]
    for home, controllers in offered.items():
        (tmp_path / home).mkdir(parents=True, exist_ok=True)
        (tmp_path / home / "cgroup.subtree_control").write_text(controllers + "\n")
    proc = {"/proc/self/cgroup": own, "/proc/self/mountinfo": mounts.replace("MOUNT", str(tmp_path))}
    read, mkdir = supervisor._read, os.mkdir

    def make(path, *args, **kwargs):  # as the kernel does: a new group has its files
        mkdir(path, *args, **kwargs)
        for name in (*limits, "cgroup.procs"):
            Path(path, name).touch()

    monkeypatch.setattr(supervisor, "_read", lambda path: proc[path] if path in proc else read(path))
    monkeypatch.setattr(supervisor.os, "mkdir", make)
    groups = supervisor._group(1234, 300)
    assert groups == {name: os.path.normpath(f"{tmp_path}/{at}/minigrpo-{os.getpid()}") for name, at in homes.items()}
    files = [path for group in set(groups.values()) for path in Path(group).iterdir()]
    written = {path.name: path.read_text() for path in files if path.read_text()}
    assert written == (limits | {"cgroup.procs": "1234"} if groups else {})
    for group in set(groups.values()):
        assert not supervisor._killed(group)
        Path(group, "memory.events").write_text("oom 2\noom_kill 1\noom_group_kill 0\n")
        assert supervisor._killed(group)


ELSEWHERE = """
import importlib, os, platform, select, signal, sys
names = ["grader", "grader.check", "grader.cli", "grader.doctor", "grader.local", "grader.sandbox", "grader.labs.lab02"]
for name in names:
    importlib.import_module(name)  # other people's packages are imported on the system that this really is
for name in [name for name in sys.modules if name.partition(".")[0] in ("grader", "minigrpo")]:
    del sys.modules[name]
for name in ("resource", "fcntl", "pwd", "grp", "termios", "pty"):
    sys.modules[name] = None
of_unix = {os: ("fork", "getuid", "geteuid", "setsid", "waitpid"), select: ("poll", "epoll"), signal: ("SIGKILL",)}
for module, lost in of_unix.items():
    for name in lost:
        delattr(module, name)
sys.platform, platform.system = "win32", lambda: "Windows"
for name in names:
    importlib.import_module(name)
from grader.cli import main
from grader.doctor import _isolation
out = sys.argv[1]
said = [main(["check", "lab02"]), main(["submit", "lab02", "--out", out + "/lab02.zip"])]
grade = ["grade", out, "--lab", "lab02", "--out", out + "/grades"]
said += [main(grade), main([*grade, "--accept-reduced"]), _isolation()[0][2].partition(";")[0]]
print("told:", said)
"""


def test_a_system_that_is_no_linux_checks_and_hands_in_and_says_why_it_does_not_grade(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["told: [0, 0, 2, 2, 'none']"], done.stderr
    refused = (
        "grader grade: grading needs Linux, and this is Windows: use WSL 2, a virtual machine or another computer\n"
    )
    assert done.stderr == 2 * refused
    assert [path.name for path in tmp_path.iterdir()] == ["lab02.zip"]


def test_what_the_kernel_lacks_is_said(monkeypatch):
    monkeypatch.setattr(sandbox, "best_isolation", lambda: "reduced")
    monkeypatch.setattr(sandbox, "_tried", lambda isolation: ("", ["cpu", "memory"]))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert sandbox.weaknesses() == []
    monkeypatch.setattr(sandbox, "_tried", lambda isolation: ("", []))
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    said = sandbox.weaknesses()
    assert [any(word in text for text in said) for word in ("memory", "processor", "riscv64")] == [True] * 3
