"""Compute further measures of a task's answers, besides the score in the accuracy matrix.

Some are means of another score of the same answers, such as SQuAD's exact match besides its token
F1; macro-F1 is computed from all answers together.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdft.scorers.scorer_registry import Scorer
from sdft.types import Demonstration


def further_measures(
    scorer: Scorer, answers: Sequence[str], rows: Sequence[Demonstration]
) -> dict[str, float]:
    """The scorer's other measures, by name.

    Args:
        scorer: Scorer of the rows' task.
        answers: N completions.
        rows: The N rows they answer, at least one.
    """
    golds = [scorer.gold(row) for row in rows]
    answers = [scorer.answer(answer, row) for answer, row in zip(answers, rows, strict=True)]
    measures = {
        name: sum(map(compare, answers, golds)) / len(rows)
        for name, compare in scorer.others.items()
    }
    if scorer.label is not None:
        measures["macro_f1"] = macro_f1([scorer.label(answer) for answer in answers], golds)
    return measures


def macro_f1(predicted: Sequence[str], golds: Sequence[str]) -> float:
    """The unweighted mean of the F1 of each gold label.

    A label that the model never predicts counts as 0, however rare it is. Predictions that are not
    a gold label only count as false negatives.

    Args:
        predicted: N labels, or other texts where no label was found.
        golds: N labels, at least one.
    """
    labels = set(golds)
    return sum(_label_f1(label, predicted, golds) for label in labels) / len(labels)


def _label_f1(label: str, predicted: Sequence[str], golds: Sequence[str]) -> float:
    hits = sum(label == guess == gold for guess, gold in zip(predicted, golds, strict=True))
    return 2 * hits / (predicted.count(label) + golds.count(label))
