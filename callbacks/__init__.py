"""Observers of a run: retention, cost, openings, checkpoints, exports, progress."""

from callbacks.checkpointing import AtomicCheckpointIO, StageCheckpoint
from callbacks.cost import CostTracker
from callbacks.export import StageExport
from callbacks.openings import OpeningRates
from callbacks.progress import StageProgressBar
from callbacks.retention import RetentionTracker
from callbacks.rollouts import RolloutText

__all__ = [
    "AtomicCheckpointIO",
    "CostTracker",
    "OpeningRates",
    "RetentionTracker",
    "RolloutText",
    "StageCheckpoint",
    "StageExport",
    "StageProgressBar",
]
