"""Decide whether a run starts in its folder, resumes, or is rejected."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sdft.runs.checkpoint_files import LAST, PREVIOUS, ResumeError, check_whole
from sdft.runs.files import remove_leftovers

NAMED_CHECKPOINTS = {"last": LAST, "auto": LAST, "previous": PREVIOUS}


def named_checkpoint(run_dir: Path, name: str) -> Path:
    """The file that ``--ckpt_path`` names: by a name, in the run's folder, or by its path."""
    file = NAMED_CHECKPOINTS.get(name)
    return Path(name) if file is None else run_dir / "checkpoints" / file


def settle_run(
    run_dir: Path,
    ckpt_path: str | None,
    overwrite: bool,
    *,
    rank: int = 0,
    num_ranks: int = 1,
) -> str | None:
    """Decide whether a run starts or resumes, and prepare its folder.

    Args:
        run_dir: The run's folder.
        ckpt_path: None, ``last``, ``previous`` (the one before last.ckpt), ``auto`` (last, or a new
            run if there is none), or a file.
        overwrite: Whether to delete a used folder.
        rank: Rank of this process; only the first one changes the folder.
        num_ranks: Number of processes that share the verification of a sharded checkpoint.

    Returns:
        The checkpoint to resume from, or None to start from the beginning.

    Raises:
        ValueError: The folder is used, there is nothing to resume, or the checkpoint is damaged.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"the run directory {run_dir} is a file; choose another with --run_dir")
    if ckpt_path is None:
        if rank == 0:
            _clear(run_dir, overwrite)
        return None
    checkpoint = named_checkpoint(run_dir, ckpt_path)
    if ckpt_path in NAMED_CHECKPOINTS and not checkpoint.exists():
        _check_startable(run_dir, ckpt_path, checkpoint)
    else:
        check_whole(checkpoint, rank, num_ranks)
    if rank == 0 and run_dir.is_dir():
        remove_leftovers(run_dir)
    return None if not checkpoint.exists() else str(checkpoint)


def _clear(run_dir: Path, overwrite: bool) -> None:
    """Delete a used folder if ``overwrite`` is set, or raise an error."""
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"the run directory {run_dir} is used; resume it with --ckpt_path last, choose another "
            "with --run_dir, or delete it with --overwrite true"
        )
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"{run_dir} does not look like a run directory; delete it yourself")
    shutil.rmtree(run_dir)


def _check_startable(run_dir: Path, name: str, checkpoint: Path) -> None:
    """Require that a run may start from the beginning if the named checkpoint does not exist."""
    others = sorted((run_dir / "checkpoints").glob("*.ckpt"))
    if others:
        raise ResumeError(
            f"the checkpoint {checkpoint} does not exist, but {others[-1]} does: give the one to "
            "resume from with --ckpt_path FILE"
        )
    if name != "auto" and not (run_dir / "config.yaml").is_file():
        raise ResumeError(f"nothing to resume: {checkpoint} does not exist; leave --ckpt_path out")
    if run_dir.is_dir():
        sys.stdout.write(f"{run_dir} has no checkpoint yet: starting from the beginning\n")
