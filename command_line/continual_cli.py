"""The command ``sdft``, and ``train.py``: ``sdft fit --config quickstart``.

LightningCLI with stages and run directories. ``fit`` runs the whole sequence of stages; the other
subcommands are the Trainer's own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import RetentionTracker, SettingsRecord, StageCheckpoint, StopOnSignal
from command_line.one_line_errors import OneLineParser, condensed
from command_line.renamed_keys import refuse_renamed
from command_line.shipped_configs import CONFIGS, with_shipped_configs
from command_line.trainer_settings import (
    CALLBACKS,
    ModuleMaker,
    check_trainer,
    settle_loggers,
    suited_callbacks,
)
from datamodules import ContinualDataModule, fit_sequence, without_lightning_chatter
from datamodules.row_options import check_numbers
from lightning_modules import ContinualModule
from lightning_modules.options import resolved
from sdft.runs.checkpoint_files import ResumeError, read_summary
from sdft.runs.failures import StoppedEarly, UsageError, explained
from sdft.runs.files import write_text_atomically
from sdft.runs.run_directory import named_checkpoint, settle_run
from sdft.runs.run_settings import differences, run_settings
from sdft.tasks.prompting import TeacherTemplate
from sdft.tasks.task_spec import TaskSpec
from sdft.tasks.tasks import check_folder, check_task_names

DESCRIPTION = "Self-distillation fine-tuning of language models, one task after another."
MORE_COMMANDS = (
    "Further commands, each with a --help of its own: fetch (get a public data set), knowledge "
    "(write questions from articles), plan (does a configuration fit a GPU), probe (which method "
    "and which template suit a task)."
)
CKPT_PATH_HELP = (
    "Checkpoint to resume from or to evaluate: last or previous (in the run's folder), auto (last, "
    "or a new run where there is none), or a file."
)


class RunDirectory(SaveConfigCallback):
    """Writes the resolved configuration to the run directory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` beside the other results."""
        target = Path(trainer.default_root_dir) / self.config_filename
        write_text_atomically(target, self.parser.dump(self.config, skip_unset=False))


class ContinualCLI(LightningCLI):
    """LightningCLI with stages and run directories."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, parser_class=OneLineParser, **kwargs)

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
            help="Delete an existing run directory and start again.",
        )
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        for name in ("tokenizer", "train_on"):
            parser.link_arguments(f"model.{name}", f"data.{name}", apply_on="instantiate")
        for target in ("model.init_args.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration as it is: a checkpoint does not override files and flags."""

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a wrong option ends the run in one line."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError, ImportError, MisconfigurationException) as error:
            raise SystemExit(f"error: {condensed(str(error))}") from error

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        self.parser.add_instantiator(ModuleMaker(self, "model"), ContinualModule)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> Any:
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        config["callbacks"] = suited_callbacks([*own, *callbacks], config)
        try:
            return super()._instantiate_trainer(config, [])
        except TypeError as error:  # a flag of a type that Lightning checks by itself
            raise ValueError(f"trainer: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Determine the run directory and the checkpoint to resume from, and check options."""
        try:
            self._settle()
            self._check_data()
            for key, callback in CALLBACKS.items():
                callback(**self.config[self.config.subcommand][key])
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from error

    def _check_data(self) -> None:
        """Check options of the data as far as possible before the model is loaded."""
        data = self.config[self.config.subcommand].data
        check_numbers(**vars(data))
        TeacherTemplate.load(data.teacher_template)
        tasks = [vars(task.get("init_args", task)) for task in data.tasks]
        check_task_names([options["name"] for options in tasks])
        for options in tasks:
            if options["judge"] is None:
                check_folder(TaskSpec(**options))

    def _settle(self) -> None:
        config = self.config[self.config.subcommand]
        run_dir = self._run_dir(config)
        resumed = None
        if self.config.subcommand == "fit":
            check_trainer(config.trainer)
            config.ckpt_path = settle_run(
                run_dir,
                config.ckpt_path,
                config.overwrite,
                rank=rank_zero_only.rank,
                num_ranks=int(os.environ.get("WORLD_SIZE", "1")),
            )
            resumed = self._read_resumed(config)
        elif config.ckpt_path:
            config.ckpt_path = str(named_checkpoint(run_dir, config.ckpt_path))
        config.trainer.default_root_dir = str(run_dir)
        settle_loggers(config.trainer, run_dir, resumed and resumed["global_step"])

    def _run_dir(self, config: Any) -> Path:
        """The run's folder; for a dry run, one that is deleted at the end."""
        if config.trainer.fast_dev_run:
            self._dry_run_dir = TemporaryDirectory(prefix="sdft-fast_dev_run-")
            return Path(self._dry_run_dir.name)
        return Path(config.run_dir or Path("runs") / self._config_name(config)).expanduser()

    def _read_resumed(self, config: Any) -> dict[str, Any] | None:
        """The checkpoint to resume from, which must be of a run with the same settings."""
        plain = json.loads(self.parser.dump(self.config, format="json", skip_unset=False))
        self.settings = run_settings(plain["fit"])
        if config.ckpt_path is None:
            return None
        resumed = read_summary(Path(config.ckpt_path))
        held = resumed.get("settings", {})
        if changed := differences(resolved(held), resolved(self.settings)):
            raise ResumeError(
                f"the checkpoint {config.ckpt_path} is of a run with other settings (its own -> "
                "yours):\n  " + "\n  ".join(changed) + "\nset them back, or start a new run in "
                "another --run_dir without --ckpt_path"
            )
        return resumed

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = CKPT_PATH_HELP
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands without predict; checkpoints are always loaded weights-only."""
        return {
            name: left_out | {"weights_only"}
            for name, left_out in LightningCLI.subcommands().items()
            if name != "predict"
        }

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
        """Run the sequence, then print the results and where their files are."""
        checkpoints = (each for each in self.trainer.callbacks if type(each) is StageCheckpoint)
        stop = StopOnSignal(next(checkpoints, None))
        self.trainer.callbacks += [SettingsRecord(self.settings), stop]
        try:
            with stop.listening():
                fit_sequence(self.trainer, model, datamodule, ckpt_path)
        except (UsageError, ResumeError, FloatingPointError, StoppedEarly) as error:
            raise SystemExit(f"error: {error}") from error
        except Exception as error:
            if message := explained(error, Path(self.trainer.default_root_dir)):
                raise SystemExit(f"error: {message}") from error
            raise
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


def summary(trainer: L.Trainer) -> str:
    """The accuracy matrix, where the files are, and how to open TensorBoard."""
    run_dir = trainer.default_root_dir
    tables = [
        callback.table() for callback in trainer.callbacks if isinstance(callback, RetentionTracker)
    ]
    if trainer.fast_dev_run:
        return "\n".join(["", *tables, "A dry run: nothing was kept\n"])
    where = f"Files: {run_dir}\n"
    if (Path(run_dir) / "tensorboard").is_dir():
        where += f"Curves: tensorboard --logdir {run_dir}/tensorboard\n"
    return "\n".join(["", *tables, where])


def main(args: list[str] | None = None) -> ContinualCLI:
    """Parse the command line and run it."""
    return parsed(args, ContinualCLI)


def parsed(args: list[str] | None, cli: type[ContinualCLI]) -> ContinualCLI:
    """Parse a command line and run it with a class of command."""
    arguments = with_shipped_configs(sys.argv[1:] if args is None else args)
    refuse_renamed(arguments)
    if args is None:
        sys.argv[1:] = arguments  # Lightning warns if given both
    defaults = {"default_config_files": [str(CONFIGS / "defaults.yaml")]}
    with without_lightning_chatter():
        return cli(
            ContinualModule,
            ContinualDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            save_config_callback=RunDirectory,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "description": DESCRIPTION,
                "epilog": MORE_COMMANDS,
                **dict.fromkeys(ContinualCLI.subcommands(), defaults),
            },
            args=None if args is None else arguments,
        )
