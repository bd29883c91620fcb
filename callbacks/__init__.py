"""Observers of a run: retention, cost, checkpoints, exports, progress."""

from callbacks.capabilities import CapabilityTracker
from callbacks.checkpointing import AtomicCheckpointIO, StageCheckpoint
from callbacks.cost import CostTracker
from callbacks.export import StageExport
from callbacks.pass_at_k import PassAtK
from callbacks.progress import StageProgressBar
from callbacks.retention import RetentionTracker
from callbacks.rollouts import RolloutText

__all__ = [
    "AtomicCheckpointIO",
    "CapabilityTracker",
    "CostTracker",
    "PassAtK",
    "RetentionTracker",
    "RolloutText",
    "StageCheckpoint",
    "StageExport",
    "StageProgressBar",
]
