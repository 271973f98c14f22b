"""A worker answers, says why where it does not, and is gone afterwards; tests/test_attacks.py has the hostile ones."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from grader import confine, sandbox
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


@pytest.mark.skipif(os.getuid() != 0, reason="only root hands over to another user")
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
