import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from command_line.studies import Runner, read_study, slurm_script
from tests.child_runs import run as run_train
from tests.child_runs import write_config
from tests.conftest import REPOSITORY

STUDIES = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))


def write_study(folder, runs, arms=None, config=()):
    arms = arms or {"sft": {"options": {"model.init_args.weight_decay": 0.0}}, "other": {}}
    file = folder / "study.yaml"
    study = {"config": [str(each) for each in config], "arms": arms, "runs": runs}
    file.write_text(yaml.safe_dump(study, sort_keys=False), "utf-8")
    return file


def option(arguments, name):
    return arguments[arguments.index(f"--{name}") + 1]


def test_every_arm_runs_at_every_point_of_the_grid_seed_by_seed(tmp_path):
    grid = {"model.init_args.learning_rate": [1e-5, 2e-5], "data.batch_size": [4]}
    runs = read_study(write_study(tmp_path, [{"seeds": [1, 2], "grid": grid}], config=["a.yaml"]))
    assert [run.name for run in runs] == [
        "sft_1e-05_4_seed1", "sft_2e-05_4_seed1", "other_1e-05_4_seed1", "other_2e-05_4_seed1",
        "sft_1e-05_4_seed2", "sft_2e-05_4_seed2", "other_1e-05_4_seed2", "other_2e-05_4_seed2",
    ]  # fmt: skip
    arguments = list(runs[5].arguments)
    assert arguments[:3] == ["fit", "--config", "a.yaml"]
    assert float(option(arguments, "model.init_args.learning_rate")) == 2e-5
    assert option(arguments, "data.batch_size") == "4"
    assert option(arguments, "model.init_args.weight_decay") == "0.0"
    assert option(arguments, "seed_everything") == "2"
    command = runs[5].command(tmp_path)
    assert option(command, "run_dir") == str(tmp_path / "sft_2e-05_4_seed2")
    assert option(command, "ckpt_path") == "auto"


@pytest.mark.parametrize(
    ("study", "complaint"),
    [
        ("[1]", "the study is"),
        ("arms: {a: {}}\nruns: []", "there are no runs"),
        ("arms: {a: {}}\nruns: [{seeds: [1], arms: [b]}]", "name the arm 'b'; there are a"),
        ("arms: {a: {}}\nruns: [{seed: [1]}]", "an entry of runs has 'seed'"),
        ("arms: {a: {}}\nruns: [{seeds: 1}]", "'seeds' of an entry of runs is 1; give a list"),
        ("arms: {a: {}}\nruns: [{seeds: [1, 1]}]", "the run a_seed1 is there twice"),
        ("arms: {a: {configs: []}}\nruns: [{seeds: [1]}]", "an arm has 'configs'"),
        ("arms: {a: {}", "study.yaml: "),
    ],
)
def test_a_study_that_is_wrong_is_refused_with_the_file_and_the_key(study, complaint, tmp_path):
    (tmp_path / "study.yaml").write_text(study, "utf-8")
    with pytest.raises(ValueError, match=complaint):
        read_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_the_last_run_of_a_shipped_study_parses(study, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    log = tmp_path / "log"
    last = read_study(study)[-1]
    assert run_train(*last.arguments, "--print_config", log=log) == 0, log.read_text()


def test_the_papers_grids_have_all_their_points():
    sizes = {path.stem: len(read_study(path)) for path in STUDIES}
    assert sizes["paper_skills"] == 3 * 3 * (3 * 3 * 3 * 2)
    assert sizes["paper_knowledge"] == 3 * (3 * 3 * 3 * 3)


def test_a_slurm_array_has_one_run_for_each_index(tmp_path):
    runs = read_study(write_study(tmp_path, [{"seeds": [1, 2]}]))
    script = slurm_script(tmp_path / "study.yaml", tmp_path / "my runs", runs, jobs=3)
    assert "#SBATCH --array=0-3%3" in script
    ask = script.replace("eval ", "echo ")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    asked = subprocess.run(["bash", "-c", ask], env=environment, capture_output=True, text=True)
    assert asked.stdout.strip().endswith("--folder '" + f"{tmp_path}/my runs' --only sft_seed2")


@pytest.mark.slow
def test_finished_runs_are_skipped_killed_ones_resume_and_failed_ones_stop_no_other(tmp_path):
    config = write_config(tmp_path, "SFTModule")
    kill = {
        "trainer.callbacks+": "tests.child_runs.KillAt",
        "trainer.callbacks.hook": "on_train_batch_start",
        "trainer.callbacks.step": 4,
        "trainer.callbacks.marker": str(tmp_path / "marker"),
        "trainer.callbacks.number": int(signal.SIGKILL),
    }
    saving = {"checkpoint.every_n_steps": 1}
    arms = {
        "wrong": {"options": {"model.init_args.learning_rate": -1}},
        "killed": {"options": {**saving, **kill}},
        "plain": {"options": saving},
    }
    runs = read_study(write_study(tmp_path, [{"seeds": [1]}], arms, [config]))
    runner = Runner(tmp_path / "runs")
    assert runner.run(runs) == ["wrong_seed1", "killed_seed1"]
    assert "learning_rate" in runner.log("wrong_seed1").read_text()
    begun = (runner.folder / "plain_seed1" / "retention.json").stat().st_mtime_ns
    assert runner.run(runs) == ["wrong_seed1"]
    assert (runner.folder / "plain_seed1" / "retention.json").stat().st_mtime_ns == begun
    retention = [
        json.loads((runner.folder / name / "retention.json").read_text())["rows"]
        for name in ("killed_seed1", "plain_seed1")
    ]
    assert retention[0] == retention[1]
    changed = read_study(
        write_study(tmp_path, [{"seeds": [1]}], {"plain": {"options": {"data.batch_size": 1}}})
    )
    with pytest.raises(ValueError, match="was made by another command"):
        runner.run(changed)


@pytest.mark.slow
def test_a_stopped_study_lets_its_run_save_and_then_continues(tmp_path):
    config = write_config(tmp_path, "SFTModule", num_train=400)
    arms = {"sft": {"options": {"checkpoint.every_n_steps": 1000}}}
    study = write_study(tmp_path, [{"seeds": [1, 2]}], arms, [config])
    command = [sys.executable, "study.py", str(study), "--folder", str(tmp_path / "runs")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "sft_seed1"
    deadline = time.monotonic() + 120
    while not (folder / "retention.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "start the same command again" in error
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "runs" / "sft_seed2").exists()
