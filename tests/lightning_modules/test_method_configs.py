"""Every configuration of a method runs, as the override of a small one."""

import json

import pytest
import yaml

from tests.child_runs import run, write_config
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
METHODS = {
    "cpt": "CPT",
    "dft": "DFT",
    "filtered": "SDFT",
    "offline_distillation": "offline distillation",
    "on_policy_distillation": "on-policy distillation",
    "reinvoke": "SFT + re-invoke",
    "sdft_reward": "SDFT + reward",
    "sft": "SFT",
    "sft_kl_penalty": "SFT + KL",
    "sft_on_teacher_samples": "SFT on teacher samples",
    "sft_replay": "SFT",
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
        teacher={"kind": "ema", "rate": 0.02, "reset_each_stage": False},  # as the quickstart
    )
    code = run(
        "fit", f"--config={config}", f"--config={CONFIGS}/methods/{name}.yaml",
        f"--run_dir={tmp_path / 'run'}", *SHORT, *INSTEAD.get(name, ()), log=log,
    )  # fmt: skip
    assert code == 0, log.read_text()
    record = json.loads((tmp_path / "run" / "retention.json").read_text())
    assert record["method"] == METHODS[name]
    assert len(record["rows"]) == len(record["tasks"]) + 1
