"""The sweep over tiles: what its size, its memory and its number type may not change."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdft.loss import tiling
from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.model.head import VocabularyHead
from tests.references import ROWS, Case, assert_all_close, gradients


@pytest.mark.parametrize("tile_rows", [1, 2, 5, ROWS, 100])
@pytest.mark.parametrize("name", ["forward_kl", "rao_blackwellised"])
def test_tiles_and_blocks_of_any_size_give_the_same(name, tile_rows, monkeypatch):
    case = Case()
    divergence = make_divergence(name)
    whole = case.loss(divergence)
    expected = gradients(whole.loss, case.inputs())
    for blocks_per_tile in (1, 3, 100):
        monkeypatch.setattr(tiling, "BLOCKS_PER_TILE", blocks_per_tile)
        tiled = case.loss(divergence, tile_rows=tile_rows)
        torch.testing.assert_close(tiled.values, whole.values)
        assert_all_close(gradients(tiled.loss, case.inputs()), expected)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "rao_blackwellised", "topk_student"])
def test_nothing_larger_than_a_tile_lives_beside_the_heads_own_gradient(name, frozen):
    rows, vocabulary, width, tile_rows = 96, 500, 4, 8
    head = VocabularyHead(nn.Linear(width, vocabulary, bias=False).requires_grad_(not frozen))
    hidden = torch.randn(rows, width, requires_grad=True)
    with LargestTensor() as largest:
        distillation_loss(
            hidden,
            head,
            torch.randn(rows, width),
            VocabularyHead(nn.Linear(width, vocabulary, bias=False)),
            tokens=torch.randint(vocabulary, (rows,)),
            weights=torch.ones(rows),
            divergence=make_divergence(name, **({"k": 5} if name.startswith("topk") else {})),
            sequence_index=torch.zeros(rows, dtype=torch.long),
            tile_rows=tile_rows,
        ).loss.backward()
    assert largest.numel == tile_rows * vocabulary
    assert (head.weight.grad is None) == frozen


def test_default_tiles_shrink_with_the_vocabulary_down_to_a_floor():
    cpu = torch.device("cpu")
    sizes = [tiling.default_tile_rows(size, cpu) for size in (512, 16_384, 49_152, 262_144)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-2:] == [128, 128]
    assert tiling.default_tile_rows(49_152, torch.device("cuda")) > 128


def test_autocast_projects_in_bfloat16_and_diverges_in_float32():
    case = Case(dtype=torch.float32)
    expected = gradients(case.loss(make_divergence("forward_kl")).loss, case.inputs())
    with torch.autocast("cpu", torch.bfloat16):
        result = case.loss(make_divergence("forward_kl"))
        found = gradients(result.loss, case.inputs())
        student = case.head.logits(case.hidden)
        teacher = case.teacher_head.logits(case.teacher_hidden)
    assert student.dtype == torch.bfloat16
    on_model_logits = make_divergence("forward_kl")(student, teacher, case.tokens)
    torch.testing.assert_close(result.values, on_model_logits.detach(), rtol=1e-6, atol=1e-6)
    assert result.loss.dtype == torch.float32
    assert all(each.dtype == torch.float32 for each in found)
    for one, other in zip(found, expected, strict=True):  # bfloat16 keeps 8 bits
        assert (one - other).norm() <= 0.02 * other.norm()


def test_equal_models_have_no_divergence_under_autocast():
    case = Case(dtype=torch.float32)
    case.teacher_hidden, case.teacher_head = case.hidden.detach(), case.head
    with torch.autocast("cpu", torch.bfloat16):
        result = case.loss(make_divergence("forward_kl"))
    assert result.values.abs().max() <= 1e-6


def test_bfloat16_models_are_within_two_percent_of_the_float64_gradient():
    case, rounded = Case(), Case()
    narrow = Case(dtype=torch.bfloat16)
    for name in ("hidden", "teacher_hidden"):
        as_bfloat16 = getattr(case, name).detach().bfloat16()
        setattr(narrow, name, as_bfloat16.requires_grad_(name == "hidden"))
        setattr(rounded, name, as_bfloat16.double().requires_grad_(name == "hidden"))
    for head in ("head", "teacher_head"):
        state = getattr(case, head).layer.bfloat16().state_dict()
        getattr(narrow, head).layer.load_state_dict(state)
        getattr(rounded, head).layer.load_state_dict(state)
    narrow.weights = rounded.weights.float()
    expected = gradients(rounded.loss(make_divergence("reverse_kl")).loss, rounded.inputs())
    found = gradients(narrow.loss(make_divergence("reverse_kl"), tile_rows=4).loss, narrow.inputs())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() <= 0.02 * other.norm()


def test_float16_gradients_do_not_vanish_for_small_weights():
    case = Case(dtype=torch.float32)
    case.weights = torch.full((ROWS,), 1e-9)
    expected = gradients(case.loss(make_divergence("forward_kl")).loss, case.inputs())
    with torch.autocast("cpu", torch.float16):
        found = gradients(case.loss(make_divergence("forward_kl")).loss, case.inputs())
    assert_all_close(found, expected, rtol=1e-5, atol=0)
