"""A KL loss that keeps the student near the model at the start of its stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_modules.options import require_above, require_at_least
from sdft.evaluation.general_prompts import general_prompts
from sdft.loss.hidden_states import LossPositions
from sdft.loss.reference_answers import ReferenceAnswers
from sdft.seeds import Stream, mix_seed
from sdft.tasks.sources.description import DESCRIPTIONS
from sdft.types import Demonstration

EARLIER_TASKS, GENERAL = "earlier_tasks", "general_prompts"
GENERAL_FILE = DESCRIPTIONS / GENERAL / "train.jsonl"


@dataclass(frozen=True)
class Anchor:
    """KL(model at the stage's start || student) on prompts without demonstrations, as a loss.

    Learning without forgetting (Li & Hoiem 2016) with a language model's answers: before a stage,
    the model answers the prompts (temperature 1), and its distribution at each token is recorded
    (:mod:`sdft.loss.reference_answers`). Every step adds ``weight`` times the mean KL over the
    tokens of a few of these answers.

    Args:
        weight: β, above 0.
        prompts: general_prompts, those that come with the package; earlier_tasks, the prompts of
            earlier tasks' training rows, so that the first stage has no anchor; or a JSON Lines
            file of others (id, prompt).
        num_prompts: Number of answers recorded at a stage's start.
        rows_per_step: Answers that each process reads per optimizer step, in turn.
        max_new_tokens: Longest answer.
    """

    weight: float
    prompts: str
    num_prompts: int = 32
    rows_per_step: int = 4
    max_new_tokens: int = 32


class StageAnchor:
    """The recorded answers of the current stage, and the loss on them.

    Args:
        options: What to record.

    Raises:
        ValueError: An option is out of range, or there are fewer prompts than num_prompts.
        FileNotFoundError: The file of prompts does not exist.
    """

    def __init__(self, options: Anchor) -> None:
        require_above(0, **{"anchor.weight": options.weight})
        for name in ("num_prompts", "rows_per_step", "max_new_tokens"):
            require_at_least(1, **{f"anchor.{name}": getattr(options, name)})
        self.options = options
        self.answers: ReferenceAnswers | None = None
        self.last_read: ReferenceAnswers | None = None  # of the last training step, for callbacks
        self._general: list[Demonstration] = []
        if options.prompts != EARLIER_TASKS:
            file = GENERAL_FILE if options.prompts == GENERAL else options.prompts
            self._general = general_prompts(str(file), options.num_prompts)

    def start_stage(self, module: Any) -> None:
        """Record the answers of the current student."""
        rows = self._rows(module)
        prompts = [module.trainer.datamodule.reader.student_prompt(row) for row in rows]
        with module.trainer.precision_plugin.val_step_context():  # in the steps' precision
            self.answers = self._answers(module, prompts) if prompts else None

    def _rows(self, module: Any) -> list[Demonstration]:
        """General prompts, or an equal number from each earlier task."""
        if self._general:
            return self._general
        tasks = module.trainer.datamodule.tasks[: module.stage]
        share = -(-self.options.num_prompts // max(len(tasks), 1))
        return [row for task in tasks for row in task.train[:share]][: self.options.num_prompts]

    def _answers(self, module: Any, prompts: list[list[int]]) -> ReferenceAnswers:
        seeds = [
            mix_seed(Stream.ANCHOR_ANSWERS, module.seed, module.stage, place)
            for place in range(len(prompts))
        ]
        answers: ReferenceAnswers
        answers = module.reference_answers(prompts, self.options.max_new_tokens, seeds)
        completions = answers.completions
        module.passes.sampled(module.student, prompts, completions)
        read = prompts, completions, sum(map(len, completions))
        module.passes.read("anchor", module.student, *read, gradient=False)
        return answers

    def kl(self, module: Any) -> Tensor | None:
        """Mean KL(stage start || student) over the tokens of this step's answers, in nats.

        Returns:
            (), with gradient; None in a stage without an anchor.
        """
        if self.answers is None:
            return None
        rank, num_ranks = module.trainer.global_rank, module.trainer.world_size
        step = module.trainer.global_step - module.plan.first_step(module.stage)
        count = self.options.rows_per_step
        first = (step * num_ranks + rank) * count
        places = [place % len(self.answers.prompts) for place in range(first, first + count)]
        self.last_read = read = self.answers.of_rows(places)
        positions = LossPositions.of(read.completions, device=module.device)
        texts = read.prompts, read.completions
        hidden = module.scored("anchor", module.student, *texts, positions)
        return read.kl(hidden, module.student_head).mean()

    def state(self) -> dict[str, Tensor]:
        """The stage's answers, for the checkpoint; empty if there are none."""
        return {} if self.answers is None else self.answers.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue with a checkpoint's answers."""
        tensors = {name: torch.as_tensor(tensor).cpu() for name, tensor in state.items()}
        self.answers = ReferenceAnswers.from_state(tensors) if tensors else None
