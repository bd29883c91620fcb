from collections import Counter

import pytest

from sdft.tasks.generated import SPLITS, generate
from sdft.tasks.generated.routing import INSTRUCTIONS, SLOTS, TEAMS
from sdft.tasks.generated.row_sampling import fields_of


def test_every_eight_rows_have_each_team_once():
    rows = generate("routing", "train", 800)
    for start in range(0, 800, 8):
        assert sorted(row.answer for row in rows[start : start + 8]) == sorted(TEAMS)


def test_the_order_of_the_teams_differs_from_block_to_block():
    rows = generate("routing", "train", 160)
    orders = {tuple(row.answer for row in rows[at : at + 8]) for at in range(0, 160, 8)}
    assert len(orders) == 20


def test_the_prompt_lists_every_team():
    for row in generate("routing", "test", 200):
        assert ", ".join(TEAMS) in row.prompt[0]["content"]


def test_no_message_is_for_two_teams():
    templates = Counter(template for templates in TEAMS.values() for template in templates)
    assert max(templates.values()) == 1


def test_a_message_stays_in_its_split_under_another_instruction():
    seen = {}
    for split in SPLITS:
        for row in generate("routing", split, 600):
            before, after = row.meta["instruction"].split("{message}")
            after = after.format(teams=", ".join(TEAMS))
            message = row.prompt[0]["content"].removeprefix(before).removesuffix(after)
            assert seen.setdefault(message, split) == split


def test_each_team_has_a_dozen_wordings_and_each_slot_many_values():
    assert len(TEAMS) == 8
    assert len(INSTRUCTIONS) >= 5
    assert all(len(templates) >= 12 for templates in TEAMS.values())
    for values in SLOTS.values():
        assert len(set(values)) == len(values) >= 7


def test_every_field_of_a_template_has_a_slot_and_every_slot_is_used():
    fields = {
        field
        for templates in TEAMS.values()
        for template in templates
        for field in fields_of(template)
    }
    assert fields == set(SLOTS)


def test_a_team_alone_is_a_task_of_one_answer():
    rows = generate("routing", "train", 100, team=1)
    assert {row.answer for row in rows} == {list(TEAMS)[1]}
    assert len({row.prompt[0]["content"] for row in rows}) == 100
    with pytest.raises(ValueError, match="team is 8; it must lie between 0 and 7"):
        generate("routing", "train", 1, team=8)
