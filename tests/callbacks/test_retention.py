import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.data import DataLoader

from callbacks.retention_tracker import RetentionTracker
from sdft.stages import StagePlan

TASKS = ("a", "b.1", "c")
ROWS = [[0.1, 0.2, 0.0], [0.8, 0.3, 0.1], [0.85, 0.9, 0.2], [0.5, 0.7, 0.6]]


class Scripted(L.LightningModule):
    """Trains two weights on noise and publishes the accuracies of a script, by stage."""

    method_name = "scripted"
    model_name = "linear"

    def __init__(self, script=ROWS):
        super().__init__()
        self.script = script
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.layer(batch)

    test_step = validation_step

    def on_validation_epoch_end(self):
        self.publish("accuracy", self.script[self.trainer.datamodule.num_stages_done or 0])

    def on_test_epoch_end(self):
        self.publish("test_accuracy", self.script[-1])

    def publish(self, prefix, accuracies):
        for task, accuracy in zip(TASKS, accuracies, strict=True):
            if accuracy is not None:
                self.log(f"{prefix}/{task}", accuracy, logger=False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Noise(L.LightningDataModule):
    def __init__(self, tasks=TASKS):
        super().__init__()
        counts = (2,) * len(tasks)
        self.plan = StagePlan(tasks, num_rows=counts, num_examples=counts, batch_size=1, seed=0)
        self.num_stages_done = None

    def train_dataloader(self):
        return DataLoader(torch.randn(2, 1), batch_size=1)

    val_dataloader = test_dataloader = train_dataloader


def make_trainer(folder, *, tensorboard=False, sanity_steps=0):
    logger = TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    return L.Trainer(
        default_root_dir=folder,
        logger=logger if tensorboard else False,
        callbacks=[RetentionTracker()],
        num_sanity_val_steps=sanity_steps,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


def tracker(trainer):
    return next(item for item in trainer.callbacks if isinstance(item, RetentionTracker))


def evaluate(trainer, module, data, num_stages_done):
    data.num_stages_done = num_stages_done
    trainer.validate(module, datamodule=data, verbose=False)


def run_stages(trainer, module, data, first, last, ckpt_path=None):
    """Train stages ``first`` to ``last`` - 1, evaluating after each."""
    for stage in range(first, last):
        trainer.fit_loop.max_epochs = stage + 1
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path if stage == first else None)
        evaluate(trainer, module, data, stage + 1)


def run_sequence(folder, script=ROWS, num_stages=3, tensorboard=False):
    trainer = make_trainer(folder, tensorboard=tensorboard)
    module, data = Scripted(script), Noise()
    evaluate(trainer, module, data, 0)
    run_stages(trainer, module, data, 0, num_stages)
    return trainer, module, data


def read(folder):
    return json.loads((folder / "retention.json").read_text())


def events(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def points(accumulator, tag):
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three stages, and its tracker before the test rows are scored."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_sequence(folder, tensorboard=True)


def test_one_row_before_training_and_one_after_every_stage(finished):
    record = read(finished[0])
    assert [row["stage"] for row in record["rows"]] == [0, 1, 2, 3]
    assert [row["after"] for row in record["rows"]] == [None, *TASKS]
    assert [row["global_step"] for row in record["rows"]] == [0, 2, 4, 6]
    assert [list(row["accuracy"].values()) for row in record["rows"]] == ROWS


def test_retention_json_has_the_documented_keys_and_the_worked_numbers(finished):
    record = read(finished[0])
    assert record.pop("definitions").keys() >= {"forgetting", "backward_transfer"}
    del record["rows"]
    assert record == {
        "method": "scripted",
        "model": "linear",
        "tasks": list(TASKS),
        "average_accuracy": 0.6,
        "learning_accuracy": {"a": 0.8, "b.1": 0.9, "c": 0.6},
        "forgetting": {"a": 0.35, "b.1": 0.2, "c": None},
        "backward_transfer": -0.25,
        "forward_transfer": 0.15,
        "test": None,
    }


def test_retention_png_is_there_and_no_temporary_file(finished):
    assert (finished[0] / "retention.png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished[0].glob(".*"))


def test_tensorboard_has_every_accuracy_at_its_stage_and_nothing_else(finished):
    log = events(finished[0])
    for index, task in enumerate(TASKS):
        expected = [(stage, row[index]) for stage, row in enumerate(ROWS)]
        assert points(log, f"accuracy/{task}") == expected


def test_tensorboard_has_forgetting_only_from_the_stage_after_a_tasks_own(finished):
    log = events(finished[0])
    assert points(log, "forgetting/a") == [(2, -0.05), (3, 0.35)]
    assert points(log, "forgetting/b.1") == [(3, 0.2)]
    assert "forgetting/c" not in log.Tags()["scalars"]


def test_tensorboard_has_the_summaries_once_they_are_known(finished):
    log = events(finished[0])
    averages = [(stage, sum(row) / 3) for stage, row in enumerate(ROWS)]
    assert points(log, "retention/average_accuracy") == averages
    assert points(log, "retention/backward_transfer") == [(2, 0.05), (3, -0.25)]
    assert points(log, "retention/forward_transfer") == [(1, 0.1), (2, 0.15), (3, 0.15)]


def test_tensorboard_has_both_figures_of_every_row(finished):
    log = events(finished[0])
    assert set(log.Tags()["images"]) == {"retention/curves", "retention/matrix"}
    assert log.Images("retention/curves")[-1].step == 3


def test_tensorboard_overlays_the_tasks_by_one_layout(finished):
    written = events(finished[0]).Tensors("custom_scalars__config__")
    assert len(written) == 1
    layout = layout_pb2.Layout.FromString(written[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts == {
        "accuracy": ["^accuracy/a$", r"^accuracy/b\.1$", "^accuracy/c$"],
        "forgetting": ["^forgetting/a$", r"^forgetting/b\.1$"],
    }


def test_the_table_shows_the_rows(finished):
    lines = tracker(finished[1][0]).table().splitlines()
    assert len(lines) == 5
    assert lines[-1].split() == ["after", "c", "50.0", "70.0", "60.0", "60.0"]


def test_test_rows_join_the_file_and_the_table(tmp_path):
    trainer, module, data = run_sequence(tmp_path, num_stages=1)
    before = read(tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    accuracy = dict(zip(TASKS, ROWS[-1], strict=True))
    assert read(tmp_path) == {**before, "test": {"accuracy": accuracy, "global_step": 2}}
    assert tracker(trainer).table().splitlines()[-1].startswith("test rows")
    run_stages(trainer, module, data, 1, 2)
    assert read(tmp_path)["test"] is None, "the test rows were scored with older weights"


def test_a_run_resumed_in_a_new_process_has_the_rows_of_an_uninterrupted_one(finished, tmp_path):
    trainer, _, _ = run_sequence(tmp_path, num_stages=2, tensorboard=True)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, module, data = make_trainer(tmp_path, tensorboard=True), Scripted(), Noise()
    run_stages(resumed, module, data, 2, 3, tmp_path / "last.ckpt")
    assert read(tmp_path) == read(finished[0])
    assert [step for step, _ in points(events(tmp_path), "accuracy/a")] == [0, 1, 2, 3]


def test_a_checkpoint_with_the_rows_loads_without_pickled_code(tmp_path):
    trainer, _, _ = run_sequence(tmp_path, num_stages=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["RetentionTracker"]["rows"] == read(tmp_path)["rows"]


def test_going_back_to_an_earlier_checkpoint_drops_the_later_rows(tmp_path):
    trainer, _, _ = run_sequence(tmp_path, num_stages=1)
    trainer.save_checkpoint(tmp_path / "early.ckpt")
    run_stages(trainer, Scripted(), Noise(), 1, 3)
    changed = [row[::-1] for row in ROWS]
    resumed, module, data = make_trainer(tmp_path), Scripted(changed), Noise()
    run_stages(resumed, module, data, 1, 2, tmp_path / "early.ckpt")
    measured = [list(row["accuracy"].values()) for row in read(tmp_path)["rows"]]
    assert measured == [ROWS[0], ROWS[1], changed[2]]


def test_measuring_a_stage_again_replaces_its_row(tmp_path):
    trainer, module, data = run_sequence(tmp_path, num_stages=2)
    module.script = [row[::-1] for row in ROWS]
    evaluate(trainer, module, data, 1)
    measured = [list(row["accuracy"].values()) for row in read(tmp_path)["rows"]]
    assert measured == [ROWS[0], ROWS[1][::-1]]


def test_a_run_resumed_in_a_new_folder_shows_all_rows_there(tmp_path):
    trainer, _, _ = run_sequence(tmp_path / "old", num_stages=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, module, data = make_trainer(tmp_path / "new", tensorboard=True), Scripted(), Noise()
    run_stages(resumed, module, data, 2, 3, tmp_path / "last.ckpt")
    log = events(tmp_path / "new")
    assert points(log, "accuracy/a") == [(stage, row[0]) for stage, row in enumerate(ROWS)]
    assert points(log, "forgetting/a") == [(2, -0.05), (3, 0.35)]


def test_validation_inside_of_fit_adds_no_row(tmp_path):
    trainer, module, data = make_trainer(tmp_path, sanity_steps=1), Scripted(), Noise()
    data.num_stages_done = 0
    trainer.fit_loop.max_epochs = 1
    trainer.fit(module, datamodule=data)
    assert tracker(trainer).rows == []
    assert not (tmp_path / "retention.json").exists()


def test_evaluations_outside_of_a_sequence_leave_the_files_alone(tmp_path):
    run_sequence(tmp_path, num_stages=1)
    before = (tmp_path / "retention.json").read_bytes()
    trainer, module, data = make_trainer(tmp_path), Scripted(), Noise()
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert (tmp_path / "retention.json").read_bytes() == before


def test_what_was_not_measured_is_null_and_leaves_no_point(tmp_path):
    script = [[0.1, None, math.nan], *ROWS[1:]]
    run_sequence(tmp_path, script, num_stages=1, tensorboard=True)
    record = read(tmp_path)
    assert list(record["rows"][0]["accuracy"].values()) == [0.1, None, None]
    assert record["forward_transfer"] is None
    assert points(events(tmp_path), "accuracy/b.1") == [(1, 0.3)]


def test_a_module_that_publishes_nothing_is_named(tmp_path):
    trainer, module, data = make_trainer(tmp_path), Scripted([[None] * 3]), Noise()
    with pytest.raises(ValueError, match=r"logged accuracy/<task> for none of .*'b\.1'"):
        evaluate(trainer, module, data, 0)


def test_a_percentage_is_refused(tmp_path):
    trainer, module, data = make_trainer(tmp_path), Scripted([[71.0, 0.0, 0.0]]), Noise()
    with pytest.raises(ValueError, match=r"is 71\.0; give a fraction"):
        evaluate(trainer, module, data, 0)


def test_a_checkpoint_of_another_sequence_is_refused(tmp_path):
    trainer, _, _ = run_sequence(tmp_path, num_stages=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, module, data = make_trainer(tmp_path), Scripted(), Noise(TASKS[::-1])
    with pytest.raises(ValueError, match="measured for another sequence"):
        run_stages(resumed, module, data, 1, 2, tmp_path / "last.ckpt")


def test_data_without_a_sequence_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(TypeError, match="needs a data module with plan and num_stages_done"):
        trainer.validate(Scripted(), DataLoader(torch.randn(2, 1)), verbose=False)
