"""The prepared data sets beside the repository: they load, and their gold answers score 1."""

import itertools
import json

import pytest

from sdft.evaluation.measures import further_measures
from sdft.scorers.scorer_registry import SCORER_OF_SCORING, SCORERS
from sdft.tasks.rows import read_rows
from sdft.tasks.tasks import TaskSpec, load_task
from tests.conftest import SHARED_DATA as DATA

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"there are no prepared data sets in {DATA}"
)

SCORER_OF_TASK = {
    "knowledge_wiki2023bio": "token_f1",
    "medical_pubmedqa": "final_answer",
    "science_chemistry": "multiple_choice",
    "small_banking77": "exact_label",
    "small_clinc_domain": "exact_label",
    "small_snips_json": "json_equal",
    "tooluse_bfcl": "accepted_calls",
    "tooluse_toolalpaca": "action_input",
}
SUITES = ["arc_easy", "hellaswag", "mmlu", "truthfulqa_mc1", "winogrande"]


def load(name, **options):
    return load_task(TaskSpec(name=name, path=str(DATA / name), **options))


def rows_of(task):
    return (*task.train, *task.validation, *task.test)


def below_one(task):
    return {row.id for row in rows_of(task) if task.scorer(row.demonstration, row) < 1}


@pytest.mark.parametrize("name", list(SCORER_OF_TASK))
def test_a_folder_runs_unchanged_and_its_demonstrations_score_one(name):
    task = load(name)
    assert task.scorer_name == SCORER_OF_TASK[name]
    assert task.train
    assert task.validation
    assert task.test
    assert below_one(task) == set()


def test_the_published_tool_rule_has_two_false_negatives():
    test = load("tooluse_toolalpaca", scorer="published_action_input").test
    scorer = SCORERS["published_action_input"]
    failed = [row.id for row in test if scorer(row.demonstration, row) < 1]
    assert failed == ["toolalpaca-test-26", "toolalpaca-test-33"]
    assert all(SCORERS["action_input"](row.demonstration, row) == 1 for row in test)


def test_macro_f1_of_the_majority_class_is_far_below_its_accuracy():
    task = load("medical_pubmedqa")
    for answer, expected in (("Final answer: yes", 2 * 0.552 / (1 + 0.552) / 3), ("", 0.0)):
        measures = further_measures(task.scorer, [answer] * len(task.test), task.test)
        assert measures == {"macro_f1": pytest.approx(expected)}
    gold = [row.demonstration for row in task.test]
    assert further_measures(task.scorer, gold, task.test) == {"macro_f1": 1.0}


@pytest.mark.parametrize("name", list(SCORER_OF_TASK))
def test_the_demonstration_of_a_row_with_another_answer_scores_below_one(name):
    rows = load(name).test
    scorer = SCORERS[SCORER_OF_TASK[name]]
    for row, other in itertools.pairwise(rows):
        if scorer.gold(row) != scorer.gold(other):
            assert scorer(other.demonstration, row) < 1
        assert scorer("", row) == 0


@pytest.mark.parametrize(
    ("name", "scorer"),
    [
        ("small_banking77", "first_token_label"),
        ("knowledge_wiki2023bio", "contains"),
        ("knowledge_wiki2023bio", "exact_match"),
    ],
)
def test_other_scorers_named_for_a_set_accept_its_demonstrations(name, scorer):
    assert below_one(load(name, scorer=scorer)) == set()


def test_the_simpler_tool_rule_works_on_calls_with_dotted_names():
    assert below_one(load("tooluse_bfcl", scorer="action_input")) == set()


def test_an_accepted_value_other_than_the_demonstrated_one_scores_one():
    task = load("tooluse_bfcl")
    num_changed = 0
    for row in task.test:
        (accepted, *more) = row.meta["accepted"]
        ((name, parameters),) = accepted.items()
        plain = all(isinstance(values[-1], str | int | float) for values in parameters.values())
        if not more and plain:
            last = {key: values[-1] for key, values in parameters.items() if values[-1] != ""}
            assert task.scorer(f"Action: {name}\nAction Input: {json.dumps(last)}", row) == 1
            assert task.scorer(f"Action: {name}\nAction Input: {{}}", row) == float(
                all("" in values for values in parameters.values())
            )
            num_changed += 1
    assert num_changed > 100


def test_the_article_becomes_the_teachers_context():
    task = load("knowledge_wiki2023bio", context_field="meta.document", num_train=50)
    assert len(task.train) == 50
    assert all(row.context == row.meta["document"] for row in rows_of(task))


@pytest.mark.parametrize(
    ("path", "scorer"),
    [(f"suite_{name}/test.jsonl", "first_letter") for name in SUITES]
    + [("science_chemistry/test_authors_reasoning.jsonl", "multiple_choice")],
)
def test_rows_without_demonstrations_are_scored_by_letter(path, scorer):
    rows = read_rows(DATA / path, "suite", needs_demonstration=False)
    assert {SCORER_OF_SCORING[row.meta["scoring"]] for row in rows} == {scorer}
    for row in rows:
        written = f"{row.answer}." if scorer == "first_letter" else f"<answer>{row.answer}</answer>"
        assert SCORERS[scorer](written, row) == 1
        assert SCORERS[scorer](written.replace(row.answer, "Z"), row) == 0
