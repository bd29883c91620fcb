"""Observers of a run: what it keeps, what it can do, what it costs, what it leaves behind."""

from callbacks.answers import AnswerLog
from callbacks.capabilities import CapabilityTracker
from callbacks.checkpointing import AtomicCheckpointIO, SettingsRecord, StageCheckpoint
from callbacks.cost import CostTracker
from callbacks.drift import DriftTracker
from callbacks.export import StageExport
from callbacks.in_context import InContextCheck
from callbacks.interruption import StopOnSignal
from callbacks.openings import OpeningRates
from callbacks.pass_at_k import PassAtK
from callbacks.progress import StageProgressBar
from callbacks.retention import RetentionTracker
from callbacks.rollouts import RolloutText
from callbacks.skipped import SkippedSteps

__all__ = [
    "AnswerLog",
    "AtomicCheckpointIO",
    "CapabilityTracker",
    "CostTracker",
    "DriftTracker",
    "InContextCheck",
    "OpeningRates",
    "PassAtK",
    "RetentionTracker",
    "RolloutText",
    "SettingsRecord",
    "SkippedSteps",
    "StageCheckpoint",
    "StageExport",
    "StageProgressBar",
    "StopOnSignal",
]
