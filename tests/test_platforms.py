"""A student's way on Windows and macOS: what Unix alone has is hidden from our modules, and all of it still works."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Ours alone meet Windows: on Unix the standard library and the packages need what is theirs.
HIDE = """
import builtins, os, signal, sys
MODULES = "crypt fcntl grp nis posix pty pwd readline resource spwd syslog termios tty".split()
real = builtins.__import__

class Windows:
    def __init__(self, module, without, **instead):
        self.__dict__ |= {"_module": module, "_without": without.split()} | instead

    def __getattr__(self, name):
        if name in self._without:
            raise AttributeError(f"Windows has no {self._module.__name__}.{name}")
        return getattr(self._module, name)

OTHER = {
    "os": Windows(os, "chroot fork geteuid getpgid getsid getuid killpg sched_getaffinity setsid wait4", name="nt"),
    "signal": Windows(signal, "SIGALRM SIGHUP SIGKILL alarm pthread_sigmask setitimer"),
    "sys": Windows(sys, "", platform="win32"),
}

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    ours = (globals or {}).get("__name__", "").partition(".")[0] in {"minigrpo", "grader"}
    if ours and name in MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return OTHER[name] if ours and name in OTHER else real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
"""

IMPORTS = """
import importlib, pkgutil
import grader, minigrpo
SANDBOX = ("grader.restrain", "grader.supervisor", "grader.worker")  # run on Linux alone, in processes of their own
found = []
for package in (minigrpo, grader):
    found += [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in found:
    if not name.endswith("__main__") and name not in SANDBOX:
        importlib.import_module(name)
print(len(found))
"""


def run(code, cwd, *arguments, **environment):
    command = [sys.executable, "-c", HIDE + code, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8")


def test_what_is_hidden_is_missing(tmp_path):
    (tmp_path / "grader.py").write_text("import resource", encoding="utf-8")
    done = run("sys.path.insert(0, ''); import grader", tmp_path)
    assert "No module named 'resource'" in done.stderr


def test_every_module_can_be_imported(tmp_path):
    done = run(IMPORTS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


def test_a_language_model_trains(tmp_path):
    arguments = ["llm", "train", "--preset", "cpu", "--updates", 2, "--eval-size", 4, "--out", "run"]
    done = run("from minigrpo.cli import main; sys.exit(main(sys.argv[1:]))", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["update"] for row in rows] == [0, 1, 2]


def test_the_grader_checks(tmp_path):
    done = run("from grader.cli import main; sys.exit(main(sys.argv[1:]))", ROOT, "check", "lab00")
    assert done.returncode == 0, done.stderr
    assert "lab00.1" in done.stdout


def test_the_doctor_speaks(tmp_path):
    done = run("from grader.cli import main; sys.exit(main(sys.argv[1:]))", ROOT, "doctor")
    assert done.returncode == 0, done.stderr
    assert "isolation" in done.stdout


def test_grading_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "class").mkdir()
    code = "from grader.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run(code, ROOT, "grade", tmp_path / "class", "--lab", "lab00", "--out", tmp_path / "out", "--seed", 1)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_greek_letters(tmp_path):
    code = "from minigrpo.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run(code, tmp_path, "explore", "--out", "page.html", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
