import json
import shutil
import signal

import pytest
import torch
import yaml

from tests.child_runs import run, write_config


def fit(tmp_path, config, name, *args):
    """Run a sequence in the run directory ``name``; the exit code."""
    return run(
        "fit", f"--config={config}", f"--run_dir={tmp_path / name}",
        "--checkpoint.every_n_steps=1", *args, log=tmp_path / f"{name}.log",
    )  # fmt: skip


def kill_at(tmp_path, hook, step, number=signal.SIGKILL):
    """Options of a run that gets a signal at a hook of a step."""
    return [
        "--trainer.callbacks+=tests.child_runs.KillAt",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.marker={tmp_path / 'killed'}",
        f"--trainer.callbacks.number={int(number)}",
    ]


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
    killer = kill_at(tmp_path, hook, step)
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


@pytest.mark.parametrize(
    ("number", "code", "hook", "step", "saved"),
    [
        (signal.SIGTERM, 143, "on_train_batch_start", 1, 2),  # the step is finished
        (signal.SIGINT, 130, "on_train_batch_start", 3, 4),
        (signal.SIGTERM, 143, "on_train_batch_start", 2, 3),  # the stage's last: its end is too
        (signal.SIGINT, 130, "on_validation_batch_start", 3, 3),  # an evaluation is given up
    ],
)
def test_a_signal_ends_the_run_in_order(number, code, hook, step, saved, uninterrupted, tmp_path):
    config, reference = uninterrupted
    signalled = [*kill_at(tmp_path, hook, step, number), "--checkpoint.every_n_steps=50"]
    log = tmp_path / "run.log"
    assert fit(tmp_path, config, "run", *signalled) == code, log.read_text()
    text = log.read_text()
    assert f"stopped by {number.name} after step {saved}; the same command with --ckpt_path" in text
    assert final_state(tmp_path / "run")["global_step"] == saved
    assert fit(tmp_path, config, "run", "--ckpt_path=last") == 0, log.read_text()
    assert_same_outcome(tmp_path / "run", reference)


def test_a_run_stopped_before_its_first_step_says_that_it_starts_again(uninterrupted, tmp_path):
    config, reference = uninterrupted
    signalled = kill_at(tmp_path, "on_validation_batch_start", 0, signal.SIGTERM)
    log = tmp_path / "run.log"
    assert fit(tmp_path, config, "run", *signalled) == 143, log.read_text()
    said = "after step 0; there is nothing to save yet; the same command with --ckpt_path auto"
    assert said in log.read_text()
    assert fit(tmp_path, config, "run", "--ckpt_path=auto") == 0, log.read_text()
    assert_same_outcome(tmp_path / "run", reference)


def test_a_slurm_job_out_of_time_is_requeued_and_goes_on(uninterrupted, tmp_path, monkeypatch):
    config, reference = uninterrupted
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path / 'asked'}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    command = (*kill_at(tmp_path, "on_train_batch_start", 1, signal.SIGUSR1), "--ckpt_path=auto")
    log = tmp_path / "run.log"
    assert fit(tmp_path, config, "run", *command) == 128 + signal.SIGUSR1, log.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert fit(tmp_path, config, "run", *command) == 0, log.read_text()
    assert_same_outcome(tmp_path / "run", reference)


def test_a_corrupted_checkpoint_is_named_and_the_previous_one_used_on_request(
    uninterrupted, tmp_path
):
    config, reference = uninterrupted
    shutil.copytree(reference, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    log = tmp_path / "run.log"
    assert fit(tmp_path, config, "run", "--ckpt_path=last") != 0
    text = log.read_text()
    assert f"{last} is truncated or not a checkpoint (the record" in text
    assert "resume from it with --ckpt_path" in text
    assert fit(tmp_path, config, "run", "--ckpt_path=previous") == 0, log.read_text()
    assert_same_outcome(tmp_path / "run", reference)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(uninterrupted, tmp_path):
    config, reference = uninterrupted
    half = (reference / "checkpoints" / "last.ckpt").stat().st_size // 2
    full = ["--trainer.callbacks+=tests.child_runs.SmallDisk"]
    full += ["--trainer.callbacks.step=1", f"--trainer.callbacks.num_bytes={half}"]
    log = tmp_path / "run.log"
    assert fit(tmp_path, config, "run", *full) == 1
    assert f"the disk of {tmp_path / 'run'} is full" in log.read_text()
    assert final_state(tmp_path / "run")["global_step"] == 1
    assert fit(tmp_path, config, "run", "--ckpt_path=last") == 0, log.read_text()
    assert_same_outcome(tmp_path / "run", reference)


def test_changed_rows_are_refused(uninterrupted, tmp_path):
    config, reference = uninterrupted
    (folder := tmp_path / "tasks").mkdir()
    shutil.copytree(config.parent / "one", folder / "one")
    shutil.copytree(config.parent / "two", folder / "two")
    train = folder / "two" / "train.jsonl"
    train.write_text(train.read_text().replace("two train 1?", "two train one?"))
    moved = yaml.safe_load(config.read_text())
    for task in moved["data"]["tasks"]:
        task["path"] = str(folder / task["name"])
    (tmp_path / "moved.yaml").write_text(yaml.safe_dump(moved))
    last = f"--ckpt_path={reference / 'checkpoints' / 'last.ckpt'}"
    assert fit(tmp_path, tmp_path / "moved.yaml", "run", last) != 0
    text = (tmp_path / "run.log").read_text()
    assert "two.train: " in text
    assert "one.train" not in text


@pytest.mark.slow
def test_a_lean_run_resumes_to_the_same_weights(tmp_path):
    config = write_config(tmp_path, memory="lean")
    assert fit(tmp_path, config, "whole") == 0, (tmp_path / "whole.log").read_text()
    killer = kill_at(tmp_path, "on_train_batch_start", 2)
    assert fit(tmp_path, config, "run", *killer) == -signal.SIGKILL
    assert fit(tmp_path, config, "run", "--ckpt_path=last") == 0, (tmp_path / "run.log").read_text()
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")
    state = final_state(tmp_path / "whole")
    held = {each.dtype for name, each in tensors(state).items() if "exp_avg" in name}
    assert held == {torch.uint8, torch.float32}
    assert {each.dtype for each in state["state_dict"].values()} == {torch.bfloat16}
