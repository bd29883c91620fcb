"""Tasks as data, and the sequence they are trained in."""

from datamodules.continual import ContinualDataModule
from datamodules.sequencing import fit_sequence

__all__ = ["ContinualDataModule", "fit_sequence"]
