"""Ends a run on a signal: finishes the step, saves, and says how to resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from callbacks.stage_checkpoint import StageCheckpoint, at_stage_end
from sdft.runs.checkpoint_files import LAST

STOPPING = (signal.SIGTERM, signal.SIGINT)
REQUEUEING = signal.SIGUSR1  # sent by SLURM shortly before a job's time limit


class StopOnSignal(Checkpoint):
    """Ends a run on SIGTERM, SIGINT or, in a SLURM job, SIGUSR1, which also requeues the job.

    The optimizer step in progress is finished and saved; an evaluation is abandoned, since it
    changes nothing that a checkpoint holds. The exit code is 128 plus the signal's number: 143,
    130 or 138. A second signal has its usual effect.

    Args:
        checkpoint: Writes the checkpoint; None where checkpoints are turned off.
    """

    def __init__(self, checkpoint: StageCheckpoint | None) -> None:
        self.checkpoint = checkpoint
        self.received: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals while the block runs, instead of ending the process."""
        before = {number: signal.getsignal(number) for number in self._signals()}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_start(self, *_: Any) -> None:
        """Replace Lightning's handlers, which end a run without saving, with exit code 0."""
        if self.received is None:
            self._listen()

    on_validation_start = on_test_start = on_train_start

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save and stop, unless this is the stage's last step: its end saves it."""
        if self._on_any_rank(trainer) and not at_stage_end(trainer):
            if self.checkpoint is not None:
                self.checkpoint.save(trainer)
            self._leave(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop after the stage, which has just been saved."""
        if self._on_any_rank(trainer):
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop; a resumed run evaluates again."""
        if self._on_any_rank(trainer):
            self._leave(trainer)

    on_test_batch_end = on_validation_batch_end

    def _signals(self) -> tuple[signal.Signals, ...]:
        return (*STOPPING, REQUEUEING) if "SLURM_JOB_ID" in os.environ else STOPPING

    def _listen(self) -> None:
        for number in self._signals():
            signal.signal(number, self._note)

    def _note(self, number: int, _: Any) -> None:
        self.received = signal.Signals(number)
        text = f"\n{self.received.name}: finishing the step; a second one ends the run at once\n"
        os.write(2, text.encode())  # a handler may not wait for a stream's lock
        for stopping in STOPPING:
            signal.signal(stopping, signal.SIG_DFL)

    def _on_any_rank(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def _leave(self, trainer: L.Trainer) -> None:
        received = self.received or signal.SIGTERM  # it may have reached only another rank
        if trainer.is_global_zero:
            sys.stderr.write(
                f"stopped by {received.name} after step {trainer.global_step}; "
                f"{self._how_to_continue(trainer)}\n"
            )
            if received == REQUEUEING:
                requeue()
        raise SystemExit(128 + received)

    def _how_to_continue(self, trainer: L.Trainer) -> str:
        if self.checkpoint is None:
            return "nothing was saved: checkpoints are off"
        if (Path(trainer.default_root_dir) / "checkpoints" / LAST).exists():
            return "the same command with --ckpt_path last resumes from here"
        return "there is nothing to save yet; the same command with --ckpt_path auto starts again"


def requeue() -> None:
    """Put the SLURM job back into the queue; it starts again with the same command."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], check=False)
    if done.returncode:
        sys.stderr.write(f"scontrol could not requeue job {job}: exit code {done.returncode}\n")
