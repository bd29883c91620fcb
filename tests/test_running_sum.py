"""Running sums without cumsum, where a GPU's would be refused."""

import pytest
import torch

from sdft.rollout.request import SamplingSettings
from sdft.rollout.sampling import draw
from sdft.running_sum import blockwise_sum, running_sum
from tests.pretended_gpu import OnGPU, PretendedGPU


@pytest.mark.parametrize("shape", [(1,), (512,), (513,), (3, 1200), (2, 300_000)])
def test_blockwise_sums_are_those_of_cumsum(shape):
    values = torch.rand(shape, dtype=torch.float64)
    torch.testing.assert_close(blockwise_sum(values), values.cumsum(-1), rtol=1e-13, atol=0)


def test_the_cpu_keeps_cumsum():
    values = torch.rand(3, 700)
    assert torch.equal(running_sum(values), values.cumsum(-1))


def test_draws_where_results_must_repeat_are_the_same_and_take_no_cumsum(monkeypatch):
    logits, noise = torch.randn(5, 4000), torch.rand(5, dtype=torch.float64)
    settings = SamplingSettings(1, top_p=0.9)
    expected = draw(logits, settings, noise)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    asked = []
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *_, **__: asked.append(1))
    with PretendedGPU():
        found = draw(OnGPU(logits), settings, OnGPU(noise))
    assert torch.equal(found[0].inner, expected[0])
    torch.testing.assert_close(found[1].inner, expected[1])
    assert not asked
