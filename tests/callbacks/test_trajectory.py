import copy
import json
import math
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import TrajectoryTracker
from callbacks.trajectory_tracker import drift_from
from lightning_modules import SFTModule
from sdft.loss.reference_answers import ReferenceAnswers
from sdft.model.lora import LoRA
from tests.child_runs import run, write_config
from tests.command_line.test_resume import kill_at
from tests.lightning_modules.test_modules import Recorder, sdft, train, trained_under_watch

OPTIONS = {"every_n_steps": 2, "num_rows": 3, "num_prompts": 4, "max_new_tokens": 5}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_rows_stand_at_a_stages_start_every_n_steps_and_its_end(tmp_path):
    train(sdft(SFTModule), tmp_path, TrajectoryTracker(**OPTIONS))  # stages of 3 and 2 steps
    rows = rows_of(tmp_path)
    places = [(row["task"], row["step"], row["global_step"]) for row in rows]
    assert places == [
        ("one", 0, 0), ("one", 2, 2), ("one", 3, 3), ("two", 0, 3), ("two", 2, 5),
    ]  # fmt: skip
    for row in rows:
        assert row["accuracy"].keys() == row["demonstration_nll"].keys() == {"one", "two"}
        assert row["seconds"] > 0


def test_forgetting_is_the_change_of_earlier_tasks_since_the_stages_start(tmp_path):
    train(sdft(SFTModule), tmp_path, TrajectoryTracker(**OPTIONS))
    *first, start, end = rows_of(tmp_path)
    assert all(row["forgetting"] == row["demonstration_nll_rise"] == {} for row in first)
    assert start["forgetting"] == start["demonstration_nll_rise"] == {"one": 0.0}
    nll = [row["demonstration_nll"]["one"] for row in (start, end)]
    assert end["demonstration_nll_rise"] == {"one": nll[1] - nll[0]}
    assert end["demonstration_nll_rise"]["one"] != 0
    accuracy = [row["accuracy"]["one"] for row in (start, end)]
    assert end["forgetting"] == {"one": accuracy[0] - accuracy[1]}


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["all weights", "adapters"])
def test_drift_and_likelihood_are_those_of_whole_logits(lora, tmp_path):
    """The vocabulary of the tiny model is smaller than what is kept: nothing is lumped."""
    module, tracker = sdft(SFTModule, lora=lora), TrajectoryTracker(**OPTIONS)
    base = copy.deepcopy(module.student)
    train(module, tmp_path, tracker)
    first, *_, last = rows_of(tmp_path)
    assert first["general_drift"] == pytest.approx(0, abs=1e-6)
    answers = tracker._base
    values = []
    for prompt, completion in zip(answers.prompts, answers.completions, strict=True):
        assert 1 <= len(completion) <= 5
        ids = torch.tensor([[*prompt, *completion]])
        p, q = (
            model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            for model in (base, module.student.eval())
        )
        values.append((p.exp() * (p - q)).sum(-1))
    assert last["general_drift"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-3)
    assert last["general_drift"] > 1e-3
    assert last["general_drift_error"] > 0
    data = module.trainer.datamodule
    nlls = []
    for row in data.tasks[0].validation[:3]:
        prompt, demonstration = data.reader.student_prompt(row), data.reader.demonstration(row)
        logits = module.student(torch.tensor([[*prompt, *demonstration]])).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
        nlls.append(-logprobs.gather(1, torch.tensor(demonstration)[:, None])[:, 0])
    expected = torch.cat(nlls).mean().item()
    assert last["demonstration_nll"]["one"] == pytest.approx(expected, rel=1e-4)


def test_rounding_gives_no_negative_drift(tmp_path):
    """A report refuses a negative divergence."""
    module, tracker = sdft(SFTModule), TrajectoryTracker(**OPTIONS)
    train(module, tmp_path, tracker)
    prompts, completions = tracker._base.prompts, tracker._base.completions
    base = ReferenceAnswers.of(module.student, prompts, completions)
    sums = []
    for seed in range(20):
        nudged = copy.deepcopy(module.student)
        torch.manual_seed(seed)
        for weight in nudged.parameters():
            weight.data += 1e-7 * torch.randn_like(weight)
        sums.append(base.kl_of(nudged).double().mean().item())
        assert drift_from(base, nudged).mean == pytest.approx(max(sums[-1], 0.0), abs=1e-12)
    assert min(sums) < 0  # it does happen


def test_measuring_leaves_weights_rollouts_modes_and_noise_as_they_were(tmp_path):
    off, on = tmp_path / "off", tmp_path / "on"
    weights, without = trained_under_watch(sdft(), off, TrajectoryTracker())
    measured, seen = trained_under_watch(sdft(), on, TrajectoryTracker(**OPTIONS))
    assert seen == without
    assert all(torch.equal(measured[name], weights[name]) for name in weights)
    assert not (tmp_path / "off" / "trajectory.jsonl").exists()


def test_the_first_rows_of_two_seeds_have_the_same_base_answers(tmp_path):
    first, second = TrajectoryTracker(**OPTIONS), TrajectoryTracker(**OPTIONS)
    train(sdft(SFTModule, seed=1), tmp_path / "a", first)
    train(sdft(SFTModule, seed=2), tmp_path / "b", second)
    assert first._base.completions == second._base.completions


def test_a_killed_run_ends_with_the_rows_of_an_uninterrupted_one(tmp_path):
    config = write_config(tmp_path)
    options = [f"--trajectory.{name}={value}" for name, value in OPTIONS.items()]

    def fit(name, *more):
        args = (f"--config={config}", f"--run_dir={tmp_path / name}", *options, *more)
        return run("fit", *args, "--checkpoint.every_n_steps=1", log=tmp_path / f"{name}.log")

    assert fit("whole") == 0, (tmp_path / "whole.log").read_text()
    kill = kill_at(tmp_path, "on_train_batch_start", 4)
    assert fit("stopped", "--ckpt_path=auto", *kill) == -signal.SIGKILL
    assert fit("stopped", "--ckpt_path=auto") == 0, (tmp_path / "stopped.log").read_text()
    whole, killed = (without_seconds(rows_of(tmp_path / name)) for name in ("whole", "stopped"))
    assert killed == whole
    events = EventAccumulator(str(tmp_path / "stopped" / "tensorboard"))
    events.Reload()
    scalars = {each.step: each.value for each in events.Scalars("trajectory/general_drift")}
    for row in whole:
        assert math.isclose(scalars[row["global_step"]], row["general_drift"], rel_tol=1e-6)


def test_a_resumed_run_needs_the_base_models_answers(tmp_path):
    saved = Recorder(
        "on_train_batch_end",
        lambda trainer, module: (
            trainer.global_step == 2 and trainer.save_checkpoint(tmp_path / "2.ckpt")
        ),
    )
    train(sdft(SFTModule), tmp_path, TrajectoryTracker(**OPTIONS), saved)
    (tmp_path / "general_answers.safetensors").unlink()
    with pytest.raises(ValueError, match=r"general_answers\.safetensors is missing"):
        train(
            sdft(SFTModule), tmp_path, TrajectoryTracker(**OPTIONS), ckpt_path=tmp_path / "2.ckpt"
        )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"every_n_steps": -1}, r"trajectory\.every_n_steps is -1"),
        ({"num_rows": 0}, r"trajectory\.num_rows is 0"),
        ({"num_prompts": 0}, r"trajectory\.num_prompts is 0"),
        ({"max_new_tokens": 0}, r"trajectory\.max_new_tokens is 0"),
        ({"every_n_steps": 1, "num_prompts": 10**6}, "are asked for"),
    ],
)
def test_options_out_of_range_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        TrajectoryTracker(**options)
