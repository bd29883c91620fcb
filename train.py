"""Command line: ``python train.py fit --config configs/quickstart.yaml``.

A thin shim over LightningCLI. ``fit`` runs the whole sequence of stages; the other subcommands
are the Trainer's own.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from callbacks import RetentionTracker, RolloutText, StageCheckpoint, StageExport, StageRollouts
from datamodules import ContinualDataModule, fit_sequence
from datamodules.sequencing import read_counters
from lightning_modules import ContinualModule

CONFIGS = Path(__file__).parent / "configs"


class RunDirectory(SaveConfigCallback):
    """Writes the resolved configuration to the run directory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` beside the other results."""
        target = Path(trainer.default_root_dir) / self.config_filename
        target.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, target, skip_unset=False, overwrite=True, multifile=False)


class ContinualCLI(LightningCLI):
    """LightningCLI that knows stages and run directories."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run directory, and pass the model's tokenizer and the seed on."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of the run's files; default: runs/<name of the config file>.",
        )
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Delete a used run directory and start anew.",
        )
        parser.add_lightning_class_args(StageCheckpoint, "checkpoint")
        parser.add_lightning_class_args(StageExport, "export")
        parser.add_lightning_class_args(RolloutText, "rollouts")
        parser.add_lightning_class_args(StageRollouts, "stage_rollouts")
        parser.link_arguments("model.tokenizer", "data.tokenizer", apply_on="instantiate")
        for target in ("model.init_args.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: a checkpoint does not override files and flags."""

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a wrong option ends the run in one line."""
        try:
            super().instantiate_classes()
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Settle the run directory, and where to resume, before anything is loaded."""
        try:
            self._settle()
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error

    def _settle(self) -> None:
        config = self.config[self.config.subcommand]
        run_dir = Path(config.run_dir or CONFIGS.parent / "runs" / self._config_name(config))
        if self.config.subcommand == "fit":
            config.ckpt_path = settle_run(run_dir, config.ckpt_path, config.overwrite)
        elif config.ckpt_path == "last":
            config.ckpt_path = str(run_dir / "checkpoints" / "last.ckpt")
        config.trainer.default_root_dir = str(run_dir)
        for logger in config.trainer.logger or []:
            logger.init_args.save_dir = str(run_dir)
            if config.ckpt_path and self.config.subcommand == "fit":
                step = read_counters(Path(config.ckpt_path))["global_step"]
                logger.dict_kwargs = {**(logger.get("dict_kwargs") or {}), "purge_step": step + 1}

    @staticmethod
    def _config_name(config: Any) -> str:
        return Path(str(config.config[-1])).stem if config.config else "default"

    def fit(
        self,
        model: L.LightningModule,
        datamodule: ContinualDataModule,
        ckpt_path: str | None = None,
        **_: Any,
    ) -> None:
        """Run the sequence, then say what came out and where it lies."""
        fit_sequence(self.trainer, model, datamodule, ckpt_path)
        if self.trainer.is_global_zero:
            sys.stdout.write(summary(self.trainer))

    def after_validate(self) -> None:
        """Print the accuracies on the validation rows."""
        self._print_accuracies("accuracy/")

    def after_test(self) -> None:
        """Print the accuracies on the test rows."""
        self._print_accuracies("test_accuracy/")

    def _print_accuracies(self, prefix: str) -> None:
        if self.trainer.is_global_zero:
            for name, value in sorted(self.trainer.callback_metrics.items()):
                if name.startswith(prefix):
                    sys.stdout.write(f"{name}  {float(value):.3f}\n")


def settle_run(run_dir: Path, ckpt_path: str | None, overwrite: bool) -> str | None:
    """Decide whether a run starts, resumes or is refused.

    Args:
        run_dir: The run's folder.
        ckpt_path: None, ``last``, or a file.
        overwrite: Delete a used folder.

    Returns:
        The checkpoint to resume from, or None to start from the beginning.

    Raises:
        ValueError: The folder is used, or there is nothing to resume.
    """
    used = run_dir.is_dir() and any(run_dir.iterdir())
    if ckpt_path == "last":
        last = run_dir / "checkpoints" / "last.ckpt"
        if last.is_file():
            return str(last)
        if not (run_dir / "config.yaml").is_file():
            raise ValueError(f"nothing to resume: {last} does not exist; leave --ckpt_path out")
        sys.stdout.write(f"{run_dir} has no checkpoint yet: starting from the beginning\n")
        return None
    if ckpt_path is not None:
        read_counters(Path(ckpt_path))
        return ckpt_path
    if used and not overwrite:
        raise ValueError(
            f"the run directory {run_dir} is used; resume it with --ckpt_path last, choose another "
            "with --run_dir, or delete it with --overwrite true"
        )
    if used:
        if not (run_dir / "config.yaml").is_file():
            raise ValueError(f"{run_dir} does not look like a run directory; delete it yourself")
        shutil.rmtree(run_dir)
    return None


def summary(trainer: L.Trainer) -> str:
    """The accuracy matrix, where the files lie, and how to open TensorBoard."""
    run_dir = trainer.default_root_dir
    tables = [
        callback.table() for callback in trainer.callbacks if isinstance(callback, RetentionTracker)
    ]
    where = f"Files: {run_dir}\nCurves: tensorboard --logdir {run_dir}/tensorboard\n"
    return "\n".join(["", *tables, where])


def main(args: list[str] | None = None) -> ContinualCLI:
    """Parse the command line and run it."""
    # The teacher is in eval mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    defaults = {"default_config_files": [str(CONFIGS / "defaults.yaml")]}
    return ContinualCLI(
        ContinualModule,
        ContinualDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_callback=RunDirectory,
        save_config_kwargs={"overwrite": True},
        parser_kwargs=dict.fromkeys(ContinualCLI.subcommands(), defaults),
        args=args,
    )


if __name__ == "__main__":
    main()
