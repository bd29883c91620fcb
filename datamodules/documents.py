"""Training rows as raw documents, for continual pre-training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from datamodules.tokenization import RowTokenizer
from sdft.tasks.tasks import Task
from sdft.types import Demonstration, DemonstrationBatch


class DocumentTokenizer(RowTokenizer):
    """Reads a task's training rows as documents; evaluation is that of any other task.

    The documents are the contexts of the training rows, each once. One longer than
    ``max_prompt_tokens`` is cut into several rows; ``overlong`` applies only to evaluated prompts.
    """

    def fitting(self, task: Task) -> Task:
        """The task with its documents as training rows, and with checked evaluation rows.

        Raises:
            ValueError: No training row has a context, or an evaluated prompt is too long.
        """
        documents = dict.fromkeys(row.context for row in task.train if row.context)
        if not documents:
            raise ValueError(
                f"task {task.name!r} has no documents to train on: none of its training rows has "
                "the field 'context'; add it, or name where it is in the task's context_field"
            )
        pieces = [piece for document in documents for piece in self._pieces(document)]
        evaluated = super().fitting(replace(task, train=()))
        return replace(
            evaluated,
            train=tuple(
                Demonstration(f"document-{number}", task.name, (), "", "", context=piece)
                for number, piece in enumerate(pieces)
            ),
        )

    def train_batch(
        self, rows: Sequence[Demonstration], num_padding_rows: int = 0
    ) -> DemonstrationBatch:
        """Collate documents: every token bears loss, after a token that begins the text."""
        begin = self._tokenizer.bos_token_id
        prompts = [[self._end_id if begin is None else begin]] * len(rows)
        documents = [self.encoder.encode(row.context) for row in rows]
        return DemonstrationBatch(tuple(rows), prompts, prompts, documents, num_padding_rows)

    def _pieces(self, document: str) -> Iterator[str]:
        """The document, cut into texts of at most ``max_prompt_tokens`` tokens."""
        offsets = self._tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        starts = [start for start, _ in offsets[:: self._max_prompt_tokens]]
        for start, end in zip(starts, [*starts[1:], len(document)], strict=True):
            yield document[start:end]
