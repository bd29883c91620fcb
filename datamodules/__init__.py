"""The data module: tasks, their tokenization and loaders, and the sequence of stages."""

from datamodules.continual import ContinualDataModule
from datamodules.sequencing import fit_sequence
from datamodules.trainer_flags import check_flags, without_lightning_chatter

__all__ = ["ContinualDataModule", "check_flags", "fit_sequence", "without_lightning_chatter"]
