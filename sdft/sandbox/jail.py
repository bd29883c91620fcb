"""Isolate this process, then run the Python code it reads from standard input.

:mod:`sdft.sandbox.sandbox` runs this file as a script in an isolated interpreter; it imports only
the standard library. The order matters: resource limits are set first, then Landlock for files,
then a seccomp filter for system calls, and only then is the code read. If any step fails, the
failure is reported and the code is not run.

Why not bubblewrap: it would be one more program to install, it needs user namespaces, which
containers often forbid, and namespaces alone isolate less. With bubblewrap 0.8, run as root with
every namespace unshared and the same resource limits, the code could not reach files, network or
signals outside, but could fork, execute programs and start threads without limit, so the six tests
of processes in ``tests/sandbox`` failed. To prevent this, bubblewrap would need the same seccomp
filter.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from types import ModuleType

# linux/landlock.h. Rights to files below a folder; anything that no rule allows is refused.
_READ = 1 << 2 | 1 << 3  # files, folders' listings
_READ_FILE = 1 << 2
_WRITE_FILE = 1 << 1 | 1 << 14  # and truncate
_MAKE_AND_REMOVE_FILE = 1 << 8 | 1 << 5
_ALL_RIGHTS = (1 << 15) - 1
_LANDLOCK_VERSION = 3  # the first that covers truncation: Linux 6.2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READABLE = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
)

# linux/prctl.h, linux/seccomp.h, linux/filter.h
_SET_PARENT_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 22, 38
_FILTER_MODE = 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refused with EPERM
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data
_X86_64 = 0xC000003E

# System calls of x86-64 that a single-threaded program without network needs. Everything else is
# refused: sockets, new processes and threads, exec, signals, changes of rights, limits or mounts.
_ALLOWED = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7,
    "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "select": 23, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33,
    "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "getpid": 39, "exit": 60,
    "uname": 63, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getdents": 78, "getcwd": 79,
    "rename": 82, "unlink": 87, "readlink": 89, "gettimeofday": 96, "getrusage": 98,
    "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
    "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204,
    "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "openat": 257, "newfstatat": 262, "unlinkat": 263,
    "renameat": 264, "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271,
    "dup3": 292, "renameat2": 316, "getrandom": 318, "statx": 332, "faccessat2": 439,
}  # fmt: skip
# Allowed only for some values of the second argument: others send signals or control devices.
_ALLOWED_COMMANDS = {
    16: (0x5401, 0x5413, 0x5421, 0x5450, 0x5451),  # ioctl: is a terminal, its size, flags
    72: (0, 1, 2, 3, 4, 5, 6, 7, 1030),  # fcntl: duplicate, flags, locks
}

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand

_libc = ctypes.CDLL(None, use_errno=True)


def main(folder: str, limits: str, report: str, finished: str) -> None:
    """Isolate the process, run the code from standard input, and exit.

    Args:
        folder: The only folder that can be written to.
        limits: JSON, name of a resource -> its limit, such as ``{"RLIMIT_CPU": 10}``.
        report: Descriptor to write ``limits`` to once the process is isolated, or else the error.
        finished: Exit status of code that ran to its end.
    """
    descriptor = int(report)
    try:
        give_up_privileges()
        limit_resources(json.loads(limits))
        confine_files(folder)
        install_filter(filter_program())
    except OSError as error:
        os.write(descriptor, str(error).encode())
        sys.exit(1)
    os.write(descriptor, limits.encode())
    os.close(descriptor)
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    del sys.argv[1:]
    sys.modules["__main__"] = module = ModuleType("__main__")
    exec(compile(source, "<code>", "exec"), vars(module))
    sys.exit(int(finished))


def give_up_privileges() -> None:
    """Give up gaining rights through program files, and die with the parent process."""
    _control(_SET_NO_NEW_PRIVILEGES, 1)
    _control(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def limit_resources(limits: dict[str, int]) -> None:
    """Set resource limits; they cannot be raised later, as the filter refuses that system call."""
    for name, value in limits.items():
        resource.setrlimit(vars(resource)[name], (value, value))


def confine_files(folder: str) -> None:
    """Let the process read Python and its libraries, and write files only in one folder.

    Raises:
        OSError: The kernel has no Landlock, or its version is too old.
    """
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < _LANDLOCK_VERSION:
        raise OSError(f"Landlock's version is {version}; {_LANDLOCK_VERSION} or newer is needed")
    attributes = struct.pack("Q", _ALL_RIGHTS)
    rules = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    for path in (*_READABLE, os.path.join(sys.base_prefix, "lib")):
        if os.path.exists(path):
            _allow(rules, path, _READ if os.path.isdir(path) else _READ_FILE)
    _allow(rules, os.devnull, _READ_FILE | _WRITE_FILE)
    _allow(rules, folder, _READ | _WRITE_FILE | _MAKE_AND_REMOVE_FILE)
    _call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)


def install_filter(program: list[Instruction]) -> None:
    """Apply a seccomp filter to every later system call of this process.

    Raises:
        OSError: The kernel has no seccomp filters, or this is not an x86-64 process.
    """
    if platform.machine() != "x86_64" or sys.maxsize < 2**32:
        raise OSError(f"the filter is written for x86-64, not for {platform.machine()}")
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("HP", len(program), ctypes.addressof(buffer))
    _control(_SET_SECCOMP, _FILTER_MODE, header)


def filter_program() -> list[Instruction]:
    """The filter that allows the system calls listed above and no others."""
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_allow_values(_ALLOWED.values()),
    ]
    for number, commands in _ALLOWED_COMMANDS.items():
        rule = [(_LOAD, 0, 0, _SECOND_ARGUMENT), *_allow_values(commands), (_RETURN, 0, 0, _REFUSE)]
        program += [(_JUMP_IF_EQUAL, 0, len(rule), number), *rule]
    return [*program, (_RETURN, 0, 0, _REFUSE)]


def _allow_values(values: Iterable[int]) -> list[Instruction]:
    return [
        instruction
        for value in values
        for instruction in ((_JUMP_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))
    ]


def _allow(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    attributes = struct.pack("=Qi", rights, place)
    _call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), attributes, ctypes.c_uint(0))
    os.close(place)


def _call(number: int, *arguments: object) -> int:
    return _checked(_libc.syscall(number, *arguments), f"system call {number}")


def _control(option: int, value: int, pointer: bytes | None = None) -> None:
    rest = (pointer, ctypes.c_ulong(0), ctypes.c_ulong(0))
    _checked(_libc.prctl(option, ctypes.c_ulong(value), *rest), f"prctl {option}")


def _checked(result: int, name: str) -> int:
    if result < 0:
        raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
