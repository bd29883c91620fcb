import csv

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import RolloutText, SettingsRecord
from datamodules import fit_sequence
from tests.datamodules.test_sequencing import setting


class PictureLogger(Logger):
    """One that takes figures and texts as Weights & Biases does, and keeps what it is given."""

    name, version = "pictures", 0

    def __init__(self):
        self.metrics, self.images, self.texts, self.settings = [], [], [], []

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params, *_):
        self.settings.append(params)

    def log_image(self, key, images, step=None):
        self.images += [(key, step, type(image)) for image in images]

    def log_text(self, key, columns, data):
        self.texts.append((key, columns, data))


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The folder of a run of two stages, of 3 and 2 steps, with three loggers at once."""
    folder = tmp_path_factory.mktemp("logged")
    pictures = PictureLogger()
    loggers = [
        TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        CSVLogger(folder, name="csv"),
        pictures,
    ]
    record = SettingsRecord({"seed_everything": 1, "data.tasks": ["one", "two"]})
    callbacks = (RolloutText(every_n_steps=1, num_rows=2), record)
    fit_sequence(*setting(folder, *callbacks, logger=loggers, log_every_n_steps=1))
    events = EventAccumulator(str(folder))
    events.Reload()
    with (folder / "csv" / "version_0" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return events, rows, pictures


def points(rows, name):
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]


def test_accuracies_reach_every_logger(logged):
    events, rows, pictures = logged
    assert [event.step for event in events.Scalars("accuracy/two")] == [0, 1, 2]  # stages done
    assert [step for step, _ in points(rows, "accuracy/two")] == [0, 3, 5]  # optimizer steps
    assert [done for _, done in points(rows, "stages_done")] == [0, 1, 2]
    values = [each.get("accuracy/two") for _, each in pictures.metrics]
    assert [value for value in values if value is not None] == [
        event.value for event in events.Scalars("accuracy/two")
    ]


def test_losses_and_gradient_norms_reach_every_logger(logged):
    events, rows, pictures = logged
    for name in ("train/loss", "train/gradient_norm"):
        values = [event.value for event in events.Scalars(name)]
        assert len(values) == 5
        assert [value for _, value in points(rows, name)] == pytest.approx(values)
        assert [metrics[name] for _, metrics in pictures.metrics if name in metrics] == (
            pytest.approx(values)
        )


def test_figures_and_rollouts_reach_every_logger_that_takes_them(logged):
    events, _, pictures = logged
    assert set(events.Tags()["images"]) == {"retention/curves", "retention/matrix"}
    assert pictures.images == [
        (key, step, Figure)
        for step in (0, 3, 5)
        for key in ("retention/curves", "retention/matrix")
    ]
    assert "rollouts/text_summary" in events.Tags()["tensors"]
    assert len(pictures.texts) == 5
    key, columns, data = pictures.texts[0]
    assert key == "rollouts"
    assert all(len(row) == len(columns) for row in data)
    assert len(data) == 2
    for prompt, demonstration, _, teacher in data:
        assert f"{prompt}" in teacher
        assert demonstration in teacher


def test_hyperparameters_are_logged_with_the_outcome(logged):
    events, _, pictures = logged
    assert pictures.settings[0]["seed_everything"] == 1
    assert len(events.Scalars("hp/average_accuracy")) == 1
