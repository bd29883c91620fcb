import pytest

from sdft.evaluation.capabilities.capability_record import capability_record, capability_row
from sdft.evaluation.capabilities.margins import choice_margin, margin_change, suite_margins
from sdft.evaluation.capabilities.suites import get_suite
from tests.evaluation.test_capabilities import (
    choice_rows,
    load_tasks,
    measure,
    naive_likelihood,
    subject,
    write_suite,
)

__all__ = ["subject"]


def test_a_margin_is_the_right_choice_minus_the_best_other_per_token():
    assert choice_margin(1, [-4.0, -3.0, -9.0], [2, 3, 3]) == pytest.approx(-1.0 - -2.0)
    assert choice_margin(0, [-4.0, -3.0], [2, 3]) == pytest.approx(-2.0 - -1.0)


def test_rows_keep_their_order_and_generated_answers_have_no_margin():
    row = {"doc": {}, "arguments": [("c", "a"), ("c", "bb")], "target": 0}
    samples = [
        {**row, "doc_id": 1, "filtered_resps": [(-1.0, True), (-6.0, False)]},
        {**row, "doc_id": 0, "filtered_resps": [(-2.0, True), (-6.0, False)]},
        {"doc": {}, "doc_id": 2, "arguments": [("c", {})], "target": "t", "filtered_resps": ["x"]},
    ]
    assert suite_margins(samples, len) == [1.0, 2.0]


def test_margins_of_a_suite_are_those_of_plain_forward_passes(tiny, subject, tmp_path):
    rows = choice_rows(6)
    suites = [get_suite("hellaswag")]
    tasks = load_tasks(suites, write_suite(tmp_path, "hellaswag", rows))
    found = measure(tasks, suites, subject, batch_size=4).margins["hellaswag"]
    expected = []
    for row in rows:
        meta = row["meta"]
        per_token = [
            naive_likelihood(tiny, meta["context"], f" {text}")
            / len(tiny.tokenizer(f" {text}")["input_ids"])
            for text in meta["choices"]
        ]
        right = per_token.pop(meta["gold"])
        expected.append(right - max(per_token))
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_record_compares_every_stage_with_the_base_model_row_by_row():
    suites = [get_suite("mmlu")]
    metrics = {"mmlu": {suites[0].score: 0.5}}
    margins = ([0.5, -0.5, 1.0, 0.0], [0.4, -0.7, 0.9, -0.2])
    rows = [
        capability_row(["one"], stage, 5 * stage, suites, metrics, {"mmlu": of})
        for stage, of in enumerate(margins)
    ]
    before, after = capability_record(suites, "here", None, rows)["rows"]
    assert before["margin_change"]["mmlu"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    change = after["margin_change"]["mmlu"]
    assert change["mean"] == pytest.approx(-0.15)
    assert -0.2 - 1e-9 <= change["low"] < -0.15 < change["high"] <= -0.1 + 1e-9
    assert margin_change([], []) is None
