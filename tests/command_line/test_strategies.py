"""Whole runs on several processes against one process with the same batches."""

import inspect
import json

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch import strategies
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import ContinualDataModule, fit_sequence
from datamodules.loaders import Share
from lightning_modules import SDFTModule
from sdft.runs.checkpoint_files import ResumeError, check_whole
from tests.child_runs import run, run_ranks, write_config
from tests.conftest import REPOSITORY
from tests.sample_tasks import write_task

FOLDER = REPOSITORY / "configs" / "strategy"
STRATEGIES = ("ddp", "fsdp2")


def fit(folder, config, name, *args, num_ranks=1):
    """Run a sequence in the run directory ``name``; the exit code."""
    args = (
        "fit", f"--config={config}", *args, f"--run_dir={folder / name}",
        "--checkpoint.every_n_steps=1",
    )  # fmt: skip
    log = folder / f"{name}.log"
    return run_ranks(*args, log=log, num_ranks=num_ranks) if num_ranks > 1 else run(*args, log=log)


def ranks_of(strategy, number):
    """Arguments that run a strategy on so many processes."""
    sizes = [f"--trainer.strategy.data_parallel_size={number}"] if strategy == "fsdp2" else []
    return [f"--config={FOLDER}/{strategy}.yaml", *sizes, "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    config = write_config(
        folder, "tests.child_runs.Float64", num_train=5
    )  # the last batch is one row
    assert fit(folder, config, "run") == 0, (folder / "run.log").read_text()
    return config, folder / "run"


def losses(folder):
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.value for event in events.Scalars("train/loss")]


def files(folder):
    """What a run leaves, but for the insides of checkpoints and the names of event files."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return sorted(
        str(path) for path in found if path.parts[0] not in ("checkpoints", "tensorboard")
    )


def assert_same_outcome(found, expected):
    records = [json.loads((folder / "retention.json").read_text()) for folder in (found, expected)]
    assert records[0] == records[1]
    assert files(found) == files(expected)
    assert losses(found) == pytest.approx(losses(expected), abs=1e-6)
    for export in (expected / "exports").iterdir():
        weights = [
            load_file(folder / "exports" / export.name / "model.safetensors")
            for folder in (found, expected)
        ]
        torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


def assert_damage_is_found(folder):
    """One flipped bit of any rank's file, by the process that reads this rank's; then mend it."""
    check_whole(folder)
    shards = sorted(folder.glob("__*"))
    assert [path.name for path in shards] == ["__0_0.distcp", "__1_0.distcp"]
    for rank, path in enumerate(shards):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ResumeError, match=f"{path.name} fails its checksum"):
            check_whole(folder, rank, num_ranks=2)
        check_whole(folder, 1 - rank, num_ranks=2)
        path.unlink()
        with pytest.raises(ResumeError, match=path.name):
            check_whole(folder)
        path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_as_one_with_the_whole_batch(strategy, alone, tmp_path):
    config, expected = alone
    code = fit(tmp_path, config, "run", *ranks_of(strategy, 2), num_ranks=2)
    assert code == 0, (tmp_path / "run.log").read_text()
    assert_same_outcome(tmp_path / "run", expected)


@pytest.mark.slow
def test_two_sharded_processes_train_in_mixed_precision(tmp_path):
    config = write_config(tmp_path, num_train=5)
    precision = [*ranks_of("fsdp2", 2), "--trainer.precision=bf16-mixed"]
    code = fit(tmp_path, config, "run", *precision, num_ranks=2)
    assert code == 0, (tmp_path / "run.log").read_text()
    assert all(0 < loss < float("inf") for loss in losses(tmp_path / "run"))
    exports = sorted((tmp_path / "run" / "exports").iterdir())
    weights = [load_file(export / "model.safetensors") for export in exports]
    assert all(each.dtype == torch.float32 for each in weights[-1].values())
    assert any(not torch.equal(each, weights[-1][name]) for name, each in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_killed_on_two_processes_resumes_on_one(strategy, alone, tmp_path):
    config, expected = alone
    killer = [
        "--trainer.callbacks+=tests.child_runs.KillAt",
        "--trainer.callbacks.hook=on_train_batch_start",
        "--trainer.callbacks.step=2",
        f"--trainer.callbacks.marker={tmp_path / 'killed'}",
    ]
    assert fit(tmp_path, config, "run", *ranks_of(strategy, 2), *killer, num_ranks=2) != 0
    assert (tmp_path / "killed").exists(), (tmp_path / "run.log").read_text()
    if strategy == "fsdp2":
        assert_damage_is_found(tmp_path / "run" / "checkpoints" / "last.ckpt")
    resume = [*ranks_of(strategy, 1), "--trainer.devices=1", "--ckpt_path=last"]
    assert fit(tmp_path, config, "run", *resume) == 0, (tmp_path / "run.log").read_text()
    assert_same_outcome(tmp_path / "run", expected)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("num_rows", range(1, 9))
def test_ranks_take_every_row_of_a_batch_once_and_run_equally_many(num_rows, num_ranks):
    rows = list(range(10, 10 + num_rows))
    shares = [Share(rank, num_ranks).of_batch(rows) for rank in range(num_ranks)]
    own = [
        row for batch, num_padding_rows in shares for row in batch[: len(batch) - num_padding_rows]
    ]
    assert sorted(own) == rows
    assert len({len(batch) for batch, _ in shares}) == 1
    assert {row for batch, _ in shares for row in batch} == set(rows)


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_every_row_is_evaluated_by_one_rank(num_rows):
    rows = range(num_rows)
    shares = [Share(rank, 3).of_rows(rows) for rank in range(3)]
    assert sorted(row for share in shares for row in share) == list(rows)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_strategies_fit_their_number_of_processes(file):
    options = yaml.safe_load(file.read_text(encoding="utf-8"))["trainer"]
    assert set(options) <= set(inspect.signature(L.Trainer).parameters)
    sizes = options["strategy"]["init_args"]
    getattr(strategies, options["strategy"]["class_path"].rpartition(".")[2])(**sizes)
    if "data_parallel_size" in sizes:
        num_processes = options.get("num_nodes", 1) * options["devices"]
        assert sizes["data_parallel_size"] * sizes["tensor_parallel_size"] == num_processes


def trainer_of(rank, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    return L.Trainer(accelerator="cpu", strategy="ddp", devices=2, logger=False)


def test_a_row_has_the_same_sampling_noise_on_any_number_of_ranks(monkeypatch):
    module = SDFTModule(pretrained="tiny-random")
    module.trainer = L.Trainer(accelerator="cpu", logger=False)
    expected = module.rollout_seeds(4)
    assert len(set(expected)) == 4
    for rank in range(2):
        module.trainer = trainer_of(rank, monkeypatch)
        assert module.rollout_seeds(2) == expected[rank::2]


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(tmp_path, tiny, monkeypatch):
    data = ContinualDataModule([write_task(tmp_path, "one")], tiny.tokenizer, batch_size=3)
    module = SDFTModule(pretrained="tiny-random")
    with pytest.raises(ValueError, match=r"data\.batch_size is 3.*multiple of 2"):
        fit_sequence(trainer_of(0, monkeypatch), module, data)
