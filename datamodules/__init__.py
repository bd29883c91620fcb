"""Tasks as data, and the sequence they are trained in."""

from datamodules.continual import ContinualDataModule
from datamodules.sequencing import fit_sequence
from datamodules.trainer_flags import check_flags, without_lightning_chatter

__all__ = ["ContinualDataModule", "check_flags", "fit_sequence", "without_lightning_chatter"]
