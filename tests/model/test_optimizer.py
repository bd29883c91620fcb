import pytest
import torch
from torch import nn

from sdft.model.optimizer import store_by_rows


def trained(layer, steps, state=None):
    """The layer and its optimizer's state dict after some fused AdamW steps on fixed data."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    if state is not None:
        store_by_rows(state["state"])
        optimizer.load_state_dict(state)
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
        layer(inputs).square().sum().backward()
        optimizer.step()
    return layer, optimizer.state_dict()


def new_layer():
    torch.manual_seed(0)
    return nn.Linear(5, 7)


@pytest.mark.parametrize("by_columns", [False, True])
def test_training_continues_with_an_optimizer_state_saved_in_either_order(by_columns):
    expected, _ = trained(new_layer(), range(6))
    first, state = trained(new_layer(), range(3))
    if by_columns:
        for entries in state["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                entries[name] = entries[name].t().contiguous().t()
    second = new_layer()
    second.load_state_dict(first.state_dict())
    found, _ = trained(second, range(3, 6), state)
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-6, rtol=0)
