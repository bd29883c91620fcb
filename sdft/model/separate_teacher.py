"""A teacher that is another model than the student: frozen, perhaps larger, of the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdft.model.head import VocabularyHead
from sdft.model.pretrained import load_model
from sdft.model.teacher import Teacher, make_teacher, refuse_average

NUM_NAMED = 3  # differing tokens that an error message names


class SeparateTeacher(Teacher):
    """Another model, never trained; checkpoints leave its weights out.

    Args:
        name: What to load, as for the student.
        tokenizer: The student's; prompts and completions of both models come from it.
        vocab_size: Entries of the student's head. A larger teacher's are cut to these: they are
            padding, for which there are no tokens.

    Raises:
        ValueError: The model cannot be loaded, its tokens are not the student's, or its head has
            fewer entries.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        super().__init__("model", None)
        loaded = load_model(name)
        check_same_tokens(name, loaded.tokenizer, tokenizer)
        self.model = loaded.model.requires_grad_(False)
        self.model.eval()  # type: ignore[no-untyped-call]
        found = VocabularyHead.of(self.model).vocab_size
        if found < vocab_size:
            raise ValueError(
                f"the head of teacher_pretrained {name!r} has {found} entries, the student's "
                f"{vocab_size}: use a teacher with as many"
            )
        if found > vocab_size:
            self.model.resize_token_embeddings(vocab_size)
            self.model.requires_grad_(False)

    @contextmanager
    def scoring(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The other model."""
        del student
        yield self.model

    def head(self, student_head: VocabularyHead) -> VocabularyHead:
        """The other model's own head."""
        del student_head
        return VocabularyHead.of(self.model)

    def left_out(self) -> dict[str, Tensor]:
        """All of the other model."""
        return dict(self.state_dict())


def make_any_teacher(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    pretrained: str | None,
    **average: Any,
) -> Teacher:
    """The teacher of that kind, ``model`` included.

    Args:
        student: The model before training.
        tokenizer: The student's.
        kind: model, or one of :data:`sdft.model.teacher.TEACHERS`.
        pretrained: What to load, for ``model`` alone.
        average: As for :func:`sdft.model.teacher.make_teacher`.

    Raises:
        ValueError: What either teacher raises, or a model is named where none is needed, or the
            other way round.
    """
    if (pretrained is not None) != (kind == "model"):
        raise ValueError(
            f"teacher_pretrained is {pretrained} and teacher is {kind}: name the other model where "
            "teacher is model, and leave it out (null) where it is not"
        )
    if pretrained is None:
        return make_teacher(student, kind, **average)
    refuse_average(kind, average)
    return SeparateTeacher(pretrained, tokenizer, VocabularyHead.of(student).vocab_size)


def check_same_tokens(
    name: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase
) -> None:
    """Require that every token id stands for the same text in both tokenizers.

    Raises:
        ValueError: One does not; the message names a few of them.
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
            f"teacher_pretrained {name!r} has another tokenizer than the student: {len(differing)} "
            f"tokens differ ({shown}); distillation compares distributions over the same tokens, "
            "so use a teacher of the student's model family"
        )
