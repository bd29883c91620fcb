import ast

import pytest

from sdft.tasks.generated import SPLITS, generate
from sdft.tasks.generated.row_sampling import fields_of
from sdft.tasks.generated.tool_call import INSTRUCTIONS, PARAMETERS, REQUESTS, VALUES, format_call


def parsed(call):
    """Tool name and (parameter, value) pairs of a call, read as Python reads it."""
    node = ast.parse(call, mode="eval").body
    return node.func.id, [(word.arg, ast.literal_eval(word.value)) for word in node.keywords]


def test_every_eight_rows_call_each_tool_once():
    rows = generate("tool_call", "train", 800)
    for start in range(0, 800, 8):
        called = [parsed(row.answer)[0] for row in rows[start : start + 8]]
        assert sorted(called) == sorted(PARAMETERS)


@pytest.mark.parametrize("split", SPLITS)
def test_a_call_has_its_tools_parameters_in_order_with_values_from_the_prompt(split):
    for row in generate("tool_call", split, 1000):
        tool, arguments = parsed(row.answer)
        assert tuple(name for name, _ in arguments) == PARAMETERS[tool]
        for name, value in arguments:
            assert value in VALUES[name]
            assert value in row.prompt[0]["content"]


def test_the_prompt_never_shows_a_signature():
    for row in generate("tool_call", "train", 1000):
        assert not set('(="') & set(row.prompt[0]["content"])


def test_a_call_is_written_in_the_tools_order_whatever_the_order_of_the_arguments():
    assert format_call("alarm", {"time": "7 am", "day": "Monday"}) == (
        'alarm(day="Monday", time="7 am")'
    )


def test_a_request_stays_in_its_split_under_another_instruction():
    seen = {}
    for split in SPLITS:
        for row in generate("tool_call", split, 1500):
            before, after = row.meta["instruction"].split("{request}")
            request = row.prompt[0]["content"].removeprefix(before).removesuffix(after)
            assert seen.setdefault(request, split) == split


def test_every_request_names_each_parameter_of_its_tool_once():
    assert set(REQUESTS) == set(PARAMETERS)
    for tool, templates in REQUESTS.items():
        assert len(set(templates)) == len(templates) >= 12
        for template in templates:
            assert sorted(fields_of(template)) == sorted(PARAMETERS[tool])


def test_vocabularies_are_large_and_without_repeats():
    assert len(INSTRUCTIONS) >= 5
    for values in VALUES.values():
        assert len(set(values)) == len(values) >= 9
