"""Options with named choices: --help lists them, and a wrong one fails before anything loads."""

from typing import get_args

import pytest

from sdft.loss.divergence_registry import DIVERGENCES, DivergenceName
from sdft.rollout.engine_registry import ENGINES, EngineName
from tests.child_runs import run, write_config

CHOICES = {
    "model.divergence": "one of forward_kl, reverse_kl, jsd, sampled_token, rao_blackwellised",
    "model.reduction": "token_mean or sequence_mean",
    "model.rollout_engine": "in_place or generate or continuous_batching or vllm",
    "model.teacher.kind": "one of ema, stage_start, base, student, model",
    "model.memory": "full or lean",
    "data.demonstration_choice": "random or retrieved",
    "data.teacher_context": "demonstration or context or both",
    "data.overlong": "error or drop",
    "data.evaluated_as": "student or teacher",
}


def test_names_and_registries_agree():
    assert get_args(DivergenceName) == tuple(DIVERGENCES)
    assert get_args(EngineName) == tuple(ENGINES)


@pytest.mark.parametrize("option", CHOICES)
def test_a_wrong_choice_is_one_line_with_the_right_ones(option, tmp_path):
    config, log = write_config(tmp_path, pretrained="nowhere"), tmp_path / "log"
    assert run("fit", f"--config={config}", f"--{option}=other", log=log) == 2
    (line,) = [each for each in log.read_text().splitlines() if each.startswith("error: ")]
    assert f" is other; it must be {CHOICES[option]}" in line
    assert "nowhere" not in line


def test_help_lists_the_choices(tmp_path):
    log = tmp_path / "log"
    run("fit", "--model.help=SDFTModule", log=log)
    text = " ".join(log.read_text().split())
    for choice in ("rao_blackwellised", "sequence_mean", "continuous_batching"):
        assert choice in text
