import json

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdft.runs.run_directory import settle_run
from tests.child_runs import run, write_config
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two tasks, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder)
    code = run("fit", f"--config={config}", f"--run_dir={folder / 'run'}", log=folder / "log")
    log = (folder / "log").read_text()
    assert code == 0, log
    return folder / "run", log, config


def test_a_run_leaves_every_file_the_readme_names(finished):
    folder = finished[0]
    written = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert written >= {
        "config.yaml", "retention.json", "retention.png", "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt", "checkpoints/stage-1-one.ckpt", "checkpoints/stage-2-two.ckpt",
        "exports/stage-1-one/model.safetensors", "exports/stage-2-two/tokenizer.json",
    }  # fmt: skip
    assert not list(folder.rglob(".*")), "a temporary file stayed behind"


def test_a_run_ends_with_its_table_its_folder_and_the_tensorboard_line(finished):
    folder, log, _ = finished
    tail = log[-1500:]
    for expected in ("one", "two", str(folder), f"tensorboard --logdir {folder}/tensorboard"):
        assert expected in tail


def test_retention_has_one_row_before_training_and_one_after_every_stage(finished):
    record = json.loads((finished[0] / "retention.json").read_text())
    assert [row["after"] for row in record["rows"]] == [None, "one", "two"]
    assert [row["global_step"] for row in record["rows"]] == [0, 3, 5]
    assert all(set(row["accuracy"]) == {"one", "two"} for row in record["rows"])
    assert record["tasks"] == ["one", "two"]
    assert record["method"] == "SDFT"
    assert set(record["test"]["accuracy"]) == {"one", "two"}


def test_tensorboard_has_the_curves_the_losses_the_texts_and_the_figures(finished):
    events = EventAccumulator(str(finished[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"accuracy/one", "forgetting/one", "train/loss", "train/tokens_per_s"} <= {
        *tags["scalars"]
    }
    assert [event.step for event in events.Scalars("accuracy/two")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3, 4]
    assert len(tags["images"]) == 2


def test_an_export_loads_with_plain_transformers(finished):
    export = finished[0] / "exports" / "stage-2-two"
    assert AutoModelForCausalLM.from_pretrained(export).config.vocab_size == 259
    assert AutoTokenizer.from_pretrained(export).chat_template is not None


def test_the_saved_config_holds_every_option(finished):
    folder = finished[0]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["divergence"] == "forward_kl"
    assert saved["seed_everything"] == 1


def test_sft_is_one_option_away(finished, tmp_path):
    args = ("fit", f"--config={finished[2]}", f"--run_dir={tmp_path / 'sft'}")
    assert run(*args, "--model=lightning_modules.SFTModule", log=tmp_path / "log") == 0
    record = json.loads((tmp_path / "sft" / "retention.json").read_text())
    assert record["method"] == "SFT"


def test_the_final_model_is_tested_from_its_checkpoint(finished, tmp_path):
    folder, _, config = finished
    before = (folder / "retention.json").read_text()
    log = tmp_path / "log"
    args = (f"--config={config}", f"--run_dir={folder}", "--ckpt_path=last")
    assert run("test", *args, log=log) == 0, log.read_text()
    assert "test_accuracy/one" in log.read_text()
    assert (folder / "retention.json").read_text() == before


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--model.init_args.learning_rate=-1"], "model.learning_rate is -1"),
        (["--model.init_args.divergence=kl"], "model.divergence is kl"),
        (["--model.init_args.reduction=sum"], "model.reduction is sum"),
        (["--model.init_args.pretrained=./nowhere"], "'./nowhere' does not exist"),
        (["--model.init_args.num_masked_tokens=-1"], "num_masked_tokens is -1"),
        (["--data.teacher_template=nope"], "teacher_template 'nope'"),
        (["--data.max_prompt_tokens=10"], "data.max_prompt_tokens is 10"),
        (["--data.batchsize=3"], "batchsize"),
        (["--trainer.max_steps=4"], "trainer.max_steps is 4"),
        (["--trainer.accumulate_grad_batches=2"], "data.batch_size"),
        (["--ckpt_path=last"], "nothing to resume"),
        (["--ckpt_path=/no/such/file.ckpt"], "/no/such/file.ckpt does not exist"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(args, complaint, tmp_path):
    config = write_config(tmp_path)
    log = tmp_path / "log"
    code = run("fit", f"--config={config}", f"--run_dir={tmp_path / 'run'}", *args, log=log)
    assert code != 0
    assert complaint in log.read_text()


def test_a_truncated_checkpoint_is_named(finished, tmp_path):
    folder, _, config = finished
    whole = (folder / "checkpoints" / "last.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    args = ("fit", f"--config={config}", f"--run_dir={tmp_path / 'run'}", f"--ckpt_path={cut}")
    log = tmp_path / "log"
    assert run(*args, log=log) != 0
    assert "cut.ckpt is truncated or not a checkpoint" in log.read_text()


def test_a_checkpoint_of_other_settings_is_refused_with_what_differs(finished, tmp_path):
    folder, _, config = finished
    log = tmp_path / "log"
    args = (
        f"--config={config}", f"--run_dir={tmp_path / 'run'}", "--data.batch_size=1",
        "--model.teacher.kind=base", "--seed_everything=5", "--data.eval_batch_size=1",
    )  # fmt: skip
    ckpt = folder / "checkpoints" / "last.ckpt"
    assert run("fit", *args, f"--ckpt_path={ckpt}", log=log) != 0
    text = log.read_text()
    for line in (
        "data.batch_size: 2 -> 1",
        "model.teacher.kind: ema -> base",
        "seed_everything: 1 -> 5",
    ):
        assert line in text
    assert "eval_batch_size" not in text


def test_a_used_run_directory_is_refused_unless_resumed_or_overwritten(tmp_path):
    folder = tmp_path / "run"
    assert settle_run(folder, None, overwrite=False) is None
    folder.mkdir()
    (folder / "config.yaml").touch()
    with pytest.raises(ValueError, match="is used; resume it with --ckpt_path last"):
        settle_run(folder, None, overwrite=False)
    assert settle_run(folder, None, overwrite=True) is None
    assert not folder.exists()


def test_overwriting_spares_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="does not look like a run directory"):
        settle_run(tmp_path, None, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_help_explains_every_option_in_words(tmp_path):
    log = tmp_path / "log"
    assert run("fit", "--model.help=lightning_modules.SDFTModule", log=log) == 0
    text = log.read_text()
    options = [line for line in text.splitlines() if line.strip().startswith("--model.")]
    assert len(options) >= 14
    assert "Peak learning rate" in text


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs").rglob("*.yaml"), key=str))
def test_every_config_parses(config, tmp_path):
    if config.name == "defaults.yaml" or config.parent.name in ("models", "methods", "studies"):
        pytest.skip("a part of other configurations, or a study; both have tests of their own")
    configs = [f"--config={config}"]
    if "class_path" not in (yaml.safe_load(config.read_text()).get("model") or {}):
        configs.insert(0, f"--config={REPOSITORY}/configs/smollm2/quickstart_sdft.yaml")
    log = tmp_path / "log"
    assert run("fit", *configs, "--print_config", log=log) == 0, log.read_text()
    assert "class_path: lightning_modules" in log.read_text()
