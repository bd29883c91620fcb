"""The tiled losses equal naive autograd, for every divergence, head and split of the batch."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdft.loss import tiling
from sdft.loss.distillation import cross_entropy_loss, distillation_loss, token_logprobs
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.reductions import reduction_weights
from sdft.model.head import VocabularyHead
from tests.references import (
    HEADS,
    ROWS,
    SEQUENCES,
    TEACHER_WIDTH,
    VARIANTS,
    WIDTH,
    Case,
    assert_all_close,
    gradients,
    variant_id,
)


@pytest.mark.parametrize("scaling", HEADS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_loss_and_gradients_equal_naive_autograd(variant, scaling):
    name, options = variant
    case = Case(**scaling)
    result = case.loss(make_divergence(name, **options), tile_rows=4)
    expected = case.naive(name, options)
    assert_all_close(
        gradients(result.loss, case.inputs()),
        gradients(expected, case.inputs()),
        rtol=1e-10,
        atol=1e-13,
    )
    torch.testing.assert_close(result.loss, (result.values * case.weights).sum())
    if name not in ("sampled_token", "rao_blackwellised"):
        torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "jsd", "sampled_token", "topk_student"]
)
def test_temperature_divides_both_models_logits(name):
    options = {"k": 4} if name.startswith("topk") else {}
    case = Case(softcap=2.0)
    result = case.loss(make_divergence(name, **options), temperature=2.5)
    expected = case.naive(name, options, temperature=2.5)
    assert_all_close(gradients(result.loss, case.inputs()), gradients(expected, case.inputs()))


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_float32_is_close_to_float64(variant):
    name, options = variant
    wide, narrow = Case(), Case()
    narrow.hidden = wide.hidden.detach().float().requires_grad_()
    narrow.teacher_hidden = wide.teacher_hidden.float()
    narrow.head.layer.float()
    narrow.teacher_head.layer.float()
    divergence = make_divergence(name, **options)
    expected = gradients(wide.loss(divergence).loss, wide.inputs())
    found = gradients(narrow.loss(divergence).loss, narrow.inputs())
    assert all(each.dtype == torch.float32 for each in found)
    assert_all_close([each.double() for each in found], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "topk_teacher"])
def test_gradcheck_passes_in_float64(name):
    case = Case(softcap=2.0, multiplier=1.5)
    divergence = make_divergence(name, **({"k": 3} if name.startswith("topk") else {}))

    def loss(*_):
        return case.loss(divergence, tile_rows=4).loss

    assert torch.autograd.gradcheck(loss, case.inputs())


def test_rao_blackwellised_gradient_is_unbiased_for_the_sequence_level_reverse_kl():
    # Three tokens, completions of length 3; hidden states are one-hot in the last token, so the
    # head's weight is the whole policy. Enumerate the completions: the expected gradient must be
    # the gradient of the expected total divergence.
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    head, teacher_head = (
        VocabularyHead(nn.Linear(4, 3, False)),
        VocabularyHead(nn.Linear(4, 3, False)),
    )
    head.layer.weight, teacher_head.layer.weight = (
        nn.Parameter(student.detach()),
        nn.Parameter(teacher),
    )
    states = torch.eye(4, dtype=torch.float64)
    kl = make_divergence("reverse_kl")(student.T, teacher.T, torch.zeros(4, dtype=torch.long))
    log_policy = student.T.log_softmax(-1)
    objective, expected = torch.zeros(()).double(), torch.zeros_like(student)
    for completion in itertools.product(range(3), repeat=3):
        visited = [3, *completion[:2]]
        probability = log_policy[visited, list(completion)].sum().exp()
        objective = objective + probability * kl[visited].sum()
        loss = distillation_loss(
            states[visited],
            head,
            states[visited],
            teacher_head,
            tokens=torch.tensor(completion),
            weights=torch.ones(3, dtype=torch.float64),
            divergence=make_divergence("rao_blackwellised"),
            sequence_index=torch.zeros(3, dtype=torch.long),
        ).loss
        (gradient,) = gradients(loss, [head.layer.weight])
        expected += probability.detach() * gradient
    torch.testing.assert_close(expected, gradients(objective, [student])[0])


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("name", ["forward_kl", "rao_blackwellised"])
def test_gradients_do_not_depend_on_the_split_into_micro_batches_and_ranks(name, reduction):
    divergence, num_ranks = make_divergence(name), 2
    case = Case()
    whole = case.loss(divergence, weights=reduction_weights(reduction, SEQUENCES, 5))
    expected = gradients(whole.loss, case.inputs())
    total = [torch.zeros_like(each) for each in case.inputs()]
    for first, last in ((0, 1), (1, 4), (4, 5)):
        part = Case()
        chosen = torch.isin(SEQUENCES, torch.arange(first, last))
        part.hidden = case.hidden.detach()[chosen].requires_grad_()
        part.teacher_hidden, part.tokens = case.teacher_hidden[chosen], case.tokens[chosen]
        index = SEQUENCES[chosen] - first
        weights = reduction_weights(reduction, index, 5, num_tokens=ROWS, averaged_over=num_ranks)
        loss = part.loss(divergence, weights=weights, sequence_index=index).loss
        hidden, *head = gradients(loss / num_ranks, part.inputs())
        total[0][chosen] = hidden
        for sum_of_parts, each in zip(total[1:], head, strict=True):
            sum_of_parts += each
    assert_all_close(total, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["forward_kl", "rao_blackwellised"])
def test_no_positions_give_a_zero_attached_to_the_graph(name):
    case = Case()
    model = nn.Linear(3, WIDTH, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.long)
    case.hidden = model(torch.ones(4, 3, dtype=torch.float64))[nothing]
    case.teacher_hidden = case.teacher_hidden[nothing]
    loss = case.loss(
        make_divergence(name), tokens=nothing, weights=torch.zeros(0), sequence_index=nothing
    ).loss
    assert loss == 0
    loss.backward()
    for each in (*model.parameters(), *case.head.layer.parameters()):
        assert each.grad is not None
        assert (each.grad == 0).all()


def test_teacher_receives_no_gradient_even_where_it_shares_the_students_head():
    case = Case()
    case.teacher_hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    case.teacher_head = case.head
    expected = gradients(case.naive("forward_kl", {}), case.inputs())
    loss = case.loss(make_divergence("forward_kl")).loss
    assert_all_close(gradients(loss, case.inputs()), expected)
    case.loss(make_divergence("forward_kl")).loss.backward()
    assert case.teacher_hidden.grad is None


def test_gradient_scales_with_what_comes_in_and_can_be_taken_again():
    case = Case()
    loss = case.loss(make_divergence("forward_kl")).loss
    once = torch.autograd.grad(loss, case.inputs(), retain_graph=True)
    again = torch.autograd.grad(loss * -3, case.inputs(), retain_graph=True)
    assert_all_close(again, [each * -3 for each in once])


def test_values_are_detached_and_no_grad_gives_the_same():
    case = Case()
    result = case.loss(make_divergence("forward_kl"))
    assert result.loss.requires_grad
    assert not result.values.requires_grad
    with torch.no_grad():
        quiet = case.loss(make_divergence("forward_kl"))
    assert not quiet.loss.requires_grad
    torch.testing.assert_close(quiet.loss, result.loss.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("scaling", HEADS, ids=str)
def test_cross_entropy_equals_the_library_function(scaling, monkeypatch):
    for bound in ("MIN_TILE_ROWS", "MAX_TILE_ROWS"):  # several tiles
        monkeypatch.setattr(tiling, bound, 3)
    case = Case(**scaling)
    loss = cross_entropy_loss(case.hidden, case.head, case.tokens, case.weights)
    surprisal = functional.cross_entropy(
        case.head.logits(case.hidden), case.tokens, reduction="none"
    )
    expected = (surprisal * case.weights).sum()
    torch.testing.assert_close(loss, expected)
    assert_all_close(gradients(loss, case.inputs()), gradients(expected, case.inputs()))
    logprobs = token_logprobs(case.hidden, case.head, case.tokens)
    torch.testing.assert_close(logprobs, -surprisal.detach())
    assert not logprobs.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokens": torch.zeros(3, dtype=torch.long)},
            r"tokens has shape \(3,\); it needs \(11,\)",
        ),
        ({"weights": torch.ones(2)}, r"weights has shape \(2,\)"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"tile_rows": 0}, "tile_rows is 0"),
        ({"sequence_index": None}, "RaoBlackwellised needs sequence_index"),
        ({"sequence_index": torch.arange(ROWS) % 2}, "returns to a sequence it left"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Case().loss(make_divergence("rao_blackwellised"), **changes)


def test_models_that_do_not_fit_together_are_an_error():
    case = Case()
    case.teacher_hidden = case.teacher_hidden[:3]
    with pytest.raises(ValueError, match="student_hidden has 11 rows, teacher_hidden 3"):
        case.loss(make_divergence("forward_kl"))
    case = Case()
    case.teacher_head = VocabularyHead(nn.Linear(TEACHER_WIDTH, 3))
    with pytest.raises(ValueError, match="student's vocabulary has 17 entries, the teacher's 3"):
        case.loss(make_divergence("forward_kl"))
