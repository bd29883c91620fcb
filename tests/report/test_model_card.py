import json

import pytest
import yaml

from sdft.report.model_card import training_config, write_model_card
from tests.child_runs import run, write_config

CONFIG = {
    "seed_everything": 7,
    "run_dir": "/home/me/private",
    "trainer": {
        "precision": None,
        "gradient_clip_val": 1.0,
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "default_root_dir": "/home/me/private",
    },
    "model": {"class_path": "lightning_modules.SFTModule", "init_args": {"lora": None}},
    "data": {
        "tasks": [
            {"name": "one", "path": "/home/me/rows", "num_train": None},
            {"name": "two", "source": "banking77", "judge": {"url": "http://j", "model": None}},
        ]
    },
}
RECORD = {
    "method": "SFT",
    "model": "org/base-1b",
    "tasks": ["one", "two"],
    "rows": [
        {"stage": 0, "after": None, "accuracy": {"one": 0.0, "two": None}},
        {"stage": 1, "after": "one", "accuracy": {"one": 0.5, "two": 0.25}},
        {"stage": 2, "after": "two", "accuracy": {"one": 0.125, "two": 1.0}},
    ],
    "test": {"accuracy": {"one": 0.1, "two": 0.9}},
}


def card(tmp_path, stage, record=RECORD):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "retention.json").write_text(json.dumps(record))
    (tmp_path / "retention.png").write_bytes(b"figure")
    export = tmp_path / "exports" / f"stage-{stage}-{RECORD['tasks'][stage - 1]}"
    export.mkdir(parents=True)
    write_model_card(tmp_path, export, stage)
    assert (export / "retention.png").read_bytes() == b"figure"
    return (export / "README.md").read_text()


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_says_what_was_trained_and_what_was_measured(tmp_path):
    text = card(tmp_path, stage=2)
    assert front_matter(text)["base_model"] == "org/base-1b"
    assert front_matter(text)["library_name"] == "transformers"
    assert "| before training | 0.0 | not measured |" in text
    assert "| after two | 12.5 | 100.0 |" in text
    assert "| test rows | 10.0 | 90.0 |" in text
    assert "| two | the public data set banking77 | 2 |" in text
    assert "seed 7 on 2 tasks" in text


def test_the_card_of_an_earlier_stage_has_no_later_measurements(tmp_path):
    text = card(tmp_path, stage=1)
    assert "after stage 1 of 2: trained by SFT on\none." in text
    assert "after two" not in text
    assert "test rows" not in text
    assert "2, not in this model" in text


def test_a_local_base_model_is_not_claimed_to_be_on_the_hub(tmp_path):
    text = card(tmp_path, stage=1, record={**RECORD, "model": "tiny-random"})
    assert "base_model" not in front_matter(text)


def test_the_training_configuration_holds_choices_alone(tmp_path):
    kept = training_config(CONFIG)
    assert kept["data"]["tasks"][1] == {
        "name": "two",
        "source": "banking77",
        "judge": {"url": "http://j"},
    }
    assert "precision" not in kept["trainer"]
    assert "private" not in json.dumps({**kept, "data": None})


@pytest.mark.slow
def test_a_run_writes_cards_whose_configuration_reproduces_it(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    log = tmp_path / "log"
    config = write_config(tmp_path)
    assert run("fit", f"--config={config}", f"--run_dir={first}", log=log) == 0, log.read_text()
    (export,) = (first / "exports").glob("stage-2-*")
    assert "| after two |" in (export / "README.md").read_text()
    training = export / "training.yaml"
    assert run("fit", f"--config={training}", f"--run_dir={again}", log=log) == 0, log.read_text()
    assert (again / "retention.json").read_bytes() == (first / "retention.json").read_bytes()


def test_cards_are_an_option(tmp_path):
    log = tmp_path / "log"
    config = write_config(tmp_path)
    options = [f"--config={config}", f"--run_dir={tmp_path / 'run'}", "--export.card=false"]
    assert run("fit", *options, log=log) == 0, log.read_text()
    assert list((tmp_path / "run" / "exports").glob("stage-*"))
    assert not list((tmp_path / "run" / "exports").glob("*/README.md"))
