import pytest
import torch
from torch import nn

from sdft.model.sharding import gradient_norm, gradients_are_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_norm_is_that_of_all_entries(dtype):
    layer = nn.Linear(5, 7).to(dtype)
    layer(torch.ones(3, 5, dtype=dtype)).square().sum().backward()
    entries = torch.cat([each.grad.double().flatten() for each in layer.parameters()])
    found = gradient_norm(layer)
    torch.testing.assert_close(found, entries.norm(), rtol=1e-5, atol=0)
    assert found.dtype == torch.float64
    assert gradients_are_finite(layer)
    layer.weight.grad[2, 3] = float("nan")
    assert not gradients_are_finite(layer)


def test_model_without_gradients_has_norm_zero():
    layer = nn.Linear(2, 2)
    assert gradient_norm(layer) == 0
    assert gradients_are_finite(layer)
