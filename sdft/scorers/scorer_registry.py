"""Scorers by name: how correct a completion is, from 0 to 1.

A scorer is ``scorer(completion, row) -> float``. The completion may be any text: a scorer gives it
a score, never an exception, in time linear in its length. If a completion begins by repeating the
question word for word, only what follows is scored; published rules read all of it. The row's gold
answer must have the form the scorer needs; loading a task checks this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sdft.scorers import actions, final_numbers, tagged_answers, tool_calls
from sdft.scorers import json_objects as json_text
from sdft.scorers import published_rules as published
from sdft.scorers import text_answers as answers
from sdft.scorers.judge import SCORE_OF_VERDICT, Judge, reference_gold
from sdft.scorers.normalisation import bare
from sdft.types import Demonstration

MIN_QUESTION = 20  # characters


@dataclass(frozen=True, slots=True)
class Scorer:
    """A rule that scores completions.

    Args:
        name: As configs name it.
        read_gold: Row -> gold value in the form ``compare`` needs; ValueError if it has another
            form.
        compare: (completion, gold value) -> score in [0, 1]; its docstring states the rule.
        others: Further rules for the same gold value, reported beside the score.
        label: Where answers are labels, the one that a completion gives; the gold value is one.
        is_published: Whether this is somebody else's rule, which reads completions as they are.
    """

    name: str
    read_gold: Callable[[Demonstration], Any]
    compare: Callable[[str, Any], float]
    others: Mapping[str, Callable[[str, Any], float]] = field(default_factory=dict)
    label: Callable[[str], str] | None = None
    is_published: bool = False

    def __call__(self, completion: str, row: Demonstration) -> float:
        """Score one completion of the row's prompt.

        Raises:
            ValueError: The row's gold answer does not suit this scorer.
        """
        return self.compare(self.answer(completion, row), self.gold(row))

    def answer(self, completion: str, row: Demonstration) -> str:
        """The part of a completion that is compared: what follows a repeated question."""
        if self.is_published:
            return completion
        return without_question(completion, row.question)

    def gold(self, row: Demonstration) -> Any:
        """The row's gold value in the form this scorer compares with."""
        try:
            return self.read_gold(row)
        except ValueError as error:
            raise ValueError(f"row {row.id!r:.80}: the scorer {self.name!r} {error}") from error


def without_question(completion: str, question: str) -> str:
    """A completion without the question at its beginning; a shorter question may be an answer."""
    question, text = question.strip(), completion.lstrip()
    is_repeated = len(question) >= MIN_QUESTION and text.startswith(question)
    return text[len(question) :] if is_repeated else completion


FACT_RULES = {
    "exact_match": answers.exact_match,
    "contains": answers.contains,
    "token_f1": answers.token_f1,
}
CALL_PARTS = {"intent": json_text.intent_equal, "slot_f1": json_text.slot_f1}

SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer("exact_label", answers.label_gold, answers.exact_label, label=bare),
        Scorer(
            "first_token_label",
            answers.token_label_gold,
            answers.first_token_label,
            label=answers.normalise_token,
        ),
        Scorer("multiple_choice", answers.letter_gold, answers.multiple_choice),
        Scorer("first_letter", answers.option_gold, answers.first_letter),
        Scorer("tool_call", tool_calls.call_gold, tool_calls.tool_call),
        Scorer("action_input", actions.actions_gold, actions.action_input),
        Scorer("final_number", final_numbers.number_gold, final_numbers.final_number),
        Scorer("accepted_calls", actions.accepted_gold, actions.accepted_calls),
        Scorer(
            "tagged_answer",
            tagged_answers.topic_gold,
            tagged_answers.tagged_answer,
            {"topic_named": tagged_answers.topic_named},
        ),
        Scorer("json_equal", json_text.object_gold, json_text.json_equal, CALL_PARTS),
        *(Scorer(name, answers.words_gold, rule, FACT_RULES) for name, rule in FACT_RULES.items()),
        Scorer(
            "final_answer",
            answers.verdict_gold,
            answers.final_answer,
            label=answers.final_verdict,
        ),
        *(
            Scorer(rule.__name__, read_gold, rule, is_published=True)
            for read_gold, rule in (
                (answers.letter_gold, published.published_multiple_choice),
                (published.published_gold, published.published_action_input),
                (published.squad_gold, published.squad_exact_match),
                (published.squad_gold, published.squad_f1),
            )
        ),
    )
}

SCORER_OF_SCORING: dict[str, str] = {
    **{name: name for name in SCORERS},
    "final_answer_label": "final_answer",
    "mc_letter": "multiple_choice",
    "mc_loglik_or_letter": "first_letter",
    "qa_em_f1": "token_f1",
    "tool_actions": "action_input",
    "tool_actions_accepted": "accepted_calls",
    "xml_answer": "multiple_choice",
}
"""The scorer for a row's ``meta.scoring``, for tasks whose config names no scorer."""


def get_scorer(name: str, judge: Judge | None = None) -> Scorer:
    """The scorer of that name.

    Args:
        name: One of SCORERS, or judge_strict or judge_lenient.
        judge: The model that grades answers; only these two need one, and no other takes one.

    Raises:
        ValueError: There is no such scorer, or a judge is missing or not needed.
    """
    if name not in SCORERS and name not in SCORE_OF_VERDICT:
        known = ", ".join([*SCORERS, *SCORE_OF_VERDICT])
        raise ValueError(f"unknown scorer {name!r:.80}; use one of {known}")
    if (judge is None) == (name in SCORE_OF_VERDICT):
        lacks = "needs a judge with url and model" if judge is None else "takes no judge"
        raise ValueError(f"the scorer {name!r} {lacks}; {', '.join(SCORE_OF_VERDICT)} take one")
    if judge is not None:
        rules = {rule: partial(judge.score, rule) for rule in SCORE_OF_VERDICT}
        return Scorer(name, reference_gold, rules[name], rules)
    return SCORERS[name]
