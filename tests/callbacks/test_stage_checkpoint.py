import os

import pytest
import torch

from callbacks import AtomicCheckpointIO, StageCheckpoint
from datamodules.sequencing import read_resume_point
from sdft.runs.checkpoint_files import ResumeError, check_whole, read_counters
from sdft.stages import StagePlan
from tests.lightning_modules.test_modules import sdft, train

PLAN = StagePlan(("a", "b"), (4, 4), num_examples=(4, 4), batch_size=2, seed=0)


def write(path, **content):
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path):
    path = write(tmp_path / "last.ckpt", epoch=1, global_step=2)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        write(path, epoch=2, global_step=4, unwritable=lambda: None)
    assert read_counters(path) == {"epoch": 1, "global_step": 2}


def test_a_checkpoint_appears_whole_under_its_own_name_alone(tmp_path):
    path = write(tmp_path / "new" / "last.ckpt", epoch=0, global_step=1, w=torch.ones(3))
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("epoch", "step", "stage", "in_stage"),
    [(0, 0, 0, False), (0, 1, 0, True), (1, 2, 1, False), (1, 3, 1, True), (2, 4, 2, False)],
)
def test_counters_say_where_a_checkpoint_stands(epoch, step, stage, in_stage, tmp_path):
    point = read_resume_point(write(tmp_path / "c", epoch=epoch, global_step=step), PLAN)
    assert (point.stage, point.in_stage, point.global_step) == (stage, in_stage, step)


@pytest.mark.parametrize(("epoch", "step"), [(3, 6), (0, 3), (1, 1), (1, 5)])
def test_counters_of_another_sequence_are_refused(epoch, step, tmp_path):
    with pytest.raises(ValueError, match="another sequence of tasks"):
        read_resume_point(write(tmp_path / "c", epoch=epoch, global_step=step), PLAN)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(share, tmp_path):
    path = write(tmp_path / "last.ckpt", epoch=0, global_step=1, w=torch.ones(1000))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"last\.ckpt is truncated or not a checkpoint"):
        read_counters(path)


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path):
    path = write(tmp_path / "last.ckpt", epoch=0, global_step=1, w=torch.full((64,), 1.5))
    whole = path.read_bytes()
    start = whole.index(torch.full((64,), 1.5).numpy().tobytes())
    for bit in range(0, 64 * 32, 37):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.unlink()
        path.write_bytes(damaged)
        os.utime(path, ns=(bit, bit))
        with pytest.raises(ResumeError, match=r"last\.ckpt is .*fails its checksum"):
            check_whole(path)
        with pytest.raises(ResumeError, match="fails its checksum"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_a_damaged_checkpoint_names_the_newest_good_one_beside_it(tmp_path):
    write(tmp_path / "stage-1-a.ckpt", epoch=0, global_step=1)
    write(tmp_path / "previous.ckpt", epoch=0, global_step=2)
    (tmp_path / "stage-2-b.ckpt").write_bytes(b"not a checkpoint")
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(ResumeError, match="from it with --ckpt_path previous"):
        read_counters(tmp_path / "last.ckpt")
    (tmp_path / "previous.ckpt").unlink()
    with pytest.raises(ResumeError, match=r"--ckpt_path .*stage-1-a\.ckpt"):
        read_counters(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"last", "previous", "stage-1-one", "stage-2-two"}),
        ({"max_checkpoints": 3}, {"last", "previous", "stage-2-two"}),
        ({"max_checkpoints": 2}, {"last", "previous"}),
        ({"max_checkpoints": 1}, {"last"}),
        ({"keep_stages": False}, {"last", "previous"}),
    ],
)
def test_at_most_so_many_checkpoints_are_kept(options, kept, tmp_path):
    train(sdft(), tmp_path, StageCheckpoint(every_n_steps=1, **options))
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files == {f"{name}.ckpt" for name in kept}
    assert read_counters(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 5
    if "previous" in kept:
        assert read_counters(tmp_path / "checkpoints" / "previous.ckpt")["global_step"] == 4


def test_a_limit_below_one_checkpoint_is_refused():
    with pytest.raises(ValueError, match="max_checkpoints is 0"):
        StageCheckpoint(max_checkpoints=0)


def test_a_file_with_code_inside_is_refused(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"epoch": 0, "global_step": 0, "run": print}, path)
    with pytest.raises(ValueError, match="not a checkpoint"):
        read_counters(path)


def test_an_interval_below_one_step_is_refused():
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        StageCheckpoint(every_n_steps=0)
