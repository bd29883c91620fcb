"""Estimates pass@k: the chance that one of k sampled answers is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from tqdm import tqdm

from sdft.evaluation.metrics import mean_pass_at_k, powers_of_two
from sdft.model.sharding import from_all_ranks
from sdft.rollout.request import SamplingSettings
from sdft.runs.files import write_json_atomically
from sdft.seeds import Stream, mix_seed
from sdft.types import Demonstration, EvaluationBatch, TokenIds


class PassAtK(L.Callback):
    """Answers every test row many times and estimates pass@k without bias.

    It runs after the test rows were answered greedily: at the end of ``fit``, or with ``test``.
    An answer counts as right when its score is 1. The result goes to ``pass_at_k.json``, with
    every row's number of right answers. Each sample depends only on the seed, its number,
    the row and the weights.

    Args:
        num_samples: Answers drawn for each row, n; k goes up to it in powers of two.
        temperature: Sampling temperature.
        top_p: Nucleus probability of the samples.
        num_rows: Rows of each task, the first ones (of each process's shard); null for all.
        batch_size: Answers drawn at a time.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        num_samples: int = 128,
        temperature: float = 1.0,
        top_p: float = 0.95,
        num_rows: int | None = None,
        batch_size: int = 32,
    ) -> None:
        counts = {"num_samples": num_samples, "num_rows": num_rows, "batch_size": batch_size}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"PassAtK's {name} is {value}; it must be at least 1")
        if temperature == 0:
            raise ValueError("PassAtK's temperature is 0, so all answers would be the same")
        SamplingSettings(1, temperature, top_p)  # refuses what is out of range
        self.num_samples, self.num_rows, self.batch_size = num_samples, num_rows, batch_size
        self.temperature, self.top_p = temperature, top_p

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, score and write."""
        rows = [
            (batch, row, prompt)
            for loader in trainer.datamodule.test_dataloader()
            for batch, row, prompt in list(_rows(loader))[: self.num_rows]
        ]
        num_correct: dict[str, dict[str, int]] = {}
        engine, student = pl_module.rollout_engine, pl_module.student
        with trainer.precision_plugin.test_step_context(), engine.prepared(student):
            for batch, row, prompt in tqdm(rows, "Sampling for pass@k", unit=" rows"):
                right = sum(
                    batch.scorer(answer, row) == 1.0
                    for answer in self._answers(pl_module, prompt, row)
                )
                num_correct.setdefault(batch.task, {})[row.id] = right
        merged: dict[str, dict[str, int]] = {}
        for share in from_all_ranks(num_correct):
            for task, counts in share.items():
                merged.setdefault(task, {}).update(counts)
        if trainer.is_global_zero:
            target = Path(trainer.default_root_dir) / "pass_at_k.json"
            write_json_atomically(target, self.record(merged))

    def record(self, num_correct: dict[str, dict[str, int]]) -> dict[str, Any]:
        """The content of ``pass_at_k.json``.

        Args:
            num_correct: Task -> id of a row -> how many of its answers were right.
        """
        return {
            "num_samples": self.num_samples,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "definition": "Mean over rows of 1 - C(n - c, k) / C(n, k), for n samples of which c "
            "are right.",
            "pass_at_k": {
                task: {
                    str(k): mean_pass_at_k(list(counts.values()), self.num_samples, k)
                    for k in powers_of_two(self.num_samples)
                }
                for task, counts in num_correct.items()
            },
            "num_correct": num_correct,
        }

    def _answers(
        self, module: L.LightningModule, prompt: TokenIds, row: Demonstration
    ) -> Iterator[str]:
        settings = SamplingSettings(
            module.greedy.max_new_tokens,
            self.temperature,
            self.top_p,
            stop_strings=module.greedy.stop_strings,
        )
        for start in range(0, self.num_samples, self.batch_size):
            numbers = range(start, min(start + self.batch_size, self.num_samples))
            seeds = [
                mix_seed(Stream.PASS_AT_K, module.seed, number, row.task, row.id)
                for number in numbers
            ]
            prompts = [prompt] * len(numbers)
            yield from module.answers(prompts, module.generate(prompts, settings, seeds=seeds))


def _rows(loader: Any) -> Iterator[tuple[EvaluationBatch, Demonstration, TokenIds]]:
    for batch in loader:
        for row, prompt in zip(batch.rows, batch.prompts, strict=True):
            yield batch, row, prompt
