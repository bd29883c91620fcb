import json

import pytest

from callbacks import StageRollouts
from tests.runs import run, write_config


def test_num_rows_is_at_least_one():
    with pytest.raises(ValueError, match=r"stage_rollouts\.num_rows is 0"):
        StageRollouts(num_rows=0)


@pytest.mark.slow
def test_the_same_prompts_are_answered_at_every_stage(tmp_path):
    config, folder = write_config(tmp_path), tmp_path / "run"
    options = ["--run_dir", str(folder), "--stage_rollouts.num_rows", "2"]
    assert run("fit", "--config", str(config), *options, log=tmp_path / "log") == 0
    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    asked = {
        stage: [(line["task"], line["id"]) for line in lines if line["stage"] == stage]
        for stage in range(3)
    }
    assert len(asked[0]) == 4
    assert asked[0] == asked[1] == asked[2]
    assert all(line["score"] in (0.0, 1.0) for line in lines)


def test_going_back_drops_the_lines_of_later_stages():
    first, second = StageRollouts(), StageRollouts()
    first.lines = [{"stage": 0}]
    second.load_state_dict(first.state_dict())
    assert second.lines == [{"stage": 0}]
