"""Every configuration of a method runs as the override of a small one; every method resumes."""

import json

import pytest
import torch
import yaml

from lightning_modules import (
    DFTModule,
    KLPenaltyModule,
    OnPolicyDistillationModule,
    ReinvokeModule,
    RewardedSDFTModule,
    SFTModule,
)
from tests.child_runs import run, write_config
from tests.conftest import REPOSITORY
from tests.lightning_modules.test_modules import sdft, train
from tests.lightning_modules.test_teacher_samples import SaveAt

CONFIGS = REPOSITORY / "configs"
METHODS = {
    "anchor": "SDFT + anchor",
    "anchor_on_earlier_tasks": "SDFT + anchor",
    "cpt": "CPT",
    "dft": "DFT",
    "filtered": "SDFT",
    "offline_distillation": "offline distillation",
    "on_policy_distillation": "on-policy distillation",
    "reinvoke": "SFT + re-invoke",
    "sdft_on_demonstrations": "SDFT, λ = 0",
    "sdft_reward": "SDFT + reward",
    "sft": "SFT",
    "sft_kl_penalty": "SFT + KL",
    "sft_on_teacher_samples": "SFT on teacher samples",
    "sft_replay": "SFT",
}
RESUMED = {
    DFTModule: {},
    KLPenaltyModule: {"penalty": 1.0},
    OnPolicyDistillationModule: {"teacher": {"kind": "stage_start"}},
    ReinvokeModule: {},
    RewardedSDFTModule: {"reward_weight": 1.0},
    SFTModule: {},
}
SHORT = ("--data.examples_per_stage=2", "--export.enabled=false", "--checkpoint.keep_stages=false")
INSTEAD = {  # what random weights cannot do, and a model that is not here
    "filtered": ("--data.min_agreement=0.0001",),
    "on_policy_distillation": ("--model.init_args.teacher.pretrained=tiny-random",),
}


def test_every_method_config_is_listed():
    assert {path.stem for path in (CONFIGS / "methods").glob("*.yaml")} == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_config_leaves_the_learning_rate_to_the_experiment(name):
    config = yaml.safe_load((CONFIGS / "methods" / f"{name}.yaml").read_text("utf-8"))
    assert "learning_rate" not in config.get("model", {}).get("init_args", {})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_config_overrides_another(name, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    log = tmp_path / "log"
    config = write_config(
        tmp_path,
        teacher={"kind": "ema", "rate": 0.02, "reset_each_stage": False},  # as quickstart_sdft
    )
    code = run(
        "fit", f"--config={config}", f"--config={CONFIGS}/methods/{name}.yaml",
        f"--run_dir={tmp_path / 'run'}", *SHORT, *INSTEAD.get(name, ()), log=log,
    )  # fmt: skip
    assert code == 0, log.read_text()
    record = json.loads((tmp_path / "run" / "retention.json").read_text())
    assert record["method"] == METHODS[name]
    assert len(record["rows"]) == len(record["tasks"]) + 1


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_of_any_method_equals_an_uninterrupted_one(kind, tmp_path):
    options = {"train_on": kind.train_on, "replay_fraction": 0.5}
    whole = sdft(kind, seed=1, **RESUMED[kind])
    train(whole, tmp_path / "whole", SaveAt(4, tmp_path / "at.ckpt"), **options)
    resumed = sdft(kind, seed=1, **RESUMED[kind])
    train(resumed, tmp_path / "rest", ckpt_path=tmp_path / "at.ckpt", **options)
    for own, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, expected)
