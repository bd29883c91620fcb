import json
import time
from datetime import timedelta

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import RetentionTracker, StageCheckpoint, StageExport
from datamodules import ContinualDataModule, fit_sequence
from lightning_modules import SDFTModule, SFTModule
from sdft.runs.checkpoint_files import ResumeError
from sdft.runs.failures import StoppedEarly
from tests.sample_tasks import write_task

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class At(L.Callback):
    """Calls something at a hook of a global step."""

    def __init__(self, hook, step, act):
        setattr(self, hook, lambda trainer, *_: trainer.global_step == step and act(trainer))


def stop(trainer):
    trainer.should_stop = True


def setting(folder, *callbacks, kind=SDFTModule, pretrained="tiny-random", data=None, **flags):
    """A trainer, a module and two tasks of 3 and 2 steps."""
    specs = [write_task(folder, name, num_train=num) for name, num in (("one", 6), ("two", 4))]
    module = kind(pretrained=str(pretrained), learning_rate=1e-2, warmup_steps=0, max_new_tokens=6)
    options = {"batch_size": 2, "teacher_template": "dialogue", **(data or {})}
    data = ContinualDataModule(specs, module.tokenizer, **options)
    own = {"accelerator": "cpu", "default_root_dir": folder / "run", **QUIET, **flags}
    return L.Trainer(callbacks=[RetentionTracker(), *callbacks], **own), module, data


def rows(folder):
    record = json.loads((folder / "run" / "retention.json").read_text())
    return [row["after"] for row in record["rows"]], record


def last(folder):
    return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit_sequence(*setting(folder, StageCheckpoint()))
    return last(folder)["state_dict"], rows(folder)[1]


def assert_same_outcome(folder, uninterrupted):
    weights, record = uninterrupted
    own = last(folder)["state_dict"]
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    assert rows(folder)[1] == record


def test_plain_fit_is_refused_with_the_line_to_write_instead(tmp_path):
    trainer, module, data = setting(tmp_path)
    with pytest.raises(RuntimeError, match=r"fit_sequence\(trainer, module, data\)"):
        trainer.fit(module, datamodule=data)
    fit_sequence(trainer, module, data)  # the same objects are good for the line it named
    assert rows(tmp_path)[0] == [None, "one", "two"]


def test_an_evaluation_after_the_sequence_leaves_its_results_alone(tmp_path):
    trainer, module, data = setting(tmp_path)
    fit_sequence(trainer, module, data)
    before = rows(tmp_path)[1]
    trainer.validate(module, datamodule=data, verbose=False)
    assert rows(tmp_path)[1] == before
    assert trainer.max_epochs is None


@pytest.mark.parametrize(
    ("hook", "step", "saved"),
    [
        ("on_train_batch_start", 0, 1),  # the step in progress is finished
        ("on_train_batch_end", 2, 2),
        ("on_train_batch_end", 4, 4),
    ],
)
def test_a_stopped_stage_is_saved_and_has_no_row(hook, step, saved, uninterrupted, tmp_path):
    stage, name = (0, "one") if saved < 3 else (1, "two")
    trainer, module, data = setting(tmp_path, At(hook, step, stop), StageCheckpoint())
    taken = saved - data.plan.first_step(stage)
    where = f"stage {stage + 1}, {name}, after {taken} of its {data.plan.steps_in_stage(stage)}"
    with pytest.raises(StoppedEarly, match=f"{where} steps; resume with ckpt_path last: "):
        fit_sequence(trainer, module, data)
    assert rows(tmp_path)[0] == [None, "one"][: stage + 1]
    assert "test" not in rows(tmp_path)[1] or not rows(tmp_path)[1]["test"]
    assert last(tmp_path)["global_step"] == saved
    fit_sequence(*setting(tmp_path, StageCheckpoint()), ckpt_path="last")
    assert_same_outcome(tmp_path, uninterrupted)


def test_a_stop_at_a_stages_end_keeps_the_finished_stages_row(uninterrupted, tmp_path):
    with pytest.raises(StoppedEarly, match="between stages 1 and 2; resume with ckpt_path last"):
        fit_sequence(*setting(tmp_path, At("on_train_epoch_end", 3, stop), StageCheckpoint()))
    assert rows(tmp_path)[0] == [None, "one"]
    fit_sequence(*setting(tmp_path, StageCheckpoint()), ckpt_path="auto")
    assert_same_outcome(tmp_path, uninterrupted)


def test_without_a_checkpoint_callback_a_stop_says_that_nothing_was_saved(tmp_path):
    flags = {"enable_checkpointing": False}
    with pytest.raises(StoppedEarly, match="nothing was saved"):
        fit_sequence(*setting(tmp_path, At("on_train_batch_end", 1, stop), **flags))


def test_max_time_ends_the_run_and_asks_for_more_of_it(tmp_path):
    nap = At("on_train_batch_end", 1, lambda _: time.sleep(0.3))
    flags = {"max_time": timedelta(seconds=0.3)}
    with pytest.raises(StoppedEarly, match=r"trainer\.max_time.* and a larger trainer\.max_time"):
        fit_sequence(*setting(tmp_path, nap, StageCheckpoint(), **flags))
    assert rows(tmp_path)[0] == [None]


def test_max_time_counts_the_training_of_all_stages(tmp_path):
    naps = [At("on_train_batch_end", step, lambda _: time.sleep(0.1)) for step in (1, 2, 4)]
    trainer, module, data = setting(tmp_path, *naps, max_time=timedelta(hours=1))
    fit_sequence(trainer, module, data)
    [timer] = [each for each in trainer.callbacks if isinstance(each, L.pytorch.callbacks.Timer)]
    assert timer.time_elapsed() >= 0.3


def test_fast_dev_run_takes_one_step_in_every_stage(tmp_path):
    trainer, module, data = setting(tmp_path, fast_dev_run=True)
    fit_sequence(trainer, module, data)
    assert trainer.global_step == 2
    assert rows(tmp_path)[0] == [None, "one", "two"]


def test_lightnings_own_checkpoint_resumes_too(uninterrupted, tmp_path):
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{step}", save_top_k=-1)
    fit_sequence(*setting(tmp_path / "first", own))
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [
        "step=3.ckpt",
        "step=5.ckpt",
    ]
    resumed = setting(tmp_path, StageCheckpoint())
    fit_sequence(*resumed, ckpt_path=tmp_path / "own" / "step=3.ckpt")
    assert_same_outcome(tmp_path, uninterrupted)


def test_last_without_a_checkpoint_is_refused_and_auto_starts(tmp_path):
    with pytest.raises(ResumeError, match="nothing to resume"):
        fit_sequence(*setting(tmp_path), ckpt_path="last")
    fit_sequence(*setting(tmp_path), ckpt_path="auto")
    assert rows(tmp_path)[0] == [None, "one", "two"]


def test_a_checkpoint_loads_as_a_module_without_a_trainer(tmp_path):
    trainer, module, data = setting(tmp_path, StageCheckpoint())
    fit_sequence(trainer, module, data)
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    loaded = SDFTModule.load_from_checkpoint(file, pretrained="tiny-random", weights_only=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("step", [None, 1], ids=["whole", "resumed"])
def test_a_run_after_trained_tasks_equals_the_rest_of_the_whole_sequence(step, tmp_path):
    replay = {"replay_fraction": 0.5}
    recorders = StageCheckpoint(), StageExport()
    fit_sequence(*setting(tmp_path, *recorders, kind=SFTModule, data=replay))
    weights, record = last(tmp_path)["state_dict"], rows(tmp_path)[1]
    (tmp_path / "run").rename(tmp_path / "whole")
    own = {
        "kind": SFTModule,
        "pretrained": tmp_path / "whole" / "exports" / "stage-1-one",
        "data": {**replay, "num_trained_tasks": 1},
    }
    if step is not None:
        with pytest.raises(StoppedEarly, match="in stage 2, two, after 1 of its 2 steps"):
            fit_sequence(
                *setting(tmp_path, At("on_train_batch_end", step, stop), StageCheckpoint(), **own)
            )
    trainer, module, data = setting(tmp_path, StageCheckpoint(), **own)
    fit_sequence(trainer, module, data, ckpt_path="auto")
    assert trainer.global_step == 2
    found = last(tmp_path)["state_dict"]
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    after, again = rows(tmp_path)
    assert after == ["one", "two"]
    for row, expected in zip(again["rows"], record["rows"][1:], strict=True):
        assert row["accuracy"] == expected["accuracy"]
    assert again["learning_accuracy"] == record["learning_accuracy"]
    assert again["backward_transfer"] == record["backward_transfer"]


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_of_trained_tasks_that_leaves_none_is_refused(number, tmp_path):
    with pytest.raises(ValueError, match=rf"num_trained_tasks is {number}, and there are 2 tasks"):
        setting(tmp_path, data={"num_trained_tasks": number})
