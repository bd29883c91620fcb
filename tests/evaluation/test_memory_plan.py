"""The plan of a step's memory against what a step on a CPU takes."""

import json
import multiprocessing
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from sdft.evaluation.live_bytes import LiveBytes
from sdft.evaluation.memory_plan import PlannedStep, num_bytes, plan_memory
from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.model.head import VocabularyHead, final_hidden_states
from sdft.model.lean_adamw import LeanAdamW
from sdft.model.lora import LoRA
from sdft.model.pretrained import model_config
from sdft.model.teacher import make_teacher

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "gpu" / "shapes"
GIB = 2**30
SMALL = LlamaConfig(
    hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, vocab_size=16384, tie_word_embeddings=True,
)  # fmt: skip
ROWS, PROMPT, COMPLETION = 2, 128, 128


def planned(**options):
    step = {"rows": ROWS, "prompt_tokens": PROMPT, "completion_tokens": COMPLETION}
    step |= {"autocast": False, "device_type": "cpu"}
    return plan_memory(PlannedStep(SMALL, **{**step, **options}))


def test_live_bytes_counts_storages_until_they_are_freed():
    with LiveBytes() as live:
        one = torch.ones(1000)
        view = one[:10].t()
        assert live.now == 4000
        other = one + 1
        del one
        assert live.now == 8000  # the view keeps it
        del view
        assert (live.now, live.peak) == (4000, 8000)
        other.add_(1)
        assert live.now == 4000


def test_live_bytes_counts_tensors_without_data_and_not_those_made_before():
    with FakeTensorMode():
        before = torch.ones(10**6)
        live = LiveBytes()
        live.ignore([before])
        with live:
            before.add_(1)
            after = before * 2
            assert live.now == 4 * 10**6
        del after


def test_held_parts_are_those_of_the_formula():
    full, lean = planned(), planned(memory="lean")
    count = full.num_parameters
    assert 25e6 < count == full.num_trained
    assert [full.parts[name] for name in ("weights", "gradients", "moments", "teacher")] == [
        4 * count, 4 * count, 8 * count, 4 * count,
    ]  # fmt: skip
    held = [lean.parts[name] for name in ("weights", "gradients", "moments", "teacher")]
    assert sum(held) == pytest.approx(8.03 * count, rel=0.01)
    assert planned(teacher="student").parts["teacher"] == 0
    adapted = planned(lora=LoRA(r=4), teacher="base")
    assert adapted.parts["teacher"] == 0
    assert adapted.parts["gradients"] == 4 * adapted.num_trained < 4e6
    shards = planned(num_shards=4)
    assert shards.parts["weights"] == count
    assert shards.parts["gathered layers"] > 0


def test_less_is_kept_of_smaller_parts_and_of_recomputed_layers():
    whole = planned().parts["activations"]
    assert planned(micro_batch_size=1).parts["activations"] < 0.7 * whole
    assert planned(activation_checkpointing=True).parts["activations"] < 0.4 * whole


def test_the_papers_model_fits_an_h200_with_all_weights_trained():
    step = PlannedStep(
        model_config(str(SHAPES / "qwen2.5-7b.json")),
        memory="lean",
        micro_batch_size=4,
        activation_checkpointing=True,
    )
    plan = plan_memory(step)
    assert plan.num_trained == 7_615_616_512
    assert plan.peak < 0.9 * 139 * GIB
    full = plan_memory(PlannedStep(step.config, micro_batch_size=4, activation_checkpointing=True))
    assert full.peak > 139 * GIB


def resident():
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_of(work):
    """Growth of the resident set while some work is done, at most, and what it returns."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    result = work()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (int(each.split()[1]) * 1024 for each in lines if each.startswith("VmHWM:"))
    return peak - before, result


def loss_of(hidden, head, teacher_head):
    count = len(hidden)
    return distillation_loss(
        hidden,
        head,
        hidden.detach().clone(),
        teacher_head,
        tokens=torch.zeros(count, dtype=torch.long),
        weights=torch.full((count,), 1 / count),
        divergence=make_divergence("forward_kl"),
    ).loss


def warm_up(dtype):
    """Start threads and libraries, which keep code and buffers by shape that are not the step's."""
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL.to_dict(), "num_hidden_layers": 1})).to(dtype)
    head = VocabularyHead.of(model, check=False)
    ids = torch.ones(ROWS, COMPLETION, dtype=torch.long)
    loss_of(final_hidden_states(model, input_ids=ids).flatten(0, 1), head, head).backward()
    torch.optim.AdamW(model.parameters(), fused=True).step()


def measure(memory, file):
    """Bytes by part of one step on this process."""
    torch.set_num_threads(1)
    found, dtype = {}, torch.float32 if memory == "full" else torch.bfloat16
    warm_up(dtype)
    before = resident()
    with torch.device("meta"):
        model = LlamaForCausalLM(SMALL).to(dtype)
    model.to_empty(device="cpu").init_weights()
    model.tie_weights()
    model.train()
    found["weights"] = resident() - before
    before = resident()
    teacher = make_teacher(model, {"kind": "ema"})
    found["teacher"] = resident() - before
    before = resident()
    ids = torch.randint(16384, (ROWS, PROMPT + COMPLETION))
    hidden = final_hidden_states(model, input_ids=ids)[:, -COMPLETION:].flatten(0, 1)
    found["activations"] = resident() - before
    heads = [VocabularyHead.of(each, check=False) for each in (model, teacher.model)]
    found["head tiles"], loss = peak_of(partial(loss_of, hidden, *heads))
    del hidden
    loss.backward()
    del loss
    before = resident()
    trained = list(model.parameters())
    kept = [each.grad for each in trained]
    for each in trained:
        each.grad = None
    sizes = num_bytes(kept)
    del kept
    found["gradients"] = before - resident()
    assert sizes > 0
    for each in trained:
        each.grad = torch.zeros_like(each)
    before = resident()
    lean = memory == "lean"
    optimizer = LeanAdamW(trained, lr=1e-5) if lean else torch.optim.AdamW(trained, fused=True)
    optimizer.step()
    found["moments"] = resident() - before
    Path(file).write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["full", "lean"])
def test_each_part_is_within_a_tenth_of_what_a_step_on_a_cpu_takes(memory, tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed leaves the resident set
    file = tmp_path / "found.json"
    child = multiprocessing.get_context("spawn").Process(target=measure, args=(memory, str(file)))
    child.start()
    child.join()
    found, parts = json.loads(file.read_text()), planned(memory=memory).parts
    assert found.keys() <= parts.keys()
    for name, measured in found.items():
        assert parts[name] == pytest.approx(measured, rel=0.1), name
