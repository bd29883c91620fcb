import json
import signal

import pytest
import torch

from tests.runs import run, write_config


def fit(tmp_path, config, name, *args):
    """Run a sequence in the run directory ``name``; the exit code."""
    return run(
        "fit", f"--config={config}", f"--run_dir={tmp_path / name}",
        "--checkpoint.every_n_steps=1", *args, log=tmp_path / f"{name}.log",
    )  # fmt: skip


def final_state(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def tensors(state, prefix=""):
    """Every tensor inside nested state, by path."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {}
    return {
        path: tensor
        for key, value in items
        for path, tensor in tensors(value, f"{prefix}/{key}").items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = write_config(folder)
    assert fit(folder, config, "run") == 0, (folder / "run.log").read_text()
    return config, folder / "run"


def assert_same_outcome(folder, reference):
    own, expected = (tensors(final_state(path)) for path in (folder, reference))
    assert own.keys() == expected.keys()
    for path, tensor in expected.items():
        assert torch.equal(own[path], tensor), path
    records = [json.loads((path / "retention.json").read_text()) for path in (folder, reference)]
    assert records[0] == records[1]


# Steps 1-3 belong to the first stage, 4-5 to the second.
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_validation_epoch_end", 0),  # before anything is trained
        ("on_train_batch_start", 0),  # no checkpoint yet
        ("on_train_batch_start", 2),  # mid-stage, just behind a checkpoint
        ("on_train_batch_end", 2),  # mid-stage, before the checkpoint of that step
        ("on_train_end", 3),  # before the stage's export and checkpoint
        ("on_validation_start", 3),  # between two stages
        ("on_train_start", 3),  # the second stage's teacher and optimizer are fresh
        ("on_train_batch_start", 4),  # inside the second stage
        ("on_test_start", 5),  # after the last stage
    ],
)
def test_resumed_run_equals_uninterrupted_run(hook, step, uninterrupted, tmp_path):
    config, reference = uninterrupted
    killer = [
        "--trainer.callbacks+=tests.runs.KillAt",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.marker={tmp_path / 'killed'}",
    ]
    log = tmp_path / "run.log"
    assert fit(tmp_path, config, "run", *killer) == -signal.SIGKILL, log.read_text()
    assert fit(tmp_path, config, "run", "--ckpt_path=last") == 0, log.read_text()
    assert_same_outcome(tmp_path / "run", reference)


def test_a_checkpoint_holds_the_teacher_and_it_differs_from_the_student(uninterrupted):
    state = final_state(uninterrupted[1])["state_dict"]
    teacher = {name for name in state if name.startswith("teacher.")}
    assert teacher
    assert any(
        not torch.equal(state[name], state["student." + name.removeprefix("teacher.model.")])
        for name in teacher
    )


def test_a_finished_run_resumes_to_the_same_outcome(uninterrupted, tmp_path):
    config, reference = uninterrupted
    assert fit(tmp_path, config, "run") == 0
    assert fit(tmp_path, config, "run", "--ckpt_path=last") == 0, (tmp_path / "run.log").read_text()
    assert_same_outcome(tmp_path / "run", reference)
