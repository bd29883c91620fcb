from pathlib import Path

import pytest
import torch
from torch import nn

from sdft.model.cpu_layout import (
    AdamW,
    can_pack,
    copy_out_of_files,
    like_parameters,
    packed_linears,
    store_by_columns,
)
from sdft.model.pretrained import load_model, save_model
from sdft.rollout.in_place import STEPS_BEFORE_PACKING, sample
from sdft.rollout.request import RolloutRequest, SamplingSettings


def test_packed_layers_give_the_same_products_and_are_restored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 7, bias=False))
    rows = torch.randn(3, 2, 24)
    with torch.inference_mode():
        expected = model(rows)
        with packed_linears(model):
            found = model(rows)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not any("forward" in layer.__dict__ for layer in model)
    model(rows).sum().backward()
    assert model[0].weight.grad is not None


def test_packed_layers_are_restored_after_an_error():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="inside"), packed_linears(model):
        raise RuntimeError("inside")
    assert "forward" not in model[0].__dict__


def test_only_single_precision_weights_on_the_processor_are_packed():
    assert can_pack(nn.Linear(2, 2)) == torch.backends.mkldnn.is_available()
    assert not can_pack(nn.Linear(2, 2, dtype=torch.bfloat16))
    assert not can_pack(nn.Linear(2, 2, device="meta"))


def tied_model():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embedding": nn.Embedding(11, 6), "inner": nn.Linear(6, 6)})
    model["head"] = nn.Linear(6, 11, bias=False)
    model["head"].weight = model["embedding"].weight
    return model


def test_weights_stored_by_columns_are_the_same_weights_and_tied_heads_stay():
    model, expected = tied_model(), tied_model()
    store_by_columns(model)
    store_by_columns(model)
    assert model["inner"].weight.t().is_contiguous()
    assert model["head"].weight is model["embedding"].weight
    assert model["head"].weight.is_contiguous()
    for found, reference in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, reference)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of files")
def test_no_weight_keeps_the_file_that_the_model_was_read_from(tiny, tmp_path):
    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    model = load_model(str(tmp_path / "model")).model
    file = str(tmp_path / "model" / "model.safetensors")
    assert file in Path("/proc/self/maps").read_text()
    store_by_columns(model)
    copy_out_of_files(model)
    assert file not in Path("/proc/self/maps").read_text()


def trained(layer, steps, state=None):
    """The layer and its optimizer's state dict after some fused AdamW steps on fixed data."""
    optimizer = AdamW(layer.parameters(), lr=0.1)
    if state is not None:
        like_parameters(state["state"], list(layer.parameters()))
        optimizer.load_state_dict(state)
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
        layer(inputs).square().sum().backward()
        optimizer.step()
    return layer, optimizer.state_dict()


def layer_of_seed_zero(by_columns):
    torch.manual_seed(0)
    layer = nn.Linear(5, 7)
    if by_columns:
        store_by_columns(layer)
    return layer


@pytest.mark.parametrize("first_by_columns", [True, False])
def test_training_goes_on_with_an_optimizer_state_saved_in_the_other_order(first_by_columns):
    expected, _ = trained(layer_of_seed_zero(False), range(6))
    first, state = trained(layer_of_seed_zero(first_by_columns), range(3))
    second = layer_of_seed_zero(not first_by_columns)
    second.load_state_dict(first.state_dict())
    found, _ = trained(second, range(3, 6), state)
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("by_columns", [False, True])
def test_our_optimizer_updates_as_pytorchs_in_either_order(by_columns):
    found, state = trained(layer_of_seed_zero(by_columns), range(4))
    reference = layer_of_seed_zero(False)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.1)
    for step in range(4):
        inputs = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))

        def backward(inputs=inputs):
            optimizer.zero_grad()
            loss = reference(inputs).square().sum()
            loss.backward()
            return loss

        optimizer.step(backward)
    torch.testing.assert_close(found.weight, reference.weight, atol=1e-5, rtol=0)
    assert state["state"][0]["exp_avg"].shape == found.weight.shape
    assert state["state"][0]["exp_avg"].stride() == found.weight.stride()


def test_our_optimizer_runs_a_closure_with_gradients():
    layer = layer_of_seed_zero(True)
    optimizer = AdamW(layer.parameters(), lr=0.1)
    with torch.no_grad():
        loss = optimizer.step(lambda: layer(torch.ones(1, 5)).sum().mul(2).backward() or 7)
    assert loss == 7
    assert layer.weight.grad.shape == layer.weight.shape


def test_rollouts_in_mixed_precision_go_without_packing(tiny):
    settings = SamplingSettings(2 * STEPS_BEFORE_PACKING, temperature=0)
    request = RolloutRequest([[5, 6, 7], [8]], settings, end_ids=frozenset())
    with torch.autocast("cpu", torch.bfloat16):
        found = sample(tiny.model, request)
        assert not can_pack(tiny.model)
    assert [len(each) for each in found.completions] == [settings.max_new_tokens] * 2
    assert can_pack(tiny.model)
