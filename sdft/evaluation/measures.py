"""What else a task's answers say, besides the score that fills the accuracy matrix.

Some numbers are means of another score of the same answers, as SQuAD's exact match beside its token
F1; macro-F1 is a number of all answers together.
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
        scorer: Of the rows' task.
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
    """Plain mean over the gold labels of each label's F1.

    A class that a model never predicts counts as 0, however rare it is; predictions that are no
    gold label count as misses alone.

    Args:
        predicted: N labels, or other texts where no label was found.
        golds: N labels, at least one.
    """
    labels = set(golds)
    return sum(_label_f1(label, predicted, golds) for label in labels) / len(labels)


def _label_f1(label: str, predicted: Sequence[str], golds: Sequence[str]) -> float:
    hits = sum(label == guess == gold for guess, gold in zip(predicted, golds, strict=True))
    return 2 * hits / (predicted.count(label) + golds.count(label))
