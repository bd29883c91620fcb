"""Observers of a run: retention, cost, openings, checkpoints, exports, progress."""

from callbacks.checkpointing import AtomicCheckpointIO, SettingsRecord, StageCheckpoint
from callbacks.cost import CostTracker
from callbacks.export import StageExport
from callbacks.interruption import StopOnSignal
from callbacks.openings import OpeningRates
from callbacks.progress import StageProgressBar
from callbacks.retention import RetentionTracker
from callbacks.rollouts import RolloutText
from callbacks.skipped import SkippedSteps

__all__ = [
    "AtomicCheckpointIO",
    "CostTracker",
    "OpeningRates",
    "RetentionTracker",
    "RolloutText",
    "SettingsRecord",
    "SkippedSteps",
    "StageCheckpoint",
    "StageExport",
    "StageProgressBar",
    "StopOnSignal",
]
