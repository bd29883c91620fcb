import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lightning_modules import SDFTModule, SFTModule
from sdft.loss import hidden_states
from sdft.loss.hidden_states import LossPositions, hidden_states_in_parts
from sdft.model.lora import LoRA, trained_parameters
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.types import DemonstrationBatch

PROMPTS = [[5, 9, 11], [60, 7], [8, 8, 8, 8, 30], [3], [21, 22]]
ANSWERS = [[1, 2, 44], [3, 13, 8, 30, 0], [7], [9, 9, 0], [4, 5]]


def step(kind, reduction, **options):
    """Loss and gradients of one training step in float64, without a trainer."""
    module = kind(
        pretrained="tiny-random", max_new_tokens=8, reduction=reduction, **options
    ).double()
    module.log = lambda *args, **kwargs: None
    module.rollout_seeds = lambda num_rows: list(range(num_rows))
    module.on_policy_rows = module.rollout_seeds  # all of them
    with torch.no_grad():  # another student than the teacher
        generator = torch.Generator().manual_seed(4)
        for each in trained_parameters(module.student):
            each.add_(0.1 * torch.randn(each.shape, generator=generator))
    teacher_prompts = [[40, *prompt] for prompt in PROMPTS]
    batch = DemonstrationBatch((None,) * len(PROMPTS), PROMPTS, teacher_prompts, ANSWERS)
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach(), [each.grad for each in trained_parameters(module.student)], module


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("kind", [SDFTModule, SFTModule])
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(kind, reduction, lora):
    whole = step(kind, reduction, lora=lora)
    assert whole[0] > 1e-3
    for size in (1, 2, 7):
        loss, gradients, _ = step(kind, reduction, lora=lora, micro_batch_size=size)
        torch.testing.assert_close(loss, whole[0], rtol=1e-6, atol=1e-9)
        for own, expected in zip(gradients, whole[1], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}], ids=["whole", "micro"])
def test_activation_checkpointing_changes_neither_rollout_nor_loss_nor_gradient(options):
    plain = step(SDFTModule, "token_mean")
    loss, gradients, module = step(
        SDFTModule, "token_mean", activation_checkpointing=True, **options
    )
    assert module.student.is_gradient_checkpointing
    assert module.last_rollout.completions == plain[2].last_rollout.completions
    torch.testing.assert_close(loss, plain[0], rtol=1e-6, atol=1e-9)
    for own, expected in zip(gradients, plain[1], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-8)


def test_every_row_comes_back_in_its_place(tiny):
    positions = LossPositions.of(ANSWERS, num_masked=2)  # some rows have no position left
    whole = hidden_states_in_parts(tiny.model, PROMPTS, ANSWERS, positions, None)
    parts = hidden_states_in_parts(tiny.model, PROMPTS, ANSWERS, positions, 2)
    assert len(parts) == len(positions)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def peak_bytes(model, prompts, size):
    """Peak of the live bytes during one forward and backward pass."""
    positions = LossPositions.of([[1, 2]] * len(prompts))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        hidden_states_in_parts(
            model, prompts, [[1, 2]] * len(prompts), positions, size
        ).sum().backward()
    live = peak = 0
    events = profiler.profiler.kineto_results.events()
    for each in sorted(events, key=lambda each: each.start_ns()):
        if each.name() == "[memory]":
            live += each.nbytes()
            peak = max(peak, live)
    return peak


def test_memory_falls_with_the_micro_batches(tiny):
    prompts = [[5] * 64] * 8
    model = tiny.model.train()
    peaks = [peak_bytes(copy.deepcopy(model), prompts, size) for size in (None, 1)]
    assert peaks[1] < 0.35 * peaks[0]


def test_rollouts_are_the_same_with_activation_checkpointing(tiny):
    settings = SamplingSettings(6)

    def draw():
        return sample(
            tiny.model.train(),
            RolloutRequest(PROMPTS, settings, end_ids=frozenset({0}), seeds=range(len(PROMPTS))),
        )

    plain = draw()
    tiny.model.activation_checkpointing_enable({"use_reentrant": False})
    assert draw() == plain


def test_recomputed_parts_repeat_the_noise_of_the_models_device(tiny, monkeypatch):
    seen, real = [], hidden_states.checkpoint

    def recorded(part, *arguments, **options):
        tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
        seen.append({each.device for each in tensors})
        return real(part, *arguments, **options)

    monkeypatch.setattr(hidden_states, "checkpoint", recorded)
    positions = LossPositions.of(ANSWERS, device=tiny.model.device)
    hidden_states_in_parts(tiny.model, PROMPTS, ANSWERS, positions, 2)
    assert seen == [{tiny.model.device}] * 2  # the last of three parts is kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_on_a_gpu_draws_the_same_noise_when_parts_are_recomputed(monkeypatch):
    def gradients():
        lora = LoRA(r=2, dropout=0.3)
        module = SFTModule(pretrained="tiny-random", lora=lora, micro_batch_size=1).cuda()
        module.log = lambda *args, **kwargs: None
        with torch.no_grad():
            for each in trained_parameters(module.student):
                each.fill_(0.01)
        torch.manual_seed(0)
        batch = DemonstrationBatch((None,) * len(PROMPTS), PROMPTS, PROMPTS, ANSWERS)
        module.training_step(batch, 0).backward()
        return torch.cat([each.grad.flatten() for each in trained_parameters(module.student)])

    found = gradients()
    monkeypatch.setattr(
        "sdft.loss.hidden_states._recomputed", hidden_states.completion_hidden_states
    )
    torch.testing.assert_close(found, gradients())
