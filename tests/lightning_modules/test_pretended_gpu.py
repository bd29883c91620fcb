"""Whole steps on a GPU that is not there, against the same steps on the CPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from datamodules.chat_options import ChatOptions
from lightning_modules import (
    CPTModule,
    DFTModule,
    KLPenaltyModule,
    OfflineDistillationModule,
    OnPolicyDistillationModule,
    ReinvokeModule,
    RewardedSDFTModule,
    SDFTModule,
    SFTModule,
    TeacherSFTModule,
)
from sdft.model.lora import LoRA, trained_parameters
from sdft.model.pretrained import load_model
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from tests.lightning_modules.one_step import BATCH, PROMPTS, TARGETS, moved
from tests.pretended_gpu import GPU, OnGPU, PretendedGPU, to_gpu

CASES = {
    "sdft": (SDFTModule, {}),
    "sdft, reset teacher": (SDFTModule, {"teacher": {"kind": "stage_start"}}),
    "sdft, no teacher of its own": (SDFTModule, {"teacher": {"kind": "student"}}),
    "in parts, recomputed, masked": (
        SDFTModule,
        {
            "micro_batch_size": 1,
            "activation_checkpointing": True,
            "num_masked_tokens": 2,
            "masked_preambles": ["ab"],
        },
    ),
    "importance": (SDFTModule, {"divergence": "reverse_kl", "importance_clip": 2.0}),
    "prefix score": (SDFTModule, {"divergence": "rao_blackwellised", "num_masked_tokens": 2}),
    "drawn token": (SDFTModule, {"divergence": "sampled_token"}),
    "teacher's tokens": (
        SDFTModule,
        {"divergence": "topk_teacher", "divergence_options": {"k": 5}},
    ),
    "student's tokens": (
        SDFTModule,
        {"divergence": "topk_student", "divergence_options": {"k": 5, "tail": False}},
    ),
    "truncated, tempered": (
        SDFTModule,
        {
            "divergence": "jsd",
            "distillation_temperature": 2.0,
            "top_p": 0.9,
            "min_p": 0.01,
            "top_k": 50,
        },
    ),
    "generate": (SDFTModule, {"rollout_engine": "generate"}),
    "static cache": (
        SDFTModule,
        {"rollout_engine": "generate", "rollout_engine_options": {"static_cache": True}},
    ),
    "continuous batching": (
        SDFTModule,
        {
            "rollout_engine": "continuous_batching",
            "rollout_engine_options": {"max_memory_percent": 0.05},  # of host memory, here
        },
    ),
    "adapters": (SDFTModule, {"lora": LoRA(r=2)}),
    "adapters, base teacher": (SDFTModule, {"lora": LoRA(r=2), "teacher": {"kind": "base"}}),
    "sft": (SFTModule, {}),
    "dft": (DFTModule, {}),
    "cpt": (CPTModule, {}),
    "kl penalty": (KLPenaltyModule, {}),
    "on-policy distillation": (OnPolicyDistillationModule, {"teacher": {"kind": "base"}}),
    "re-invoke": (ReinvokeModule, {}),
    "reward": (RewardedSDFTModule, {}),
    "sft on teacher samples": (TeacherSFTModule, {}),
    "offline distillation": (OfflineDistillationModule, {}),
}


def one_step(kind, options):
    """A module ready for a step, and its batch."""
    module = moved(kind, **options)
    rows = tuple(
        SimpleNamespace(task="one", id=str(index), demonstration="a" * (kind is not ReinvokeModule))
        for index in range(len(PROMPTS))
    )
    module.teacher_samples = {("one", str(place)): each for place, each in enumerate(TARGETS)}
    reader = SimpleNamespace(chat=ChatOptions())
    data = SimpleNamespace(score=lambda answer, row: float(row.id == "1"), reader=reader)
    counters = {"global_rank": 0, "world_size": 1, "global_step": 0}
    module._trainer = SimpleNamespace(datamodule=data, **counters)
    return module, replace(BATCH, rows=rows)


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_a_gpu_mixes_no_devices_and_is_the_step_on_a_cpu(case, monkeypatch):
    with monkeypatch.context() as there_is_one:  # for the options' check
        there_is_one.setattr(torch.cuda, "is_available", lambda: True)
        expected, batch = one_step(*CASES[case])
        module, _ = one_step(*CASES[case])
    loss = expected.training_step(batch, 0)
    loss.backward()
    to_gpu(module)
    module._device = GPU
    with PretendedGPU():
        found = module.training_step(batch, 0)
        found.backward()
        if hasattr(module, "teacher"):
            module.teacher.update(module.student, 1)
    assert isinstance(found, OnGPU)
    torch.testing.assert_close(found.inner, loss.detach())
    pairs = zip(
        trained_parameters(module.student), trained_parameters(expected.student), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one.grad.inner, other.grad)


def test_mixing_devices_is_found():
    with PretendedGPU(), pytest.raises(RuntimeError, match="tensors on cuda:0 and on cpu"):
        torch.ones(3, device=GPU) + torch.ones(3)


@pytest.mark.parametrize("drafts", [None, TARGETS], ids=["no drafts", "drafts"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_waits_for_the_gpu_once_a_pass(drafts, temperature):
    model = load_model("tiny-random").model
    request = RolloutRequest(
        PROMPTS, SamplingSettings(24, temperature), frozenset([0]), seeds=[1, 2, 3], drafts=drafts
    )
    expected = sample(model, request)
    to_gpu(model)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with PretendedGPU():
        found = sample(model, request)
    assert found.completions == expected.completions
    assert len(passes) > 10
    assert PretendedGPU.waits.total() <= len(passes), PretendedGPU.waits
