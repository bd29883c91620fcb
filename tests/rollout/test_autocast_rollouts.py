"""Rollouts under autocast: weights are cast once, keys and values are of one type."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdft.model.lora import LoRA
from sdft.model.modes import weights_as_autocast
from sdft.model.pretrained import load_model
from sdft.rollout.in_place import InPlaceEngine, sample
from sdft.rollout.kv_cache import GrowingLayer
from sdft.rollout.request import RolloutRequest, SamplingSettings

PROMPTS = [[5, 9, 11], [60, 7], [8, 8, 8, 8, 30]]
INPUTS = torch.tensor([[5, 6, 7, 8]])


class Casts(TorchDispatchMode):
    """Counts casts of matrices to bfloat16, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        cast = str(func).startswith(("aten.to.", "aten._to_copy")) and result.dim() == 2
        if cast and (args[0].dtype, result.dtype) == (torch.float32, torch.bfloat16):
            self.shapes[tuple(result.shape)] += 1
        return result


def autocast():
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["all weights", "adapters"])
def test_weights_are_cast_once_a_rollout_and_come_back(lora):
    model = load_model("tiny-random", lora=lora).model
    before = {name: each.clone() for name, each in model.named_parameters()}
    request = RolloutRequest(PROMPTS, SamplingSettings(12), frozenset(), seeds=[1, 2, 3])
    with autocast(), Casts() as casts:
        sample(model, request)
    matrices = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    own = Counter(tuple(each.weight.shape) for each in matrices)
    assert {shape: casts.shapes[shape] for shape in own} == own
    for name, each in model.named_parameters():
        assert torch.equal(each, before[name])
        assert each.dtype == before[name].dtype
        assert each.requires_grad == (lora is None or "lora_" in name)


def test_logits_are_those_of_weights_cast_in_every_pass(tiny):
    with autocast(), torch.no_grad():
        expected = tiny.model(INPUTS).logits
        with weights_as_autocast(tiny.model):
            found = tiny.model(INPUTS).logits
    assert torch.equal(found, expected)


def test_without_autocast_nothing_is_cast(tiny):
    weight = tiny.model.lm_head.weight
    with weights_as_autocast(tiny.model):
        assert tiny.model.lm_head.weight is weight


def test_keys_and_values_are_of_one_type():
    layer = GrowingLayer()
    keys, values = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4).bfloat16()
    for _ in range(2):
        found = layer.update(keys, values)
        assert [each.dtype for each in found] == [torch.bfloat16, torch.bfloat16]


def test_a_gpu_decodes_what_its_memory_holds_at_once(tiny, monkeypatch):
    calls = []
    engine = InPlaceEngine()
    monkeypatch.setattr(
        engine, "_decode", lambda model, request: calls.append(len(request.prompts))
    )
    settings = SamplingSettings(2048, temperature=0)
    request = RolloutRequest([[5] * 2048] * 32, settings, frozenset([0]))  # the paper's rollouts
    elsewhere = type(
        "Elsewhere", (), {"device": torch.device("cuda:0"), "parameters": lambda _: []}
    )
    engine(elsewhere(), request)
    assert calls == [32]
