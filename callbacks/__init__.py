"""Callbacks: they measure retention, capabilities and cost, and write checkpoints and exports."""

from callbacks.answer_log import AnswerLog
from callbacks.capability_tracker import CapabilityTracker
from callbacks.cost_tracker import CostTracker
from callbacks.drift_tracker import DriftTracker
from callbacks.export import StageExport
from callbacks.in_context import InContextCheck
from callbacks.interruption import StopOnSignal
from callbacks.nonfinite_steps import SkippedSteps
from callbacks.pass_at_k import PassAtK
from callbacks.preamble_rates import OpeningRates
from callbacks.progress import StageProgressBar
from callbacks.retention_tracker import RetentionTracker
from callbacks.rollout_text import RolloutText
from callbacks.stage_checkpoint import AtomicCheckpointIO, SettingsRecord, StageCheckpoint
from callbacks.trackio_logger import TrackioLogger
from callbacks.trajectory_tracker import TrajectoryTracker

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
    "TrackioLogger",
    "TrajectoryTracker",
]
