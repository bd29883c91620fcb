"""Observers of a run: retention, probes, drift, openings, cost, checkpoints, exports, progress."""

from callbacks.checkpointing import AtomicCheckpointIO, SettingsRecord, StageCheckpoint
from callbacks.cost import CostTracker
from callbacks.drift import DriftTracker
from callbacks.export import StageExport
from callbacks.in_context import InContextCheck
from callbacks.interruption import StopOnSignal
from callbacks.openings import OpeningRates
from callbacks.progress import StageProgressBar
from callbacks.retention import RetentionTracker
from callbacks.rollouts import RolloutText
from callbacks.skipped import SkippedSteps

__all__ = [
    "AtomicCheckpointIO",
    "CostTracker",
    "DriftTracker",
    "InContextCheck",
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
