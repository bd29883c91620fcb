import pytest
import torch

from lightning_modules import (
    DFTModule,
    KLPenaltyModule,
    OnPolicyDistillationModule,
    ReinvokeModule,
    RewardedSDFTModule,
    SFTModule,
)
from tests.lightning_modules.test_modules import sdft, train
from tests.lightning_modules.test_teacher_samples import SaveAt

METHODS = {
    DFTModule: {},
    KLPenaltyModule: {"penalty": 1.0},
    OnPolicyDistillationModule: {"teacher": "stage_start"},
    ReinvokeModule: {},
    RewardedSDFTModule: {"reward_weight": 1.0},
    SFTModule: {},
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_resumed_run_of_any_method_equals_an_uninterrupted_one(kind, tmp_path):
    options = {"train_on": kind.train_on, "replay_fraction": 0.5}
    whole = sdft(kind, seed=1, **METHODS[kind])
    train(whole, tmp_path / "whole", SaveAt(4, tmp_path / "at.ckpt"), **options)
    resumed = sdft(kind, seed=1, **METHODS[kind])
    train(resumed, tmp_path / "rest", ckpt_path=tmp_path / "at.ckpt", **options)
    for own, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, expected)
