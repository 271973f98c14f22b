"""What a worker is given: a copy of a few of our files, the interpreter, an environment, and under bubblewrap no more.

The interpreter runs without `site`, so that no .pth file, sitecustomize or PYTHON… variable has a say; the folders of
installed packages are named to it one by one. Of the student's submission nothing but the text of the cells arrives.
"""

import os
import shutil
import site
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# ids that systemd's table of users leaves free; one for each worker in turn
USERS = range(60578, 61184)
PYTHON = os.path.realpath(getattr(sys, "_base_executable"))  # noqa: B009  (no public name, and no annotation)
BASE = os.path.realpath(sys.base_prefix)
SITES = [
    os.path.realpath(p)
    for p in (*site.getsitepackages(), site.getusersitepackages())
    if p in sys.path
]


def fill(stage: Path, user: int | None) -> Path:
    """Copy into `stage` what of ours the worker may read; gives the folder in it that `user` may write to."""
    drivers = (f"grader/drivers/{path.name}" for path in (HERE / "drivers").glob("*.py"))
    for name in ("grader/protocol.py", "grader/restrain.py", "grader/worker.py", *drivers):
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


def program(place: str, requests: int, answers: int, rlimits: dict[str, int], first: bool) -> str:
    """What the interpreter in the sandbox is told to run; `first` where it is process 1 there.

    Args:
        place: the folder that becomes the sandbox.
        requests: descriptor to read from.
        answers: descriptor to write to.
        rlimits: by their names in `resource`.
        first: whether it is process 1 in there.
    """
    path = f"import sys; sys.path[:0] = [{place!r}]; sys.path += {SITES!r}"
    bound = (
        f"from grader import restrain; restrain.restrain({rlimits!r})"
        + "; restrain.stand_first()" * first
    )
    return f"{path}\n{bound}\nfrom grader.worker import main; main({requests}, {answers})"


def shown() -> list[str]:
    """The folders of the host that the sandbox shows: programs, the interpreter, its libraries, installed packages."""
    folders = [
        f"{root}/{name}"
        for root in ("/usr", "/usr/local", "", BASE)
        for name in ("bin", "lib", "lib32", "lib64")
    ]
    return [folder for folder in dict.fromkeys([*folders, *SITES]) if os.path.isdir(folder)]


def shows(path: Path) -> str | None:
    """The folder of `shown` that a path lies in, by whatever links, or None."""
    path = path.resolve()
    return next(
        (folder for folder in shown() if path.is_relative_to(os.path.realpath(folder))), None
    )


def bubblewrap(stage: str, disk: int) -> list[str]:
    """The start of a command line that shows the rest of it, of the host, only `shown` and `stage`, as /grader.

    Everything is read-only but /tmp and /dev/shm, of `disk` bytes each. There is no network, no other process, no
    privilege and no way to get one by another user namespace.
    """
    options = [
        "--unshare-user",
        "--unshare-all",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
    ]
    options += [
        "--as-pid-1",
        "--cap-drop",
        "ALL",
        "--ro-bind-try",
        "/etc/ld.so.cache",
        "/etc/ld.so.cache",
    ]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):
        options += ["--size", str(disk), "--tmpfs", folder]
    hidden = []
    for folder in shown():
        if os.path.islink(folder):
            options += ["--symlink", os.readlink(folder), folder]
            continue
        options += ["--ro-bind", folder, folder]
        ours = (
            [str(HERE.parent)]
            if HERE.is_relative_to(folder) and HERE.parent != Path(folder)
            else []
        )
        for name in [*ours, f"{folder}/minigrpo", f"{folder}/grader"]:
            if os.path.isdir(name):
                # over this repository, and over what is installed of it
                options += ["--tmpfs", name]
                hidden.append(name)
    options += ["--ro-bind", stage, "/grader", "--chdir", "/tmp"]
    for folder in ("/dev", *hidden, "/"):
        options += ["--remount-ro", folder]
    return [shutil.which("bwrap") or "bwrap", *options, "--"]


def environment(home: str, threads: int) -> dict[str, str]:
    """All the environment there is: bubblewrap gets no other, so it has none to hand on."""
    libraries = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
    fixed = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": home,
        "USER": "student",
        "MPLBACKEND": "Agg",
    }
    return fixed | {f"{library}_NUM_THREADS": str(threads) for library in libraries}
