"""Whole runs in child processes, so that they can be killed for real."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.summary.writer import event_file_writer

from lightning_modules import SDFTModule
from tests.sample_tasks import write_task


class KillAt(L.Callback):
    """Sends the process a signal the first time a hook is reached at a global step.

    Args:
        hook: Name of a callback hook.
        step: Global step at which to die.
        marker: File that records the death, so that the resumed run lives.
        number: The signal.
    """

    def __init__(
        self, hook: str, step: int, marker: str, number: int = int(signal.SIGKILL)
    ) -> None:
        def die(trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == step and not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), number)

        setattr(self, hook, die)


class SmallDisk(L.Callback):
    """From a global step on no file can grow beyond a size, as on a full disk.

    Args:
        step: The step.
        num_bytes: The size.
    """

    def __init__(self, step: int, num_bytes: int) -> None:
        self.step = step
        self.num_bytes = num_bytes

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        """Limit the process."""
        if trainer.global_step == self.step:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, hard))


class Float64(SDFTModule):
    """SDFT in double precision, so that runs can be compared beyond rounding.

    Args:
        options: Those of SDFT.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.double()


def write_config(
    folder: Path, method: str = "SDFTModule", *, num_train: int = 6, **model: object
) -> Path:
    """A configuration of two small tasks on the tiny model: 3 and 2 optimizer steps."""
    specs = [write_task(folder, "one", num_train=num_train), write_task(folder, "two", num_train=4)]
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": method if "." in method else f"lightning_modules.{method}",
            "init_args": {
                "pretrained": "tiny-random",
                "learning_rate": 1e-2,
                "warmup_steps": 1,
                "max_new_tokens": 5,
                **model,
            },
        },
        "data": {
            "tasks": [
                {"name": spec.name, "path": spec.path, "scorer": spec.scorer} for spec in specs
            ],
            "batch_size": 2,
            "teacher_template": "dialogue",
        },
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def run(*args: str, log: Path) -> int:
    """Run ``train.py`` in a forked child; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        _run_and_leave(args, log)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def run_ranks(*args: str, log: Path, num_ranks: int = 2, timeout_s: float = 600) -> int:
    """Run ``train.py`` as several processes on the CPU, as torchrun would; 0 if all of them end so.

    Args:
        args: The command line, but for the trainer's accelerator and devices.
        log: What the processes print.
        num_ranks: How many processes.
        timeout_s: When to kill processes that wait for each other; they then end with -9.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = ["--trainer.accelerator=cpu", f"--trainer.devices={num_ranks}"]
    children = []
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0}
            place |= {"LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
            os.environ.update({name: str(value) for name, value in place.items()})
            rank_zero_only.rank = rank  # as importing Lightning in this environment would
            _run_and_leave((*args, *devices), log)
        children.append(child)
    stopped = threading.Event()
    watch = threading.Thread(target=_kill_later, args=(children, timeout_s, stopped))
    watch.start()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    stopped.set()
    watch.join()
    return max(codes, key=abs)


def _kill_later(children: list[int], timeout_s: float, stopped: threading.Event) -> None:
    if not stopped.wait(timeout_s):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _run_and_leave(args: tuple[str, ...], log: Path) -> None:
    code = 1
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        try:
            # torch replaces its thread pool at first use after a fork, which the threads that
            # load a model's weights would do at the same time.
            torch.set_num_threads(torch.get_num_threads())
            # The names of event files end with a count, as text: 10 is read before 9.
            event_file_writer._global_uid = event_file_writer.AtomicCounter(0)
            from command_line.continual_cli import main

            main(list(args))
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
            print(leave.code)
        except BaseException:
            traceback.print_exc()
        stream.flush()
    os._exit(code)
