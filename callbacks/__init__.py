"""Observers of a run: retention, cost, checkpoints, exports, progress."""

from callbacks.checkpointing import AtomicCheckpointIO, StageCheckpoint
from callbacks.cost import CostTracker
from callbacks.export import StageExport
from callbacks.progress import StageProgressBar
from callbacks.retention import RetentionTracker
from callbacks.rollouts import RolloutText
from callbacks.stage_rollouts import StageRollouts

__all__ = [
    "AtomicCheckpointIO",
    "CostTracker",
    "RetentionTracker",
    "RolloutText",
    "StageCheckpoint",
    "StageExport",
    "StageProgressBar",
    "StageRollouts",
]
