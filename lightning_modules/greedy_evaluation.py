"""Generation, and the greedy evaluation of every task, which all methods share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdft.loss.reference_answers import ReferenceAnswers
from sdft.rollout.engine_registry import Engine
from sdft.rollout.in_place import InPlaceEngine
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.scorers.answer_text import answer_texts
from sdft.types import EvaluationBatch, Rollout, TokenIds

SCORED_AT_ONCE = 8  # answers; scoring waits for the judge


class GreedyEvaluation(L.LightningModule):
    """Answers validation and test rows greedily, and scores the answers."""

    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    greedy: SamplingSettings
    rollout_engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self._scores: dict[str, list[float]] = {}  # scores of this rank's rows, by task
        self._evaluation = ExitStack()  # contexts of an evaluation
        self._beside = InPlaceEngine()  # for models other than the student

    def generate(
        self,
        prompts: Sequence[TokenIds],
        settings: SamplingSettings,
        *,
        seeds: Sequence[int] | None = None,
        drafts: Sequence[TokenIds] | None = None,
        model: PreTrainedModel | None = None,
    ) -> Rollout:
        """One completion per prompt.

        Args:
            prompts: B token-id lists.
            settings: Such as the module's own ``greedy``.
            seeds: B seeds of the sampling noise; not needed where ``settings`` are greedy.
            drafts: B guesses of the completions, which may save forward passes and change
                nothing else.
            model: The model that answers. None is the student, through the rollout engine; any
                other model, such as a teacher, answers in place.
        """
        decode = self.tokenizer.decode
        request = RolloutRequest(prompts, settings, self.end_ids, seeds, drafts, decode)
        if model is None:
            return self.rollout_engine(self.student, request)
        return self._beside(model, request)

    def reference_answers(
        self, prompts: Sequence[TokenIds], max_new_tokens: int, seeds: Sequence[int]
    ) -> ReferenceAnswers:
        """The student's own answers at temperature 1, with its distribution at every token.

        Args:
            prompts: B token-id lists.
            max_new_tokens: Longest answer.
            seeds: B seeds of the sampling noise.
        """
        sampled = {"temperature": 1.0, "max_new_tokens": max_new_tokens, "stop_strings": ()}
        rollout = self.generate(prompts, replace(self.greedy, **sampled), seeds=seeds)
        return ReferenceAnswers.of(self.student, prompts, rollout.completions)

    def prepared(self, model: PreTrainedModel | None = None) -> AbstractContextManager[None]:
        """A block in which each rank may call :meth:`generate` as often as it likes.

        Outside the block, ranks with sharded weights must call it equally often. All ranks must
        enter the block.
        """
        if model is None:
            return self.rollout_engine.prepared(self.student)
        return self._beside.prepared(model)

    def on_validation_epoch_start(self) -> None:
        """Clear the last evaluation; gather sharded weights once for all batches."""
        self._scores = {}
        self._evaluation.enter_context(self.prepared())

    def validation_step(
        self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[Any]]:
        """Answer greedily and score the answers; callbacks receive both."""
        return self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Publish ``accuracy/<task>`` for the callbacks; the retention tracker writes it."""
        self._evaluation.close()
        self._log_accuracies("accuracy")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Publish ``test_accuracy/<task>``."""
        self._evaluation.close()
        self._log_accuracies("test_accuracy")

    def _evaluate(self, batch: EvaluationBatch) -> dict[str, list[Any]]:
        if not batch.rows:  # this process has no rows left, another has
            return {"answers": [], "scores": [], "texts": []}
        rollout = self.generate(batch.prompts, self.greedy)
        texts = self.tokenizer.batch_decode(rollout.completions, skip_special_tokens=True)
        answers = self.answers(batch.prompts, rollout)
        with ThreadPoolExecutor(SCORED_AT_ONCE) as pool:
            scores = list(pool.map(batch.scorer, answers, batch.rows))
        self._scores.setdefault(batch.task, []).extend(scores)
        return {"answers": answers, "scores": scores, "texts": texts}

    def answers(self, prompts: Sequence[TokenIds], rollout: Rollout) -> list[str]:
        """B answers as they are scored: without special tokens, thoughts and stop strings."""
        return answer_texts(
            self.tokenizer,
            prompts,
            rollout.completions,
            stop_strings=self.greedy.stop_strings,
            thought_marks=self.trainer.datamodule.reader.chat.thought_marks,
        )

    def _log_accuracies(self, prefix: str) -> None:
        """Mean score of each task over the rows of all ranks, of which some may have none."""
        tasks = self.trainer.datamodule.plan.tasks
        own = [self._scores.get(task, []) for task in tasks]
        totals = torch.tensor([(sum(each), float(len(each))) for each in own], device=self.device)
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        for task, (score, num_rows) in zip(tasks, totals, strict=True):
            if num_rows:
                self.log(f"{prefix}/{task}", score / num_rows, logger=False, sync_dist=False)
