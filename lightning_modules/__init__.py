"""Methods of continual learning, one LightningModule each."""

from lightning_modules.base import ContinualModule
from lightning_modules.sdft import SDFTModule
from lightning_modules.sft import SFTModule

__all__ = ["ContinualModule", "SDFTModule", "SFTModule"]
