"""Observers of a run: what it keeps, what it can do, what it costs, what it leaves behind."""

from callbacks.answers import AnswerLog
from callbacks.capabilities import CapabilityTracker
from callbacks.checkpointing import AtomicCheckpointIO, StageCheckpoint
from callbacks.cost import CostTracker
from callbacks.export import StageExport
from callbacks.openings import OpeningRates
from callbacks.pass_at_k import PassAtK
from callbacks.progress import StageProgressBar
from callbacks.retention import RetentionTracker
from callbacks.rollouts import RolloutText

__all__ = [
    "AnswerLog",
    "AtomicCheckpointIO",
    "CapabilityTracker",
    "CostTracker",
    "OpeningRates",
    "PassAtK",
    "RetentionTracker",
    "RolloutText",
    "StageCheckpoint",
    "StageExport",
    "StageProgressBar",
]
