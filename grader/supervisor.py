"""Starts one worker's process tree, watches its memory, and ends all of it: trusted, outside the sandbox.

It is a program of its own so that it can fork without regard to the grader's threads, become another user, and be
the subreaper of everything that the student's code leaves behind. Run as root it

1. opens the way: another user cannot pass through a private folder (an interpreter under /root, say), so in a mount
   namespace of its own an empty folder is laid over it, with only what the worker needs bound back at its place;
2. puts the tree into control groups, of memory and of the processor, where this machine has them;
3. drops to another user, and only then starts bubblewrap. Bubblewrap's own --uid would leave the processes root's in
   the kernel's eyes, and RLIMIT_NPROC does not bind root.

Run by another user it stays that user, and has control groups where some were delegated to it. When the worker ends,
the grader asks (SIGTERM) or is gone, or the tree takes too much memory, every process below is killed, and one line of
JSON says why: "exit", "stopped" or "memory"; whether the machine, not the code, may be to blame ("crowded"); and which
control groups there were ("groups").
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping

LIBC = ctypes.CDLL(None, use_errno=True)
# CLONE_NEWNS; MS_REC with MS_PRIVATE, with MS_BIND
UNSHARE_MOUNTS, PRIVATE, BIND = 0x20000, 0x44000, 0x5000
SUBREAPER = 36
KEYCTL, JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
WAITED = {signal.SIGCHLD, signal.SIGTERM}
PERIOD = 100_000  # microseconds, of which the tree gets as many of processor time: one core
CROWDED = 2.0  # seconds for which a tree was ready to run and had no processor


def main(
    command: list[str],
    user: int | None,
    needed: list[str],
    memory: int,
    disk: int = 0,
    stage: str | None = None,
) -> None:
    """Run `command` as `user`, who needs to read the folders `needed`; its tree may take `memory` bytes.

    It may fill `disk` bytes of files in memory besides. The folder `stage` is removed at the end: also where the
    grader is gone, and can't do so itself.

    Args:
        command: to run.
        user: that it runs as; None: ours.
        needed: folders that the user has to read.
        memory: bytes that its tree may take.
        disk: bytes of files in memory besides.
        stage: a folder that is removed at the end, also where the grader is gone.
    """
    grader = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    _check(LIBC.prctl(SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))), "prctl")
    if user is not None:
        _open_way(needed)
    grouped, ready = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(ready)
        if not os.read(grouped, 1):
            os._exit(1)  # the supervisor died
        os.dup2(0, 1)  # the word is ours alone to write
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED)
        os.setsid()
        _leave_keyring()
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        os.execv(command[0], command)
    groups = _group(worker, memory + disk)
    os.write(ready, b".")
    os.dup2(0, 2)
    crowded = False
    try:
        word = _watch(worker, grader, memory, groups.get("memory"))
        crowded = word == "machine" or sum(map(_waited, _tree())) > CROWDED
    finally:
        while tree := _tree():
            for pid in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 0.01)
            _reap()
        for group in set(groups.values()):
            with contextlib.suppress(OSError):  # an empty group that stays does no harm
                os.rmdir(group)
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
    why = "memory" if word == "machine" else word
    sys.stdout.write(json.dumps({"why": why, "crowded": crowded, "groups": sorted(groups)}))


def _leave_keyring() -> None:
    """Take a session keyring of its own: that of whoever grades may hold keys, and would come along."""
    if platform.machine() in KEYCTL:
        failed = LIBC.syscall(KEYCTL[platform.machine()], JOIN_SESSION_KEYRING, None) < 0
        # no keys here, or none to be had
        if failed and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
            _check(failed, "keyctl")


def _watch(worker: int, grader: int, memory: int, group: str | None) -> str:
    """Wait for the worker's end: "exit", "stopped", "memory", or "machine" where nobody knows whose that is."""
    pause, before = 0.05, _shared()
    while True:
        woken = signal.sigtimedwait(WAITED, pause)
        ended = worker in _reap()
        if group and _killed(group):
            return "memory"
        if ended:
            return "exit"
        if (woken and woken.si_signo == signal.SIGTERM) or os.getppid() != grader:
            return "stopped"
        started = time.process_time()
        sizes = [_memory(pid) for pid in _tree()]
        private, shared = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
        if private + shared > memory:
            return "memory"
        if not group and private + _shared() - before > memory:  # perhaps its: no process shows it
            return "machine"
        busy = time.process_time() - started
        pause = min(max(0.05, 20 * busy), 0.2)  # about 5% of a core, on a machine not crowded


def _tree() -> set[int]:
    """Every process below this one, also those that have ended and wait to be reaped."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if stat := _read(f"/proc/{pid}/stat"):
            # a program's name may hold ")" and spaces
            parents[int(pid)] = int(stat.rpartition(")")[2].split()[1])
    tree, new = set(), {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        tree |= new
    return tree


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of a process that no file backs, private and shared; what forks share counts in each, on the safe side."""
    # a process lives on, and a main thread that has ended shows no memory
    for thread in _list(f"/proc/{pid}/task"):
        sizes = _sizes(f"/proc/{pid}/task/{thread}/status")
        if "RssAnon" in sizes:
            return sum(sizes.get(name, 0) for name in ("RssAnon", "VmSwap", "VmPTE")), sizes[
                "RssShmem"
            ]
    return 0, 0


def _shared() -> int:
    """Bytes of the whole machine's shared memory: of some a process loses sight, and keeps it."""
    return _sizes("/proc/meminfo")["Shmem"]


def _sizes(path: str) -> dict[str, int]:
    """The lines of a file such as "RssAnon:  12 kB", in bytes."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[2:] == ["kB"]}


def _waited(pid: int) -> float:
    """Seconds for which a process was ready to run and others had the processors."""
    return int((_read(f"/proc/{pid}/schedstat") or "0 0").split()[1]) / 1e9


# ---------------------------------------------------------------------------------------------------------------------
# Control groups: the kernel's own account of a tree's memory, and a bound on its processor time
# ---------------------------------------------------------------------------------------------------------------------


def _group(worker: int, memory: int) -> dict[str, str]:
    """Put the worker into control groups; gives their folders by controller, as far as this machine has them for us."""
    version_1 = {
        "memory": {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
        "cpu": {"cpu.cfs_period_us": PERIOD, "cpu.cfs_quota_us": PERIOD},
    }
    version_2 = {
        "memory": {"memory.max": memory, "memory.swap.max": 0, "memory.oom.group": 1},
        "cpu": {"cpu.max": f"{PERIOD} {PERIOD}"},
    }
    homes = {
        home: _read(f"{home}/cgroup.subtree_control").split() for home in _homes("", "cgroup2")
    }
    for controllers in (["memory", "cpu"], ["memory"]):  # both, if need be further out
        files = {
            name: value
            for controller in controllers
            for name, value in version_2[controller].items()
        }
        for home, offered in homes.items():
            if set(controllers) <= set(offered) and (folder := _join(worker, home, files)):
                return dict.fromkeys(controllers, folder)  # of version 2 a process is in one group
    groups = {}
    for controller, files in version_1.items():
        joined = (_join(worker, home, files) for home in _homes(controller, "cgroup"))
        if folder := next(filter(None, joined), None):
            groups[controller] = folder
    return groups


def _homes(controller: str, kind: str) -> Iterator[str]:
    """Folders in which a group could be made, from our own group outwards."""
    own = (line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines())
    path = next((path for _, names, path in own if controller in names.split(",")), None)
    for line in _read("/proc/self/mountinfo").splitlines() if path else ():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        found, _, options = right.split(" ", 2)
        inner = os.path.relpath(path or "/", root)
        if (
            found == kind
            and (not controller or controller in options.split(","))
            and not inner.startswith("..")
        ):
            folder = os.path.normpath(f"{point}/{inner}")
            yield folder
            while folder != point:
                folder = os.path.dirname(folder)
                yield folder


def _join(worker: int, home: str, files: Mapping[str, object]) -> str | None:
    """Make a group with these limits and move the worker into it, or give None where it is not ours to make."""
    folder = f"{home}/minigrpo-{os.getpid()}"
    try:
        os.mkdir(folder)
    except OSError:
        return None
    try:
        for name, value in {**files, "cgroup.procs": worker}.items():
            # a kernel without an account of swap has no limit on it
            if os.path.exists(f"{folder}/{name}"):
                with open(f"{folder}/{name}", "w", encoding="ascii") as file:
                    file.write(str(value))
    except OSError:
        os.rmdir(folder)
        return None
    return folder


def _killed(group: str) -> bool:
    """Whether the kernel killed a process for the group's memory."""
    said = f"{_read(f'{group}/memory.events')}\n{_read(f'{group}/memory.oom_control')}"
    return any(int(line.split()[1]) for line in said.splitlines() if line.startswith("oom_kill "))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _reap() -> set[int]:
    ended = set()
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    except ChildProcessError:
        pass
    return ended


def _open_way(needed: list[str]) -> None:
    """Lay an open, empty folder over each private one on the way to a needed one, in a mount namespace of our own."""
    covered: dict[str, list[str]] = {}
    for path in needed:
        parts = path.split("/")
        above = ["/".join(parts[:n]) for n in range(2, len(parts))]
        if private := [folder for folder in above if not os.stat(folder).st_mode & 0o001]:
            covered.setdefault(private[0], []).append(path)
        elif os.stat(path).st_mode & 0o005 != 0o005:
            sys.exit(f"{path} cannot be read by another user")
    if covered:
        if LIBC.unshare(UNSHARE_MOUNTS):
            sys.exit(
                f"{', '.join(covered)}: closed to the user that student code runs as; open it with chmod o+x"
            )
        _mount(b"none", "/", b"", PRIVATE)
    for folder, paths in covered.items():
        held = [os.open(path, os.O_PATH) for path in paths]
        _mount(b"tmpfs", folder, b"tmpfs", 0)
        for path, descriptor in zip(paths, held, strict=True):
            os.makedirs(path, mode=0o755, exist_ok=True)
            _mount(f"/proc/self/fd/{descriptor}".encode(), path, b"", BIND)
            os.close(descriptor)


def _mount(source: bytes, target: str, kind: bytes, flags: int) -> None:
    _check(
        LIBC.mount(
            source, target.encode(), kind, ctypes.c_ulong(flags), b"mode=755" if kind else None
        ),
        target,
    )


def _check(failed: int, what: str) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
