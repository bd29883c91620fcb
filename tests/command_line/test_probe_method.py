"""``sdft probe``: the rule on made-up numbers, and the command on the tiny model."""

import sys

import pytest
import yaml

from callbacks.in_context import DEFINITIONS
from command_line.probe_method import Finding, as_config, probe_main, recommend
from tests.child_runs import run, write_config


def finding(template, student, teacher, kl=0.5, task="one"):
    numbers = dict.fromkeys(DEFINITIONS, 1.0)
    numbers |= {"student_accuracy": student, "teacher_accuracy": teacher}
    return Finding(template, {task: {**numbers, "kl_teacher_student": kl}})


def options(found):
    return found.settings["model"].get("init_args", {})


def test_the_template_with_the_best_teacher_is_chosen_and_of_equal_ones_the_nearest():
    findings = [finding("a", 0.1, 0.5), finding("b", 0.1, 0.9, 0.7), finding("c", 0.1, 0.9, 0.3)]
    assert recommend(findings).settings["data"]["teacher_template"] == "c"


@pytest.mark.parametrize("student", [0.0, 0.5])
def test_a_teacher_that_is_not_better_leaves_sft(student):
    found = recommend([finding("a", student, student), finding("b", student, 0.0)])
    assert found.settings == {"model": {"class_path": "lightning_modules.SFTModule"}}
    assert "nothing to pass on" in found.because[0]


def test_a_student_that_answers_nothing_learns_on_demonstrations():
    found = recommend([finding("a", 0.0, 0.8)])
    assert options(found)["on_policy_fraction"] == 0.0
    assert "0% of the rows, the best teacher 80%" in found.because[0]


def test_a_student_that_answers_some_learns_on_its_own_samples():
    assert options(recommend([finding("a", 0.1, 0.8)]))["on_policy_fraction"] == 1.0


def test_accuracies_are_means_over_tasks():
    both = Finding(
        "a", {**finding("a", 0.0, 0.4).by_task, **finding("a", 0.2, 0.2, task="two").by_task}
    )
    assert both.mean("teacher_accuracy") == pytest.approx(0.3)
    assert options(recommend([both]))["on_policy_fraction"] == 1.0


def test_a_recommendation_is_a_configuration_that_runs(tmp_path, capsys, monkeypatch):
    config = write_config(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sdft"])
    output, place = tmp_path / "recommended.yaml", tmp_path / "runs"
    shared = [f"--config={config}", f"--run_dir={place}"]
    few = ["--num_rows=2", "--templates", "dialogue", "paper"]
    probe_main([*few, "--output", str(output), f"--config={config}"])
    assert not (tmp_path / "runs").exists()
    printed = capsys.readouterr().out
    assert "dialogue" in printed
    assert "paper" in printed
    assert "nothing to pass on" in printed  # random weights answer nothing
    log = tmp_path / "log"
    assert run("fit", *shared, f"--config={output}", log=log) == 0, log.read_text()
    better = as_config(recommend([finding("dialogue", 0.0, 0.8)]))
    output.write_text(better, "utf-8")
    assert yaml.safe_load(better)["data"] == {"teacher_template": "dialogue"}
    code = run("fit", *shared, f"--config={output}", "--overwrite=true", log=log)
    assert code == 0, log.read_text()


def test_a_method_without_a_teacher_and_no_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sdft"])
    config = write_config(tmp_path, "SFTModule")
    with pytest.raises(SystemExit, match="SFTModule, has no teacher to try"):
        probe_main([f"--config={config}"])
    with pytest.raises(SystemExit, match="--num_rows is 0"):
        probe_main(["--num_rows=0"])
