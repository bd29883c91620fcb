"""bfloat16 products with float32 sums: what they are worth, and that the sweep uses them.

A CPU has none, so they are computed there as a CUDA device defines them: the factors are
bfloat16, every sum is float32.
"""

import pytest
import torch
from torch import nn

from sdft.loss import products
from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.model.head import VocabularyHead
from tests.references import Case, gradients

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


@pytest.fixture
def float32_sums(monkeypatch):
    """Give this device products of narrow factors with float32 sums."""
    real = torch.mm

    def mm(left, right, *, out_dtype=None, out=None):
        if out_dtype is None:
            return real(left, right) if out is None else real(left, right, out=out)
        assert out is None or out.dtype == out_dtype
        wide = real(left.to(out_dtype), right.to(out_dtype))
        return wide if out is None else out.copy_(wide)

    monkeypatch.setattr(torch, "mm", mm)
    products.keeps_float32_sums.cache_clear()
    yield
    products.keeps_float32_sums.cache_clear()


def close_models(distance, rows=128, width=256, vocabulary=8000):
    """Hidden states of a student and of a teacher so far from it, and a head."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / width**0.5)
    hidden = 3 * torch.randn(rows, width, generator=generator)
    teacher = hidden + distance * 3 * torch.randn(rows, width, generator=generator)
    return hidden, teacher, VocabularyHead(head)


def value_and_gradient(name, hidden, teacher, head, autocast):
    """Mean divergence, and its gradient over the student's hidden states."""
    hidden = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = distillation_loss(
            hidden,
            head,
            teacher,
            head,
            tokens=torch.zeros(len(hidden), dtype=torch.long),
            weights=torch.full((len(hidden),), 1 / len(hidden)),
            divergence=make_divergence(name),
        ).loss
    return loss.item(), torch.autograd.grad(loss, hidden)[0]


def relative_error(name, models, autocast=True):
    exact_value, exact = value_and_gradient(name, *models, autocast=False)
    _, found = value_and_gradient(name, *models, autocast=autocast)
    return exact_value, float((found - exact).norm() / exact.norm())


def test_a_cpu_does_not_claim_float32_sums():
    products.keeps_float32_sums.cache_clear()
    cpu = torch.device("cpu")
    assert products.product_dtype(cpu, torch.bfloat16) == torch.bfloat16
    for dtype in (torch.float32, torch.float64):
        assert products.product_dtype(cpu, dtype) == dtype


@pytest.mark.parametrize("name", DIVERGENCES)
def test_float32_sums_cut_the_gradients_error_near_the_teacher(name, float32_sums):
    models = close_models(0.03)
    kl, error = relative_error("forward_kl", models)
    assert 0.002 < kl < 0.006
    _, error = relative_error(name, models)
    assert error < 0.1


def test_without_them_a_quarter_of_the_gradient_is_rounding():
    kl, error = relative_error("forward_kl", close_models(0.03))
    assert 0.002 < kl < 0.006
    assert error > 0.2


@pytest.mark.parametrize("name", [*DIVERGENCES, "rao_blackwellised", "sampled_token"])
def test_sweep_with_float32_sums_equals_the_one_without_but_for_rounding(name, float32_sums):
    case = Case(dtype=torch.float32)
    divergence = make_divergence(name)
    expected = gradients(case.loss(divergence, tile_rows=4).loss, case.inputs())
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(case.loss(divergence, tile_rows=4).loss, case.inputs())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_keeps_float32_sums():
    gpu = torch.device("cuda")
    assert products.product_dtype(gpu, torch.bfloat16) == torch.float32
    left, right = (torch.randn(64, 64, device=gpu).bfloat16() for _ in range(2))
    out = torch.empty(64, 64, device=gpu)
    products.product_into(out, left, right, bias=torch.ones(64, device=gpu))
    torch.testing.assert_close(out, left.float() @ right.float() + 1, rtol=1e-5, atol=1e-4)
    assert products.product(left, right, torch.float32).dtype == torch.float32
