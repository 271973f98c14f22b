"""Starts one worker's process tree, watches its memory, and ends all of it: trusted, outside the sandbox.

It is a program of its own so that it can fork without regard to the grader's threads, become another user, and be
the subreaper of everything that the student's code leaves behind. Run as root it

1. opens the way: another user cannot pass through a private folder (an interpreter under /root, say), so in a mount
   namespace of its own an empty folder is laid over it, with only what the worker needs bound back at its place;
2. drops to another user, and only then starts bubblewrap. Bubblewrap's own --uid would leave the processes root's in
   the kernel's eyes, and RLIMIT_NPROC does not bind root.

Run by another user it stays that user. When the worker ends, the grader asks (SIGTERM) or is gone, or the tree takes
too much memory, every process below is killed and one word says why: "exit", "stopped" or "memory".
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
UNSHARE_MOUNTS, PRIVATE, BIND = 0x20000, 0x44000, 0x5000  # CLONE_NEWNS; MS_REC with MS_PRIVATE, with MS_BIND
SUBREAPER = 36
WAITED = {signal.SIGCHLD, signal.SIGTERM}


def main(command: list[str], user: int | None, needed: list[str], memory: int, stage: str | None = None) -> None:
    """Run `command` as `user`, who needs to read the folders `needed`; its tree may take `memory` bytes.

    The folder `stage` is removed at the end: also where the grader is gone, and can't do so itself.
    """
    grader = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    _check(LIBC.prctl(SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))), "prctl")
    if user is not None:
        _open_way(needed)
    worker = os.fork()
    if worker == 0:
        os.dup2(0, 1)  # the word is ours alone to write
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED)
        os.setsid()
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        os.execv(command[0], command)
    os.dup2(0, 2)
    try:
        word = _watch(worker, grader, memory)
    finally:
        while tree := _tree():
            for pid in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 0.01)
            _reap()
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
    sys.stdout.write(word)


def _watch(worker: int, grader: int, memory: int) -> str:
    pause = 0.05
    while True:
        woken = signal.sigtimedwait(WAITED, pause)
        if worker in _reap():
            return "exit"
        if (woken and woken.si_signo == signal.SIGTERM) or os.getppid() != grader:
            return "stopped"
        started = time.process_time()
        if sum(map(_memory, _tree())) > memory:
            return "memory"
        pause = min(
            max(0.05, 20 * (time.process_time() - started)), 0.2
        )  # about 5% of a core, on a machine not crowded


def _tree() -> set[int]:
    """Every process below this one, also those that have ended and wait to be reaped."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if stat := _read(f"/proc/{pid}/stat"):
            parents[int(pid)] = int(stat.rpartition(")")[2].split()[1])  # a program's name may hold ")" and spaces
    tree, new = set(), {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        tree |= new
    return tree


def _memory(pid: int) -> int:
    """Bytes of a process that no file backs; what forks share counts in each, which errs on the host's side."""
    for thread in _list(f"/proc/{pid}/task"):  # a process lives on, and a main thread that has ended shows no memory
        status = [line.partition(":") for line in _read(f"/proc/{pid}/task/{thread}/status").splitlines()]
        sizes = [int(kb.split()[0]) for name, _, kb in status if name in ("RssAnon", "RssShmem", "VmSwap", "VmPTE")]
        if sizes:
            return 1024 * sum(sizes)
    return 0


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
            sys.exit(f"{', '.join(covered)}: closed to the user that student code runs as; open it with chmod o+x")
        _mount(b"none", "/", b"", PRIVATE)
    for folder, paths in covered.items():
        held = [os.open(path, os.O_PATH) for path in paths]
        _mount(b"tmpfs", folder, b"tmpfs", 0)
        for path, descriptor in zip(paths, held, strict=True):
            os.makedirs(path, mode=0o755, exist_ok=True)
            _mount(f"/proc/self/fd/{descriptor}".encode(), path, b"", BIND)
            os.close(descriptor)


def _mount(source: bytes, target: str, kind: bytes, flags: int) -> None:
    _check(LIBC.mount(source, target.encode(), kind, ctypes.c_ulong(flags), b"mode=755" if kind else None), target)


def _check(failed: int, what: str) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
