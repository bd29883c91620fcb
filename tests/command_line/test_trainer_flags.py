import inspect
import json
import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar

from callbacks import StageCheckpoint
from datamodules import fit_sequence
from datamodules.trainer_flags import REFUSED, check_flags, flag_of
from sdft.runs.failures import UsageError
from tests.child_runs import run, write_config
from tests.conftest import REPOSITORY
from tests.datamodules.test_sequencing import rows, setting

PAGE = (REPOSITORY / "docs" / "lightning.md").read_text()
ROW = re.compile(
    r"^\| `(\w+)` \| (honoured|refused|no effect) \| `([^`]+)` \|(.*)\|$", re.MULTILINE
)
TABLE = {name: (here, json.loads(value), text) for name, here, value, text in ROW.findall(PAGE)}
REFUSING = [name for name, (here, _, _) in TABLE.items() if here == "refused"]
OTHERS = [name for name in TABLE if name not in REFUSING]


@pytest.fixture(autouse=True)
def _torch_as_before():
    """The Trainer sets torch's own switches."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def check(**flags):
    trainer = L.Trainer(**{"accelerator": "cpu", "logger": False, **flags})
    check_flags(lambda flag: flag_of(trainer, flag))


def test_the_table_has_every_flag_of_the_trainer():
    assert TABLE.keys() == inspect.signature(L.Trainer).parameters.keys()


def test_what_the_table_calls_refused_is_what_the_code_refuses():
    partly = {"precision", "strategy"}
    assert set(REFUSING) == REFUSED.keys() - partly


@pytest.mark.parametrize("flag", REFUSING)
def test_a_refused_flag_is_named_with_its_value_and_what_to_use_instead(flag):
    value = TABLE[flag][1]
    with pytest.raises(UsageError, match=rf"^trainer\.{flag} is {value}; (set|leave) ") as refused:
        check(**({} if flag == "barebones" else {"enable_checkpointing": False}), **{flag: value})
    for option in re.findall(r"`([\w.]+)`", TABLE[flag][2].split(",")[0]):
        assert option in str(refused.value)


@pytest.mark.parametrize("flag", OTHERS)
def test_an_honoured_flag_passes(flag):
    check(**{flag: TABLE[flag][1]})


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16-mixed", "64-true"])
def test_other_precisions_are_refused_by_name(precision):
    with pytest.raises(UsageError, match=rf"trainer\.precision is {precision}; set 32-true or"):
        check_flags(lambda flag: precision if flag == "precision" else REFUSED[flag][0][0])


def test_strategies_whose_processes_end_with_each_fit_are_refused():
    with pytest.raises(UsageError, match=r"trainer\.strategy is ddp_spawn; set ddp"):
        check(strategy="ddp_spawn", devices=2)


def test_limits_of_one_batch_are_not_taken_for_all_batches():
    check(limit_train_batches=1.0, limit_val_batches=1.0)
    with pytest.raises(UsageError, match="limit_val_batches is 1;"):
        check(limit_val_batches=1)


def test_a_run_with_every_harmless_flag_at_once(tmp_path):
    apart = ("accelerator", "strategy", "fast_dev_run", "callbacks", "plugins", "default_root_dir")
    flags = {
        flag: TABLE[flag][1] for flag in OTHERS if flag not in (*apart, "enable_checkpointing")
    }
    trainer, module, data = setting(tmp_path, StageCheckpoint(), **flags)
    fit_sequence(trainer, module, data)
    assert rows(tmp_path)[0] == [None, "one", "two"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("flags"))


def fit(tmp_path, config, *args):
    log = tmp_path / "log"
    code = run("fit", f"--config={config}", f"--run_dir={tmp_path / 'run'}", *args, log=log)
    return code, log.read_text()


CSV = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]
ELSEWHERE = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: x, name: y}}"


@pytest.mark.parametrize(
    ("args", "written", "not_written"),
    [
        (["--trainer.logger=true"], ["tensorboard"], []),
        (["--trainer.logger=false"], [], ["tensorboard", "lightning_logs"]),
        (CSV, ["csv"], ["tensorboard"]),
        (["--trainer.logger+=CSVLogger", CSV[1]], ["csv", "tensorboard"], []),
        ([ELSEWHERE], ["x/y"], []),
        (["--trainer.enable_checkpointing=false"], ["exports"], ["checkpoints"]),
        (["--trainer.enable_progress_bar=false"], ["checkpoints"], []),
        (["--trainer.callbacks+=RichProgressBar"], ["checkpoints"], []),
    ],
)
def test_a_flag_of_the_command_line_is_honoured_and_the_run_resumes(
    args, written, not_written, config, tmp_path
):
    code, log = fit(tmp_path, config, *args)
    assert code == 0, log
    run_dir = tmp_path / "run"
    assert all((run_dir / name).exists() for name in written)
    assert not any((run_dir / name).exists() for name in not_written)
    if (run_dir / "checkpoints").exists():
        code, log = fit(tmp_path, config, *args, "--ckpt_path=last")
        assert code == 0, log


def test_a_dry_run_keeps_nothing(config, tmp_path):
    code, log = fit(tmp_path, config, "--trainer.fast_dev_run=true")
    assert code == 0, log
    assert "A dry run: nothing was kept" in log
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--trainer.max_epochs=3"], "error: trainer.max_epochs is 3; set data.epochs_per_stage"),
        (["--trainer.default_root_dir=x"], "error: trainer.default_root_dir is x; set --run_dir"),
        (["--trainer.precision=bf16-true"], "error: trainer.precision is bf16-true; set 32-true"),
        (["--trainer.strategy=fsdp"], "error: trainer.strategy is fsdp; set ddp"),
    ],
)
def test_the_command_line_refuses_a_flag_in_one_line_before_a_model_is_loaded(
    args, complaint, config, tmp_path
):
    code, log = fit(tmp_path, config, *args, "--model.init_args.pretrained=no/model")
    assert code == 1
    assert complaint in log
    assert "Traceback" not in log
    assert "no/model" not in log


def test_max_time_ends_the_command_with_how_to_resume(config, tmp_path):
    code, log = fit(tmp_path, config, "--trainer.max_time=00:00:00:00")
    assert code == 1
    assert "error: stopped by trainer.max_time in stage 1, one, after 0 of its 3 steps" in log
    assert "Traceback" not in log


def test_ours_gives_way_to_another_progress_bar():
    from callbacks import StageProgressBar
    from command_line.trainer_settings import suited_callbacks

    bars = [StageProgressBar(), RichProgressBar()]
    assert suited_callbacks(bars, {"logger": True}) == bars[1:]
