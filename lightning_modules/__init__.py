"""Methods of continual learning, one LightningModule each."""

from lightning_modules.base import ContinualModule
from lightning_modules.kl_penalty import KLPenaltyModule
from lightning_modules.on_policy import OnPolicyDistillationModule, ReinvokeModule
from lightning_modules.reward import RewardedSDFTModule
from lightning_modules.sdft import SDFTModule
from lightning_modules.sft import CPTModule, DFTModule, SFTModule
from lightning_modules.teacher_samples import OfflineDistillationModule, TeacherSFTModule

__all__ = [
    "CPTModule",
    "ContinualModule",
    "DFTModule",
    "KLPenaltyModule",
    "OfflineDistillationModule",
    "OnPolicyDistillationModule",
    "ReinvokeModule",
    "RewardedSDFTModule",
    "SDFTModule",
    "SFTModule",
    "TeacherSFTModule",
]
