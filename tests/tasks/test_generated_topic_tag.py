import pytest

from sdft.scorers.scorer_registry import get_scorer
from sdft.tasks.generated import SPLITS, generate
from sdft.tasks.generated.row_sampling import fields_of
from sdft.tasks.generated.topic_tag import ANSWERS, INSTRUCTIONS, QUESTIONS, SETTINGS, SUBJECTS

SCORER = get_scorer("tagged_answer")


@pytest.mark.parametrize("split", SPLITS)
def test_every_demonstration_is_a_right_answer(split):
    for row in generate("topic_tag", split, 1000):
        assert SCORER(row.demonstration, row) == 1.0
        assert row.answer in row.prompt[0]["content"]


def test_every_answer_of_a_kind_is_right_for_every_subject_of_it():
    [row] = generate("topic_tag", "train", 1)
    for kind, answers in ANSWERS.items():
        for answer in answers:
            for subject in SUBJECTS[kind]:
                text = f"{answer.format(subject=subject)} [topic: {subject}]"
                assert SCORER.compare(text, subject.lower()) == 1.0, text
    assert SCORER(f"{row.demonstration[:-1]}]", row) == 1.0


def test_the_prompt_never_shows_the_tag():
    for row in generate("topic_tag", "train", 1000):
        assert not set("[]") & set(row.prompt[0]["content"])
        assert "topic" not in row.prompt[0]["content"].lower()


def test_every_eight_rows_have_each_kind_of_question_once():
    kind_of = {question: kind for kind, of_kind in QUESTIONS.items() for question in of_kind}
    rows = generate("topic_tag", "train", 800)
    for start in range(0, 800, 8):
        kinds = [kind_of[row.meta["template"]] for row in rows[start : start + 8]]
        assert sorted(kinds) == sorted(QUESTIONS)


def test_every_answer_of_every_kind_is_used():
    used = {
        answer
        for row in generate("topic_tag", "train", 800)
        for answers in ANSWERS.values()
        for answer in answers
        if row.demonstration.startswith(answer.format(subject=row.answer))
    }
    assert used == {answer for answers in ANSWERS.values() for answer in answers}


def test_templates_have_their_fields_and_vocabularies_no_repeats():
    assert set(SUBJECTS) == set(QUESTIONS) == set(ANSWERS)
    assert len(INSTRUCTIONS) >= 6
    for kind, questions in QUESTIONS.items():
        assert len(set(questions)) == len(questions) >= 12
        assert len(set(SUBJECTS[kind])) == len(SUBJECTS[kind]) >= 16
        assert len(set(ANSWERS[kind])) == len(ANSWERS[kind]) >= 10
        assert all(sorted(fields_of(each)) == ["setting", "subject"] for each in questions)
        assert all(fields_of(each) == ("subject",) for each in ANSWERS[kind])
    assert len(set(SETTINGS)) == len(SETTINGS)
