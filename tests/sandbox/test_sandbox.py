"""Code written by a model tries to get out of its sandbox."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from secrets import token_hex

import pytest

from sdft.sandbox.sandbox import MAX_FILE_BYTES, SandboxUnavailable, run_python

REPOSITORY = Path(__file__).resolve().parents[2]


def _isolates() -> bool:
    try:
        return run_python("").ok
    except SandboxUnavailable:
        return False


isolated = pytest.mark.skipif(not _isolates(), reason="this kernel cannot isolate code")


@isolated
def test_code_that_runs_to_its_end_is_ok_with_what_it_printed():
    result = run_python("import sys\nprint('out', 1 + 1)\nprint('err', file=sys.stderr)")
    assert (result.ok, result.stdout, result.stderr, result.reason) == (
        True, "out 2\n", "err\n", None,
    )  # fmt: skip


@isolated
def test_the_standard_library_and_files_of_its_own_can_be_used():
    result = run_python(
        "import collections, ctypes, dataclasses, datetime, decimal, hashlib, itertools, json\n"
        "import math, os, random, re, sqlite3, statistics, tempfile, typing, unittest, uuid\n"
        "assert os.listdir('.') == []\n"
        "with sqlite3.connect('a.db') as base:\n"
        "    base.execute('create table t (x)')\n"
        "with tempfile.NamedTemporaryFile('w') as file:\n"
        "    file.write('text')\n"
        "os.rename('a.db', 'b.db')\n"
        "os.remove('b.db')\n"
        "class Test(unittest.TestCase):\n"
        "    def test(self):\n"
        "        print('tested')\n"
        "unittest.main(exit=False)\n"
    )
    assert result.ok, result
    assert result.stdout == "tested\n"


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "not python",
        "",
        "a\0b",
        "print('\ud800')",
        "(" * 100_000,
        "-" * 200_000 + "1",
        "x = 1\n" * 1_000_000,
    ],
)
def test_any_text_gives_a_result_with_a_reason_unless_it_ran_to_its_end(code):
    result = run_python(code, memory_mb=256)
    assert result.ok == (code == "")
    assert (result.reason is None) == result.ok


@isolated
def test_no_socket_can_be_opened_not_even_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run_python(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
    assert "PermissionError" in result.reason
    for kind in ("AF_INET, socket.SOCK_DGRAM", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
        result = run_python(f"import socket; socket.socket(socket.{kind})")
        assert "PermissionError" in result.reason, kind
    assert "PermissionError" in run_python("import socket; socket.socketpair()").reason


@isolated
def test_files_outside_of_its_folder_are_neither_read_nor_changed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    before = secret.stat()
    new = token_hex(8)  # there is nothing of that name
    attempts = {
        "read": f"print(open({str(secret)!r}).read())",
        "overwrite": f"open({str(secret)!r}, 'w')",
        "append": f"open({str(secret)!r}, 'a').write('x')",
        "truncate by opening": f"import os; os.open({str(secret)!r}, os.O_RDONLY | os.O_TRUNC)",
        "truncate": f"import os; os.truncate({str(secret)!r}, 0)",
        "remove": f"import os; os.remove({str(secret)!r})",
        "move in": f"import os; os.rename({str(secret)!r}, 'mine')",
        "move out": f"import os; open('a', 'w'); os.rename('a', {str(secret)!r})",
        "link": f"import os; os.link({str(secret)!r}, 'mine')",
        "symbolic link": f"import os; os.symlink({str(secret)!r}, 'mine'); open('mine').read()",
        "mode": f"import os; os.chmod({str(secret)!r}, 0o777)",
        "times": f"import os; os.utime({str(secret)!r}, (0, 0))",
        "list": f"import os; os.listdir({str(tmp_path)!r})",
        "create": f"open({str(tmp_path / 'new')!r}, 'w')",
        "parent": f"open('../{new}', 'w')",
        "folder": f"import os; os.mkdir({str(tmp_path / 'new')!r})",
        "passwords": "open('/etc/passwd')",
        "this project": f"open({str(REPOSITORY / 'README.md')!r})",
        "processes": "open('/proc/self/environ')",
        "parent's environment": f"open('/proc/{os.getpid()}/environ')",
        "memory": "open('/proc/self/mem', 'wb')",
        "shared memory": f"open('/dev/shm/{new}', 'w')",
    }
    for name, code in attempts.items():
        result = run_python(code)
        assert "Permission" in result.reason, (name, result)
        assert "secret\n" not in result.stdout
    assert secret.read_text() == "secret"
    after = secret.stat()
    assert (after.st_mode, after.st_mtime, after.st_nlink) == (
        before.st_mode, before.st_mtime, before.st_nlink,
    )  # fmt: skip
    assert os.listdir(tmp_path) == ["secret.txt"]


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/sh', ['sh', '-c', 'true'])",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import threading\nwhile True: threading.Thread(target=print).start()",
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.vfork() < 0\nraise PermissionError(ctypes.get_errno())",
    ],
)
def test_no_process_or_thread_can_be_started(code):
    result = run_python(code)
    assert not result.ok
    assert any(word in result.reason for word in ("PermissionError", "can't start new thread"))


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(10**9)",
        "x = []\nwhile True: x.append(bytes(10**6))",
        "import mmap; mmap.mmap(-1, 10**9)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); x = bytearray(10**9)",
    ],
)
def test_memory_is_limited_for_good(code):
    result = run_python(code, memory_mb=128)
    assert not result.ok
    assert any(word in result.reason for word in ("MemoryError", "Cannot allocate", "not allowed"))


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        "import signal, time\nfor number in range(1, 32):\n    try: signal.signal(number, 1)\n"
        "    except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
        "import re; re.match(r'(a+)+$', 'a' * 100 + 'b')",
    ],
)
def test_endless_code_is_stopped_in_time(code):
    start = time.monotonic()
    result = run_python(code, seconds=0.5)
    assert (result.ok, result.reason) == (False, "ran longer than 0.5 seconds")
    assert time.monotonic() - start < 5


@isolated
def test_output_and_files_are_limited():
    result = run_python("while True: print('x' * 1000)")
    assert "File too large" in result.reason
    assert len(result.stdout) <= MAX_FILE_BYTES
    assert "File too large" in run_python("open('a', 'wb').write(bytes(10**8))").reason
    assert "Too many open files" in run_python("a = [open('/dev/null') for _ in range(99)]").reason
    endless = "import itertools\nfor number in itertools.count(): open(str(number), 'w').close()"
    assert "files" in run_python(endless).reason


@isolated
def test_the_folder_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = run_python("import os; open('a', 'w').write('x'); print(os.getcwd())")
    assert Path(result.stdout.strip()).parent == tmp_path
    assert os.listdir(tmp_path) == []


@isolated
@pytest.mark.parametrize(
    "send",
    [
        "os.kill({parent}, 10)",
        "os.kill(-1, 10)",
        "os.killpg({group}, 10)",
        "signal.pidfd_send_signal(os.pidfd_open({parent}), 10)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, {parent})",
    ],
)
def test_the_parent_gets_no_signal(send):
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        code = send.format(parent=os.getpid(), group=os.getpgrp())
        result = run_python(f"import fcntl, os, signal\n{code}")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert "PermissionError" in result.reason
    assert received == []


@isolated
def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    result = run_python("import os; print(dict(os.environ))")
    assert result.ok
    assert "JUDGE" not in result.stdout
    assert "secret" not in result.stdout


@isolated
def test_no_open_file_of_the_parent_is_reachable(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with secret.open() as file:
        os.set_inheritable(file.fileno(), True)
        code = "import os\nfor number in range(3, 99):\n    try: print(os.read(number, 9))\n"
        result = run_python(code + "    except OSError: pass")
    assert result.ok
    assert result.stdout == ""


@isolated
def test_runs_of_several_threads_keep_apart():
    outputs: dict[int, str] = {}

    def run(number: int) -> None:
        outputs[number] = run_python(f"open('a', 'x'); print({number})").stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: f"{number}\n" for number in range(4)}


@isolated
@pytest.mark.parametrize("syscall", ["landlock", "seccomp"])
def test_without_isolation_the_code_is_refused_and_not_run(syscall, tmp_path):
    """A process that may no longer use Landlock, or set filters, asks for a run."""
    number = {"landlock": 444, "seccomp": 157}[syscall]
    script = (
        "from sdft.sandbox import jail, sandbox\n"
        "jail.give_up_privileges()\n"
        "jail.install_filter([(0x20, 0, 0, 0), (0x15, 0, 1, %d),"
        " (0x06, 0, 0, 0x00050026), (0x06, 0, 0, 0x7fff0000)])\n"
        "sandbox.run_python('print(\"the code ran\")')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script % number],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SandboxUnavailable: code written by a model is not run" in done.stderr
    assert "the code ran" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"memory_mb": 1}, "memory_mb is 1"),
    ],
)
def test_a_limit_that_is_none_is_refused(limits, named):
    with pytest.raises(ValueError, match=named):
        run_python("", **limits)
