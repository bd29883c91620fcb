"""The teacher: which weights score the student's tokens (section 3, appendix A.3).

Teachers differ in when their weights change. With θ the student's weights and φ the teacher's:

- ``ema``: φ ← rate · θ + (1 - rate) · φ every n optimizer steps, in fp32, or in bf16 with
  stochastic rounding if the student is bf16: rounding to the nearest bf16 would lose most of these
  updates. The paper uses n = 1 and resets φ to θ at the start of each stage;
- ``stage_start``: φ is a copy of θ at the start of the stage;
- ``base``: φ is a copy of θ before the first stage;
- ``student``: φ is always θ;
- ``model``: φ is another model, which is never trained.

They also differ in where their weights are stored: in a separate model (:class:`OwnModel`), in
separate adapters on the student's frozen backbone (:class:`OwnAdapters`), or in the student
(:class:`Borrowed`).

A teacher is a module, so checkpoints contain its own weights, including those that never change;
only the other model of ``model`` is loaded again by its name. The EMA of adapters is computed for A
and B separately, so the teacher uses ema(B) ema(A), which is not the EMA of B A. The two are close
if the student changes little within 1 / rate steps, and the product costs no more than one adapter.
"""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdft.model.head import VocabularyHead
from sdft.model.lean_adamw import lerp_with_rounding
from sdft.model.lora import adapters_off, trained_parameters
from sdft.model.modes import evaluation_mode
from sdft.model.pretrained import load_model
from sdft.model.teacher_options import (
    EMAUpdate,
    TeacherKind,
    TeacherOptions,
    checked_kind,
    ema_update,
)
from sdft.seeds import Stream, mix_seed

logger = logging.getLogger(__name__)

NUM_NAMED = 3  # differing tokens that an error message names


class Teacher(nn.Module):
    """Base class: updates the teacher's own weights from the student's.

    Args:
        kind: One of the kinds described in the module.
        ema: How an ``ema`` teacher is updated; None for the other kinds.
    """

    def __init__(self, kind: TeacherKind, ema: EMAUpdate | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.ema = ema
        self.reset_each_stage = kind == "stage_start" or (ema is not None and ema.reset_each_stage)

    def train(self, mode: bool = True) -> Teacher:
        """Keep the teacher in evaluation mode; ``mode`` is ignored."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def start_stage(self, student: nn.Module) -> None:
        """Set φ to θ, for the kinds that reset at each stage."""
        if self.reset_each_stage:
            for own, theirs in zip(self.parameters(), trained_parameters(student), strict=True):
                own.copy_(theirs)

    @torch.no_grad()
    def update(self, student: nn.Module, num_steps: int, seed: int = 0) -> None:
        """EMA update: φ ← rate · θ + (1 - rate) · φ, if one is due after ``num_steps`` steps.

        Args:
            student: The model with weights θ.
            num_steps: Optimizer steps taken over the whole run.
            seed: The run's seed, for the rounding of a bfloat16 teacher.
        """
        if self.ema is None or num_steps % self.ema.update_every:
            return
        own: list[Tensor] = list(self.parameters())
        theirs = [parameter.detach() for parameter in trained_parameters(student)]
        if any(each.dtype == torch.bfloat16 for each in own):
            noise = mix_seed(Stream.TEACHER_ROUNDING, seed, num_steps)
            lerp_with_rounding(own, theirs, self.ema.rate, noise)
        else:
            torch._foreach_lerp_(own, theirs, self.ema.rate)

    @abstractmethod
    def scoring(self, student: PreTrainedModel) -> AbstractContextManager[PreTrainedModel]:
        """A context whose value is the model to score with, in evaluation mode."""

    def head(self, student_head: VocabularyHead) -> VocabularyHead:
        """The teacher's output head: the student's own, which has no adapters."""
        return student_head

    def left_out(self) -> dict[str, Tensor]:
        """Weights that checkpoints omit because the configuration names their source."""
        return {}


class OwnModel(Teacher):
    """A teacher with a separate frozen model: a copy of the student, or another model."""

    def __init__(
        self, model: PreTrainedModel, kind: TeacherKind, ema: EMAUpdate | None = None
    ) -> None:
        super().__init__(kind, ema)
        self.model = model.requires_grad_(False)
        self.model.eval()  # type: ignore[no-untyped-call]

    def scoring(self, student: PreTrainedModel) -> AbstractContextManager[PreTrainedModel]:
        """A context whose value is the teacher's model."""
        del student
        return nullcontext(self.model)

    def head(self, student_head: VocabularyHead) -> VocabularyHead:
        """The model's own head."""
        del student_head
        return VocabularyHead.of(self.model)

    def left_out(self) -> dict[str, Tensor]:
        """All weights of another model; none of a copy of the student."""
        return dict(self.state_dict()) if self.kind == "model" else {}


class OwnAdapters(Teacher):
    """A teacher with frozen copies of the student's adapters, swapped in while it scores."""

    def __init__(
        self, student: PreTrainedModel, kind: TeacherKind, ema: EMAUpdate | None = None
    ) -> None:
        super().__init__(kind, ema)
        self.adapters = nn.ParameterList(
            nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for parameter in trained_parameters(student)
        )

    @contextmanager
    def scoring(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The student with the teacher's adapters; its own are restored unchanged."""
        self._swap(student)
        try:
            with evaluation_mode(student):
                yield student
        finally:
            self._swap(student)

    def _swap(self, student: nn.Module) -> None:
        for own, theirs in zip(self.adapters, trained_parameters(student), strict=True):
            own.data, theirs.data = theirs.data, own.data
        torch.clear_autocast_cache()  # it may have cached the weights that were swapped out


class Borrowed(Teacher):
    """A teacher without weights of its own: the current student, or its backbone alone."""

    @contextmanager
    def scoring(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The student; for ``base``, with its adapters disabled."""
        without = adapters_off(student) if self.kind == "base" else nullcontext()
        with without, evaluation_mode(student):
            yield student


def make_teacher(
    student: PreTrainedModel,
    options: TeacherOptions,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Teacher:
    """Create the teacher that the options describe.

    Args:
        student: The model before training, with or without adapters.
        options: Options that are not given have their defaults.
        tokenizer: The student's tokenizer; only needed for ``model``.

    Raises:
        ValueError: The kind or an option is unknown, the kind does not have the option, a value is
            out of range, or the other model cannot be loaded or has different tokens.
    """
    kind = checked_kind(options)
    if kind == "model":
        return OwnModel(_other_model(options["pretrained"], student, tokenizer), kind)
    ema = ema_update(options)
    adapted = not all(parameter.requires_grad for parameter in student.parameters())
    if kind == "student" or (kind == "base" and adapted):
        return Borrowed(kind)
    if adapted:
        return OwnAdapters(student, kind, ema)
    _refuse_float16(student)
    return OwnModel(copy.deepcopy(student), kind, ema)


def _other_model(
    name: str, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel:
    """Load a model with the student's tokens. A larger head is cut: the surplus is padding."""
    if tokenizer is None:
        raise ValueError("teacher.kind is model, which needs the student's tokenizer: pass it")
    loaded = load_model(name)
    check_same_tokens(name, loaded.tokenizer, tokenizer)
    needed, found = (VocabularyHead.of(each).vocab_size for each in (student, loaded.model))
    if found < needed:
        raise ValueError(
            f"the head of teacher.pretrained {name!r} has {found} entries, the student's "
            f"{needed}: use a teacher with as many"
        )
    if found > needed:
        if loaded.model.device.type == "meta":
            logger.warning("every process reads all of %s, since its head has to be cut", name)
            with torch.device("cpu"):
                loaded = load_model(name)
        loaded.model.resize_token_embeddings(needed)
    return loaded.model


def check_same_tokens(
    name: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase
) -> None:
    """Require that both tokenizers give every token the same id.

    Raises:
        ValueError: Some tokens differ; the message names a few of them.
    """
    their_ids, our_ids = theirs.get_vocab(), ours.get_vocab()
    differing = sorted(
        token for token in {*their_ids, *our_ids} if their_ids.get(token) != our_ids.get(token)
    )
    if differing:
        shown = ", ".join(
            f"{token!r}: student {our_ids.get(token)}, teacher {their_ids.get(token)}"
            for token in differing[:NUM_NAMED]
        )
        raise ValueError(
            f"teacher.pretrained {name!r} has another tokenizer than the student: {len(differing)} "
            f"tokens differ ({shown}); distillation compares distributions over the same tokens, "
            "so use a teacher of the student's model family"
        )


def _refuse_float16(student: nn.Module) -> None:
    for name, parameter in student.named_parameters():
        if parameter.dtype == torch.float16:
            raise ValueError(
                f"the student's {name} is {parameter.dtype}, in which an EMA loses most updates; "
                "load the model in float32 or bfloat16"
            )
