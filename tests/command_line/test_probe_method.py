"""``sdft probe``: the rule on made-up numbers, and the command on the tiny model."""

import sys

import pytest
import yaml

from callbacks.in_context import DEFINITIONS
from command_line.probe_method import (
    Finding,
    Recommendation,
    as_config,
    probe_main,
    recommend,
    with_pilot,
)
from command_line.short_pilot import FirstStage, pilot_of
from sdft.report import read_run
from tests.child_runs import run, write_config
from tests.report_runs import write_run


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


def piloted(tmp_path, by_rate, steps=(0, 4, 8)):
    """A pilot on made-up trajectories: rate -> (accuracy, NLL, drift) at each step."""
    runs = {}
    for rate, values in by_rate.items():
        rows = [
            {
                "task": "one",
                "step": step,
                "accuracy": {"one": accuracy},
                "demonstration_nll": {"one": nll},
                "general_drift": drift,
            }
            for step, (accuracy, nll, drift) in zip(steps, values, strict=True)
        ]
        folder = tmp_path / f"{rate}"
        own = {"learning_rate": rate, "trajectory": rows, "tasks": ("one",)}
        runs[rate] = read_run(write_run(folder, matrix=((0.0,), (0.0,)), **own))
    stage = FirstStage({"name": "one"}, 3, True, batch_size=4, num_steps=32, seed=1)
    return pilot_of(stage, runs)


SFT = Recommendation({"model": {"class_path": "lightning_modules.SFTModule"}}, ("SFT.",))


def test_the_pilots_rate_is_the_one_with_the_least_drift_where_enough_is_learned(tmp_path):
    values = {
        1e-5: [(0.0, 3.0, 0.0), (0.0, 2.9, 0.1), (0.1, 2.8, 0.1)],
        2e-5: [(0.0, 3.0, 0.0), (0.2, 2.0, 0.2), (0.7, 1.0, 0.3)],
        1e-4: [(0.0, 3.0, 0.0), (0.5, 2.0, 2.0), (0.8, 1.0, 4.0)],
    }
    pilot = piloted(tmp_path, values)
    found = with_pilot(SFT, pilot)
    assert found.settings["model"]["init_args"] == {"learning_rate": 2e-5}
    assert "data" not in found.settings
    assert "Learning rate 2e-05: least drift at 70% of the best accuracy" in found.because[1]
    assert "Drift is 0.30" in found.because[1]
    assert found.because[2] == (
        "Steps: 32 a stage as configured; after 8 the model was still learning."
    )
    assert "accuracy  70%   log-likelihood of the demonstrations +2.00   drift 0.30" in "".join(
        pilot.lines()
    )


def test_a_pilot_that_stops_learning_gives_the_number_of_steps(tmp_path):
    values = {2e-5: [(0.0, 3.0, 0.0), (0.5, 1.0, 0.3), (0.5, 1.2, 0.9)]}
    found = with_pilot(recommend([finding("dialogue", 0.0, 0.8)]), piloted(tmp_path, values))
    assert found.settings["data"] == {"teacher_template": "dialogue", "examples_per_stage": 16}
    assert found.settings["model"]["init_args"] == {
        "on_policy_fraction": 0.0,
        "learning_rate": 2e-5,
    }


def test_a_pilot_that_learns_nothing_leaves_the_rate_alone(tmp_path):
    values = {rate: [(0.0, 3.0, 0.0), (0.0, 3.1, 0.3), (0.0, 3.2, 0.5)] for rate in (1e-5, 1e-4)}
    found = with_pilot(SFT, piloted(tmp_path, values))
    assert found.settings == SFT.settings
    assert "No learning rate learned anything in 8 steps" in found.because[-1]


def test_a_recommendation_is_a_configuration_that_runs(tmp_path, capsys, monkeypatch):
    config = write_config(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sdft"])
    output, place = tmp_path / "recommended.yaml", tmp_path / "runs"
    few = ["--num_rows=2", "--templates", "dialogue", "paper", "--pilot_rates", "1e-2", "1e-3"]
    pilot = ["--pilot_steps", "2", "--output", str(output)]
    probe_main([*few, *pilot, f"--config={config}"])
    assert not place.exists()
    printed = capsys.readouterr().out
    assert printed.index("dialogue") < printed.index("paper") < printed.index("Pilot of 2 steps")
    assert "nothing to pass on" in printed  # random weights answer nothing
    assert "pilot at learning rate 0.001:" in printed
    assert "minutes more" in printed
    rate = yaml.safe_load(output.read_text())["model"]["init_args"]["learning_rate"]
    assert f"Learning rate {rate:g}: " in printed
    log = tmp_path / "log"
    shared = [f"--config={config}", f"--run_dir={place}", f"--config={output}"]
    assert run("fit", *shared, log=log) == 0, log.read_text()
    resolved = yaml.safe_load((place / "config.yaml").read_text())
    assert resolved["model"]["init_args"]["learning_rate"] == rate in (1e-2, 1e-3)
    better = as_config(recommend([finding("dialogue", 0.0, 0.8)]))
    output.write_text(better, "utf-8")
    assert yaml.safe_load(better)["data"] == {"teacher_template": "dialogue"}
    assert run("fit", *shared, "--overwrite=true", log=log) == 0, log.read_text()


def test_a_method_without_a_teacher_and_no_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sdft"])
    config = write_config(tmp_path, "SFTModule")
    with pytest.raises(SystemExit, match="SFTModule, has no teacher to try"):
        probe_main([f"--config={config}"])
    with pytest.raises(SystemExit, match="--num_rows is 0"):
        probe_main(["--num_rows=0"])
    with pytest.raises(SystemExit, match="--pilot_steps is -1"):
        probe_main(["--pilot_steps=-1"])
    with pytest.raises(SystemExit, match="does not train from --ckpt_path: add --pilot_steps 0"):
        probe_main(["--ckpt_path=last"])
    with pytest.raises(SystemExit, match="--pilot_rates has 2; rates lie between 0 and 1"):
        probe_main(["--pilot_rates", "2"])
