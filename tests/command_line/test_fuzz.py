import json
import os
import time

import pytest

from sdft.runs.jsonl import read_records
from sdft.scorers.scorer_registry import SCORERS
from tests.fuzzing import TARGETS, demonstration

NUM_CASES = int(os.environ.get("SDFT_FUZZ_CASES", "40"))


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_gives_a_value_that_holds_or_a_clear_error(name):
    TARGETS[name].run(NUM_CASES)


def members(count):
    return ", ".join(f'"{number}": 0' for number in range(count))


LONG_LINES = {
    "repeated key": "{" + members(200_000) + ', "x": 0, "x": 0}',
    "ten megabytes": '{"a": "' + "x" * 10_000_000 + '"}',
    "brackets": "[" * 4_000_000,
    "quotes": '"' * 4_000_000,
    "backslashes": '{"a": "' + "\\" * 4_000_000,
    "digits": '{"a": ' + "9" * 4_000_000 + "}",
}


@pytest.mark.parametrize("name", LONG_LINES)
def test_a_long_line_is_refused_at_once(name, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(LONG_LINES[name], "utf-8")
    start = time.process_time()
    with pytest.raises(ValueError, match=r"train\.jsonl:1: "):
        list(read_records(path))
    assert time.process_time() - start < 10  # counting every key for every key takes minutes


def test_not_a_number_is_no_json_in_gold_answers_and_completions():
    row = demonstration({"a": 1.5})
    assert SCORERS["json_equal"]('{"a": NaN} {"a": 1.5}', row) == 1
    with pytest.raises(ValueError, match="needs a JSON object"):
        SCORERS["json_equal"].gold(demonstration('{"a": NaN}'))


def test_what_a_message_quotes_is_cut(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"i" * 100_000: 1}), "utf-8")
    with pytest.raises(ValueError, match="needs a label") as caught:
        SCORERS["exact_label"].gold(demonstration("." * 100_000))
    assert len(str(caught.value)) < 500
