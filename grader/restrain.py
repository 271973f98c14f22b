"""What the sandbox's code can't undo: limits, a filter of system calls, and a process 1 out of its reach.

All of it is set while nothing of the student is there yet, by the first process that runs inside, so that every other
one inherits it. Python's standard library alone; `confine.fill` copies this file into the sandbox.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct

# linux/bpf_common.h: the instructions that are used. Each is (code, jump if true, jump if false, constant).
BPF_LD_W_ABS = 0x20  # BPF_LD | BPF_W | BPF_ABS: load 32 bits of struct seccomp_data, from an offset
BPF_JEQ_K = 0x15  # BPF_JMP | BPF_JEQ | BPF_K: is what was loaded equal to the constant?
BPF_JGE_K = 0x35  # BPF_JMP | BPF_JGE | BPF_K: is it as large, unsigned?
BPF_JSET_K = 0x45  # BPF_JMP | BPF_JSET | BPF_K: has it one of the constant's bits?
BPF_RET_K = 0x06  # BPF_RET | BPF_K: the verdict
# linux/seccomp.h
# offsets in struct seccomp_data; of the first argument its lower half
NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16
KILL_PROCESS, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT = (
    ERRNO | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
)
# linux/prctl.h
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 4, 22, 38, 2

# linux/audit.h: AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# The kernel's numbers of calls on these machines, in their order (asm/unistd_64.h, asm-generic/unistd.h); None where a
# machine lacks one. All of these are refused with EPERM.
REFUSED = {
    "keys, which cross from one user to another": {
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
    },
    "other processes' memory and descriptors": {
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "kcmp": (312, 272),
        "pidfd_getfd": (438, 438),
        "process_madvise": (440, 440),
        "process_mrelease": (448, 448),
        "perf_event_open": (298, 241),
    },
    "memory that is no process's own, or that outlives it": {
        "memfd_create": (319, 279),
        "memfd_secret": (447, 447),
        "shmget": (29, 194),
        "semget": (64, 190),
        "msgget": (68, 186),
        "mq_open": (240, 180),
    },
    "namespaces and mounts": {
        "unshare": (272, 97),
        "setns": (308, 268),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "open_by_handle_at": (304, 265),
    },
    "large parts of the kernel that no exercise needs": {
        "bpf": (321, 280),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "fanotify_init": (300, 262),
        "personality": (135, 92),
        "modify_ldt": (154, None),
        "syslog": (103, 116),
        "acct": (163, 89),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
    },
    "the machine itself": {
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "reboot": (169, 142),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "clock_adjtime": (305, 266),
        "adjtimex": (159, 171),
        "iopl": (172, None),
        "ioperm": (173, None),
    },
}
# calls from this number on are younger than this list, and those of x32 larger: not there (ENOSYS)
UNKNOWN = 463
# clone3 is not there: its flags lie in memory, and libraries fall back on clone
CLONE, CLONE3 = (56, 220), (435, 435)
CLONE_NEW = 0x7E020000  # CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET
SOCKETS = {"socket": (41, 198), "socketpair": (53, 199)}
FAMILIES = {
    "AF_UNIX": 1,
    "AF_INET": 2,
    "AF_INET6": 10,
    "AF_NETLINK": 16,
}  # not AF_VSOCK, which reaches a machine's host

PRCTL = ctypes.CDLL(None, use_errno=True).prctl


def restrain(limits: dict[str, int]) -> None:
    """Set limits and the filter on this process, and so on all that it starts."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if platform.machine() in MACHINES:
        lines = program(platform.machine())
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
        filter_ = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(code)))
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filter_))


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter, for a machine of MACHINES: one question after the other, each with its verdict."""
    at = list(MACHINES).index(machine)
    lines = [(BPF_LD_W_ABS, 0, 0, ARCHITECTURE)]
    # calls by another machine's numbers
    lines += [(BPF_JEQ_K, 1, 0, MACHINES[machine]), _give(KILL_PROCESS)]
    lines += [(BPF_LD_W_ABS, 0, 0, NUMBER)]
    lines += [*_if(BPF_JGE_K, UNKNOWN, _give(ENOSYS)), *_if(BPF_JEQ_K, CLONE3[at], _give(ENOSYS))]
    for calls in REFUSED.values():
        for numbers in calls.values():
            number = numbers[at]
            if number is not None:
                lines += _if(BPF_JEQ_K, number, _give(EPERM))
    argument = (BPF_LD_W_ABS, 0, 0, ARGUMENT)
    families = [
        line for family in FAMILIES.values() for line in _if(BPF_JEQ_K, family, _give(ALLOW))
    ]
    for numbers in SOCKETS.values():
        lines += _if(BPF_JEQ_K, numbers[at], argument, *families, _give(EAFNOSUPPORT))
    lines += _if(
        BPF_JEQ_K, CLONE[at], argument, *_if(BPF_JSET_K, CLONE_NEW, _give(EPERM)), _give(ALLOW)
    )
    return [*lines, _give(ALLOW)]


def _give(verdict: int) -> tuple[int, int, int, int]:
    return (BPF_RET_K, 0, 0, verdict)


def _if(
    question: int, constant: int, *then: tuple[int, int, int, int]
) -> list[tuple[int, int, int, int]]:
    """Lines that are passed over unless the answer is yes."""
    return [(question, 0, len(then), constant), *then]


def stand_first() -> None:
    """Let this process be the sandbox's process 1, and return in a child.

    Process 1 ends with that child, and reaps the rest. It can't be traced, and its memory not be opened by way of
    /proc, as its descendants may do with each other.
    """
    _prctl(PR_SET_DUMPABLE, 0)
    child = os.fork()
    if child == 0:
        _prctl(PR_SET_DUMPABLE, 1)  # what reads its own /proc/self goes on working
        return
    # so the kernel keeps it from process 1, as every other signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # the pipes are the child's alone
    os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    while os.wait()[0] != child:
        pass
    os._exit(0)


def _prctl(option: int, *arguments: int) -> None:
    if PRCTL(option, *map(ctypes.c_ulong, (*arguments, *[0] * (4 - len(arguments))))):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"prctl {option}")
