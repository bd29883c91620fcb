"""Whole runs on two processes against one process with the same batches."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import run, run_ranks, write_config


def fit(folder, config, name, *args, launch=run):
    """Run a sequence in the run directory ``name``; its folder."""
    log = folder / f"{name}.log"
    code = launch(
        "fit", f"--config={config}", f"--run_dir={folder / name}",
        "--checkpoint.every_n_steps=1", *args, log=log,
    )  # fmt: skip
    assert code == 0, log.read_text()
    return folder / name


def losses(folder):
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.value for event in events.Scalars("train/loss")]


def final_weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def retention(folder):
    return json.loads((folder / "retention.json").read_text())


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    # Greedy rollouts, since sampling noise differs by rank; the last batch of five rows is one row.
    config = write_config(tmp_path, "tests.runs.Float64", num_train=5, temperature=0.0)
    alone = fit(tmp_path, config, "alone")
    ranks = fit(tmp_path, config, "ranks", "--trainer.strategy=ddp", launch=run_ranks)
    assert losses(ranks) == pytest.approx(losses(alone), abs=1e-6)
    torch.testing.assert_close(final_weights(ranks), final_weights(alone), atol=1e-6, rtol=0)
    assert retention(ranks) == retention(alone)
