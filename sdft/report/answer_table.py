"""The same prompts answered at every stage, method by method."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdft.evaluation.metrics import last_measured_stage
from sdft.report.groups import Comparison
from sdft.report.parts import StageAnswer
from sdft.report.runs import Run


@dataclass(frozen=True)
class Prompt:
    """One prompt, and who answered it how.

    Args:
        first: Any answer to it: for the prompt itself and what is expected.
        lines: Method and run -> the answer at each stage, None where there is none.
    """

    first: StageAnswer
    lines: dict[str, list[StageAnswer | None]] = field(default_factory=dict)


def prompts_of(comparison: Comparison) -> list[Prompt]:
    """The prompts in the order of their tasks; of each method, the first run with answers."""
    prompts: dict[tuple[str, str], Prompt] = {}
    num_rows = len(comparison.tasks) + 1
    for group in comparison.groups:
        run = next((run for run in group.runs if run.answers), None)
        for answer in _known(run) if run else ():
            prompt = prompts.setdefault((answer.task, answer.id), Prompt(answer))
            line = prompt.lines.setdefault(group.label, [None] * num_rows)
            line[answer.stage] = answer
    return sorted(prompts.values(), key=lambda each: comparison.tasks.index(each.first.task))


def _known(run: Run) -> list[StageAnswer]:
    """The run's answers at the stages of its accuracy matrix."""
    last = last_measured_stage(run.matrix)
    measured = range(0 if last is None else last + 1)
    return [each for each in run.answers or () if each.task in run.tasks and each.stage in measured]
