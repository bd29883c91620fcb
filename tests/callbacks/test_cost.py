import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from callbacks import CostTracker
from lightning_modules import SDFTModule, SFTModule
from sdft.evaluation.cost import LapClock, ModelShape, operations_ratio, step_operations
from sdft.model.lora import LoRA
from sdft.types import DemonstrationBatch, Rollout
from tests.lightning_modules.test_modules import sdft, train

BATCH = DemonstrationBatch(
    rows=(None, None),
    student_prompts=[[4, 5, 6], [7, 8, 9, 10]],
    teacher_prompts=[[4] * 9, [7] * 12],
    demonstrations=[[20, 0], [21, 22, 0]],
)
ROLLOUT = Rollout([[30, 31, 0], [32]], [[0.0] * 3, [0.0]], [True, False])


def test_operations_of_a_forward_pass_are_those_that_are_counted(tiny):
    prompt, completion = list(range(4, 30)), list(range(30, 40))
    read, shape = len(prompt) + len(completion) - 1, ModelShape.of(tiny.model)
    tiny.model.set_attn_implementation("eager")  # the counter does not see into the fused one
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny.model(torch.tensor([prompt + completion[:-1]]), logits_to_keep=len(completion))
    never_needed = 4 * shape.attention * read * (read - 1) // 2  # attention to later tokens
    expected = counter.get_total_flops() - never_needed
    # Weights of norms count as a matrix's: there are few of them.
    assert shape.forward([prompt], [completion]) == pytest.approx(expected, rel=0.01)


def test_a_step_reads_prompts_rollouts_and_demonstrations_by_phase(tiny):
    shape = ModelShape.of(tiny.model)
    sampled = shape.forward(BATCH.student_prompts, ROLLOUT.completions)
    operations = step_operations(shape, BATCH, ROLLOUT)
    assert operations == {
        "rollout": sampled,
        "teacher": shape.forward(BATCH.teacher_prompts, ROLLOUT.completions),
        "student": 3 * sampled,
        "sft": 3 * shape.forward(BATCH.student_prompts, BATCH.demonstrations),
    }
    assert operations_ratio(operations) > 1
    assert operations_ratio(step_operations(shape, BATCH, None)) == 1


def test_adapters_save_the_gradient_of_the_weights():
    module = sdft(SFTModule, lora=LoRA(r=2))
    assert ModelShape.of(module.student).training_passes == 2
    assert ModelShape.of(sdft(SFTModule).student).training_passes == 3


def test_a_lap_is_the_time_since_the_last_one():
    clock = LapClock()
    clock.start(torch.device("cpu"))
    time.sleep(0.02)
    clock.lap("sleep")
    clock.lap("nothing")
    assert clock.seconds["sleep"] >= 0.02
    assert clock.seconds["nothing"] < 0.02


@pytest.mark.parametrize("method", [SDFTModule, SFTModule])
def test_a_run_writes_what_it_cost(method, tmp_path):
    tracker = CostTracker()
    train(sdft(method), tmp_path, tracker)
    record = json.loads((tmp_path / "cost.json").read_text())
    phases = {"student", "backward", "optimizer"}
    if method is SDFTModule:
        phases |= {"sample", "teacher", "teacher_update"}
        assert record["operations_vs_sft"] > 1
        assert record["completion_tokens"] > 0
        assert record["completion_tokens_per_s"] > 0
    else:
        assert record["operations_vs_sft"] == 1
        assert record["completion_tokens_per_s"] is None
    assert record["seconds"].keys() == phases
    assert record["peak_memory_bytes"] > 1e6
    assert record["num_steps"] == tracker.state_dict()["num_steps"] > 0


def test_a_resumed_run_goes_on_counting():
    first, second = CostTracker(), CostTracker()
    first._num_steps, first._tokens = 3, 50
    first._seconds.update(sample=2.0)
    first._operations.update(rollout=1.0, teacher=2.0, student=3.0, sft=2.0)
    second.load_state_dict(first.state_dict())
    assert second.record(torch.device("cpu"))["completion_tokens_per_s"] == 25
    assert second.record(torch.device("cpu"))["operations_vs_sft"] == 3
