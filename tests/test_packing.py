import pytest
import torch
from torch import nn

from sdft.packing import can_pack, packed_linears


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
