"""Methods that learn offline, from completions sampled once from the teacher (figure 6)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from lightning_modules.base import ContinualModule
from lightning_modules.options import NEED_OWN_DRAWS, require
from lightning_modules.sdft import SDFTModule
from lightning_modules.sft import SFTModule
from sdft.loss.divergence_registry import DivergenceName
from sdft.model.sharding import from_all_ranks
from sdft.model.teacher_options import TeacherOptions
from sdft.rollout.request import SamplingSettings
from sdft.seeds import Stream, mix_seed
from sdft.types import DemonstrationBatch, Rollout, TokenIds

RowKey = tuple[str, str]
"""Task and id of a row."""
STAGE_START_TEACHER: TeacherOptions = {"kind": "stage_start"}


class TeacherSamples(ContinualModule):
    """One completion for every training row of a stage, drawn at its start and then kept.

    They are sampled from the demonstration-conditioned model, with the teacher's prompt of SDFT.
    Checkpoints hold them, so that a resumed stage learns from the same ones.
    """

    reads_teacher_prompts = True
    sampling: SamplingSettings

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.teacher_samples: dict[RowKey, TokenIds] = {}

    def on_train_start(self) -> None:
        """Draw the stage's samples, unless a resumed stage has them already."""
        super().on_train_start()
        if self.at_stage_start():
            self.teacher_samples = self.draw_samples()
            self.clock.lap("sample")

    def sampling_teacher(self) -> AbstractContextManager[PreTrainedModel | None]:
        """The model to sample from, with the demonstration in context; None for the student."""
        return nullcontext()

    def draw_samples(self) -> dict[RowKey, TokenIds]:
        """A completion for every row the stage will read."""
        samples: dict[RowKey, TokenIds] = {}
        precision = self.trainer.precision_plugin.train_step_context()
        with precision, self.sampling_teacher() as model, self.prepared(model):
            for batch in self.trainer.datamodule.train_dataloader():
                new = [place for place, key in enumerate(keys(batch)) if key not in samples]
                if new:  # some ranks may have no new rows in a batch
                    drawn_for = [keys(batch)[place] for place in new]
                    prompts = [batch.teacher_prompts[place] for place in new]
                    rollout = self.generate(
                        prompts,
                        self.sampling,
                        seeds=[self.sample_seed(key) for key in drawn_for],
                        drafts=[batch.demonstrations[place] for place in new],
                        model=model,
                    )
                    self.passes.sampled(model or self.student, prompts, rollout.completions)
                    samples.update(zip(drawn_for, rollout.completions, strict=True))
        return {key: drawn for share in from_all_ranks(samples) for key, drawn in share.items()}

    def sample_seed(self, key: RowKey) -> int:
        """The noise of a row's sample: a function of the run's seed, the stage and the row."""
        return mix_seed(Stream.TEACHER_SAMPLES, self.seed, self.stage, *key)

    def samples_of(self, batch: DemonstrationBatch) -> list[TokenIds]:
        """B completions, the same whenever a row comes up."""
        return [self.teacher_samples[key] for key in keys(batch)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the samples."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_samples"] = self.teacher_samples

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the samples back."""
        super().on_load_checkpoint(checkpoint)
        self.teacher_samples = checkpoint["teacher_samples"]


class TeacherSFTModule(TeacherSamples, SFTModule):
    """SFT on the answers of the demonstration-conditioned model.

    Args:
        temperature: Sampling temperature of the teacher's completions.
        base: Options of SFTModule and those every method has.
    """

    method_name = "SFT on teacher samples"

    def __init__(self, *, temperature: float = 1.0, **base: Any) -> None:
        super().__init__(**base)
        self.sampling = replace(self.greedy, temperature=temperature)

    def targets(self, batch: DemonstrationBatch) -> list[TokenIds]:
        """B completions of the teacher."""
        return self.samples_of(batch)


class OfflineDistillationModule(TeacherSamples, SDFTModule):
    """Offline distillation: SDFT's divergence, on the teacher's completions instead of rollouts.

    Args:
        divergence: As in SDFTModule, except those that need the student's own samples:
            sampled_token and rao_blackwellised.
        teacher: Which weights teach and draw the samples, as in SDFTModule; by default the
            student as the stage began.
        importance_clip: Must be null: the completions are not the student's.
        base: Other options of SDFTModule and those every method has.
    """

    method_name = "offline distillation"
    may_score_demonstrations = False  # it has its teacher's completions

    def __init__(
        self,
        *,
        divergence: DivergenceName = "forward_kl",
        teacher: TeacherOptions = STAGE_START_TEACHER,
        importance_clip: float | None = None,
        **base: Any,
    ) -> None:
        own = divergence not in NEED_OWN_DRAWS
        require(own, "divergence", divergence, "one that does not need the student's own draws")
        require(importance_clip is None, "importance_clip", importance_clip, "null")
        super().__init__(divergence=divergence, teacher=teacher, **base)

    def sampling_teacher(self) -> AbstractContextManager[PreTrainedModel | None]:
        """The teacher as the stage starts; the student, where the teacher starts from it."""
        same = self.teacher.reset_each_stage or self.teacher.kind == "student"
        return nullcontext() if same else self.teacher.scoring(self.student)

    def sample(self, batch: DemonstrationBatch) -> Rollout:
        """The teacher's completions; their log-probabilities are not kept."""
        completions = self.samples_of(batch)
        ended = [completion[-1] in self.end_ids for completion in completions]
        self.last_rollout = Rollout(completions, [[] for _ in completions], ended)
        return self.last_rollout


def keys(batch: DemonstrationBatch) -> list[RowKey]:
    """What tells the rows of a sequence of tasks apart."""
    return [(row.task, row.id) for row in batch.rows]
