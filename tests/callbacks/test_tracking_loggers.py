"""Whole runs into the trackers of docs/loggers.md, without a network."""

import json
import sqlite3
import sys

import pytest

from callbacks import TrackioLogger
from tests.child_runs import run, write_config
from tests.conftest import REPOSITORY

LOGGERS = REPOSITORY / "configs" / "loggers"


def track(tmp_path, tracker, *options):
    """Run two short stages into a tracker, from the temporary folder; the run's folder."""
    pytest.importorskip(tracker)
    log, folder = tmp_path / "log", tmp_path / "run"
    configs = [f"--config={write_config(tmp_path)}", f"--config={LOGGERS / tracker}.yaml"]
    shown = ["--rollouts.every_n_steps=1", f"--run_dir={folder}", *options]
    assert run("fit", *configs, *shown, log=log) == 0, log.read_text()
    return folder


@pytest.mark.slow
def test_weights_and_biases_gets_figures_and_rollouts_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = track(tmp_path, "wandb")
    (media,) = folder.glob("wandb/offline-run-*/files/media")
    assert list(media.rglob("matrix*.png"))
    (table, *_) = sorted(media.rglob("*.table.json"))
    assert json.loads(table.read_text())["data"]


@pytest.mark.slow
def test_mlflow_gets_scalars_figures_and_rollouts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    track(tmp_path, "mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        names = {name for (name,) in database.execute("select distinct key from metrics")}
        steps = database.execute(
            "select step from metrics where key = 'accuracy/two' order by step"
        ).fetchall()
    assert {"train/loss", "accuracy/one", "retention/average_accuracy", "stages_done"} <= names
    assert [step for (step,) in steps] == [0, 3, 5]
    assert len(list(tmp_path.glob("mlruns/*/*/artifacts/retention/matrix-*.png"))) == 3
    assert list(tmp_path.glob("mlruns/*/*/artifacts/**/*.md"))


@pytest.mark.slow
def test_trackio_gets_scalars_and_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is first imported
    folder = pytest.importorskip("trackio").utils.TRACKIO_DIR
    name = f"run-{tmp_path.name}"
    track(tmp_path, "trackio", "--trainer.logger.init_args.run_name", name)
    with sqlite3.connect(folder / "sdft.db") as database:
        rows = database.execute("select metrics from metrics where run_name = ?", [name])
        logged = [json.loads(text) for (text,) in rows]
    keys = {key for each in logged for key in each}
    assert {"train/loss", "accuracy/one", "retention/average_accuracy", "retention/matrix"} <= keys


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"TrackioLogger: .*pip install trackio"):
        TrackioLogger()
