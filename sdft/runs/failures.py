"""Explain failures caused by the machine: a full disk, or too little memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import torch

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
MEMORY_TEXTS = ("can't allocate memory", "not enough memory")  # of PyTorch's CPU allocator

# Function -> phase of a step; the innermost function on the stack counts.
PHASES = {
    "training_step": "student",
    "sample": "sample",
    "score_teacher": "teacher",
    "score_student": "student",
    "backward": "backward",
    "optimizer_step": "optimizer",
    "_evaluate": "evaluation",
}
TO_LOWER = {
    "sample": "data.batch_size or model.max_new_tokens (in a new run)",
    "teacher": "model.micro_batch_size, else data.max_prompt_tokens (in a new run)",
    "student": "model.micro_batch_size, or set model.activation_checkpointing to true",
    "backward": "model.micro_batch_size, or set model.activation_checkpointing to true",
    "optimizer": "what is trained: set model.lora (in a new run)",
    "evaluation": "data.eval_batch_size",
}


class UsageError(ValueError):
    """Options cannot be combined; the message says which, and what to set instead."""


class StoppedEarly(RuntimeError):
    """A run was asked to stop before its end; the message says where, and how to resume."""


def explained(error: BaseException, run_dir: Path) -> str | None:
    """What happened and what to do, for a full disk or memory; None for any other failure.

    Args:
        error: The exception that ended the run.
        run_dir: The run's folder.
    """
    chain = list(_chain(error))
    resume = "Resume with the same command and --ckpt_path last: the last checkpoint is whole"
    if full := [each for each in chain if _disk_is_full(each)]:
        return (
            f"the disk of {run_dir} is full ({full[0]}); free some space, or set "
            "checkpoint.max_checkpoints, checkpoint.keep_stages or export.enabled to keep less. "
            f"{resume}"
        )
    for each in chain:
        if _out_of_memory(each):
            phase = _phase(each)
            where = f"in the phase {phase}" if phase else "outside of a step"
            lower = TO_LOWER.get(phase or "", "data.batch_size (in a new run)")
            first_line = str(each).strip().split("\n")[0]
            return f"out of memory {where} ({first_line}); lower {lower}. {resume}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return True
    return any(text in str(error) for text in DISK_TEXTS)  # safetensors' own exceptions


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_TEXTS)


def _phase(error: BaseException) -> str | None:
    """The phase in which an exception was raised, by the functions on its stack."""
    phase: str | None = None
    traceback = error.__traceback__
    while traceback is not None:
        phase = PHASES.get(traceback.tb_frame.f_code.co_name, phase)
        traceback = traceback.tb_next
    return phase
