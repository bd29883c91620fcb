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


def write_study(folder, runs, arms=None, config=(), start=None):
    arms = arms or {"sft": {"options": {"model.init_args.weight_decay": 0.0}}, "other": {}}
    file = folder / "study.yaml"
    study = {"config": [str(each) for each in config], "arms": arms, "runs": runs}
    if start is not None:
        study["start"] = start
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
        ("arms: {a: {}", r"study\.yaml, line 1, column 13: not valid YAML: "),
        ("arms: {}\narms: {}", r"study\.yaml, line 2, column 1: not valid YAML: 'arms' is given"),
        ("start: {}\narms: {a: {}}\nruns: [{seeds: [1]}]", "the start has no 'export'"),
        ("start: {seed: 1}\narms: {a: {}}\nruns: [{seeds: [1]}]", "the start has 'seed'"),
        (
            "start: {export: x}\narms: {start: {}}\nruns: [{seeds: [1]}]",
            "start_seed1 is there twice",
        ),
    ],
)
def test_a_study_that_is_wrong_is_refused_with_the_file_and_the_key(study, complaint, tmp_path):
    (tmp_path / "study.yaml").write_text(study, "utf-8")
    with pytest.raises(ValueError, match=complaint):
        read_study(tmp_path / "study.yaml")


def test_a_study_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist; give the file"):
        read_study(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_the_last_run_of_a_shipped_study_parses(study, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    log = tmp_path / "log"
    last = read_study(study)[-1]
    assert run_train(*last.arguments, "--print_config", log=log) == 0, log.read_text()


def test_the_start_of_a_shipped_study_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    start = read_study(REPOSITORY / "configs" / "studies" / "two_stages.yaml")[0]
    assert start.name == "start_seed2"
    log = tmp_path / "log"
    assert run_train(*start.arguments, "--print_config", log=log) == 0, log.read_text()


def test_every_seed_has_one_start_before_all_runs_that_begin_from_one(tmp_path):
    start = {"config": ["b.yaml"], "options": {"data.batch_size": 8}, "export": "stage-1-one"}
    study = write_study(tmp_path, [{"seeds": [1, 2]}], config=["a.yaml"], start=start)
    runs = read_study(study)
    assert [run.name for run in runs] == [
        "start_seed1", "start_seed2", "sft_seed1", "other_seed1", "sft_seed2", "other_seed2",
    ]  # fmt: skip
    assert runs[1].arguments == (
        "fit", "--config", "b.yaml", "--data.batch_size", "8", "--seed_everything", "2",
    )  # fmt: skip
    assert "--model.init_args.pretrained" not in runs[1].command(tmp_path)
    model = str(tmp_path / "start_seed2" / "exports" / "stage-1-one")
    for run in runs[4:]:
        assert option(run.command(tmp_path), "model.init_args.pretrained") == model
    printed = printed_by(study, "--print").splitlines()
    assert [line.split("--run_dir ")[1].split()[0] for line in printed] == [
        f"runs/study/{run.name}" for run in runs
    ]
    only = printed_by(study, "--print", "--only", "other_seed2").splitlines()
    assert only == [printed[1], printed[5]]


def printed_by(study, *options):
    command = [sys.executable, "study.py", str(study), *options]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout


def test_slurm_runs_the_starts_before_the_runs_that_need_them(tmp_path):
    start = {"export": "stage-1-one"}
    study = write_study(tmp_path, [{"seeds": [1, 2]}], start=start)
    script = slurm_script(study, tmp_path / "runs", read_study(study), jobs=3)
    submit = tmp_path / "sbatch"
    submit.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\ncat > {tmp_path}/$#.sh\necho "17;cluster"\n'
    )
    submit.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["--parsable", "--dependency=afterok:17"]
    (tmp_path / "1.sh").rename(tmp_path / "last.sh")
    then = (tmp_path / "last.sh").read_text()
    assert "--array=0-3%3" in then
    assert "start_seed" not in then
    ask = subprocess.run(
        ["bash", "-c", then.replace("eval ", "echo ")],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ask.stdout.strip().endswith("--only other_seed2")


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
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
    folder = tmp_path / "runs" / "sft_seed1"
    deadline = time.monotonic() + 120
    log = tmp_path / "runs" / "logs" / "sft_seed1.log"
    while not (log.exists() and "train/loss" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == "sft_seed1: stopped\n"
    assert "start the same command again" in error
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "runs" / "sft_seed2").exists()


def study_of_two_stages(folder, export="stage-1-one"):
    """A start on the first task and two arms on the second; start and one arm are killed once."""
    config = write_config(folder, "SFTModule")
    both = yaml.safe_load(config.read_text())
    first = folder / "first.yaml"
    one = {**both, "data": {**both["data"], "tasks": both["data"]["tasks"][:1]}}
    first.write_text(yaml.safe_dump(one), "utf-8")
    saving = {"checkpoint.every_n_steps": 1}

    def killed(name):
        return {
            **saving,
            "trainer.callbacks+": "tests.child_runs.KillAt",
            "trainer.callbacks.hook": "on_train_batch_start",
            "trainer.callbacks.step": 1,
            "trainer.callbacks.number": int(signal.SIGKILL),
            "trainer.callbacks.marker": str(folder / name),
        }

    start = {"config": [str(first)], "options": killed("a"), "export": export}
    tracking = {"trajectory.every_n_steps": 1, "trajectory.num_prompts": 2}
    shared = {**saving, "data.num_trained_tasks": 1, **tracking}
    arms = {"killed": {"options": {**shared, **killed("b")}}, "plain": {"options": shared}}
    return write_study(folder, [{"seeds": [1]}], arms, [config], start)


@pytest.mark.slow
def test_runs_begin_from_their_start_and_wait_for_it_over_kills_and_failures(tmp_path):
    runs = read_study(study_of_two_stages(tmp_path))
    runner = Runner(tmp_path / "runs", jobs=2)
    assert runner.run(runs) == ["start_seed1", "killed_seed1", "plain_seed1"]
    assert not (runner.folder / "plain_seed1").exists()
    assert runner.run(runs) == ["killed_seed1"], runner.log("plain_seed1").read_text()
    assert runner.run(runs) == [], runner.log("killed_seed1").read_text()
    killed, plain = (
        [json.loads(line) for line in (runner.folder / name / "trajectory.jsonl").open()]
        for name in ("killed_seed1", "plain_seed1")
    )
    assert [(row["task"], row["step"]) for row in plain] == [("two", 0), ("two", 1), ("two", 2)]
    for row, expected in zip(killed, plain, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
        assert row["forgetting"].keys() == {"one"}
    assert plain[0]["general_drift"] < 1e-6  # since the start, not since the base model
    told = [
        json.loads((runner.folder / name / "retention.json").read_text())["rows"]
        for name in ("start_seed1", "plain_seed1")
    ]
    assert told[1][0]["after"] == "one"
    assert told[1][0]["accuracy"]["one"] == told[0][1]["accuracy"]["one"]
    with pytest.raises(ValueError, match="was made by another command"):
        runner.run(read_study(study_of_two_stages(tmp_path, export="stage-2-two")))
