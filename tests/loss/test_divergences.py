"""Divergences against float64 references written naively, reductions, importance weights."""

import math
from dataclasses import dataclass

import pytest
import torch

from sdft.loss.divergence_registry import DIVERGENCES, make_divergence
from sdft.loss.divergences import Divergence
from sdft.loss.reductions import (
    REDUCTIONS,
    effective_sample_size,
    importance_weights,
    reduction_weights,
)
from tests.references import (
    VARIANTS,
    Case,
    assert_all_close,
    gradients,
    reference_gradient,
    reference_values,
    variant_id,
)

ROWS, VOCABULARY = 7, 13


def logits_of_kind(kind, seed=0):
    """Student and teacher logits (N, V) in float64, exactly representable in float32."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(ROWS, VOCABULARY, generator=generator) * 3
    teacher = torch.randn(ROWS, VOCABULARY, generator=generator) * 3
    if kind == "equal":
        teacher = student.clone()
    if kind == "huge":
        student, teacher = student.sign() * 1e4 + student, teacher.sign() * 1e4 + teacher
    if kind == "one-hot":
        student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
        student[:, 2], teacher[:, 3] = 1e4, 1e4
    if kind == "uniform":
        student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
    if kind == "banned":
        student[:, 4:6] = teacher[:, 4:6] = -torch.inf
    if kind == "banned by the student":
        student[:, 4:6] = -torch.inf
    if kind == "banned by the teacher":
        teacher[:, 4:6] = -torch.inf
    return student.double(), teacher.double()


KINDS = (
    "random",
    "equal",
    "huge",
    "one-hot",
    "uniform",
    "banned",
    "banned by the student",
    "banned by the teacher",
)
TOKENS = torch.tensor([0, 1, 2, 3, 9, 11, 12])


def value_and_gradient(divergence, student, teacher):
    student = student.clone().requires_grad_()
    values = divergence(student, teacher, TOKENS)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_value_and_gradient_equal_float64_autograd(variant, kind):
    name, options = variant
    student, teacher = logits_of_kind(kind)
    expected = reference_values(name, options, student, teacher, TOKENS)
    expected_gradient = reference_gradient(name, options, student, teacher, TOKENS)
    divergence = make_divergence(name, **options)

    values, gradient = value_and_gradient(divergence, student, teacher)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-12)

    values, gradient = value_and_gradient(divergence, student.float(), teacher.float())
    assert values.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=2e-6, atol=2e-6)
    scale = expected_gradient.abs().max().clamp(min=1.0).item()
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=2e-6 * scale)


@dataclass(frozen=True)
class SquaredDistance(Divergence):
    """What a user writes for a new divergence: its values, in ordinary torch."""

    def values(self, student_logits, teacher_logits, tokens):
        return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).square().sum(-1)


def test_a_new_divergence_needs_only_its_values():
    case = Case()
    student, teacher = (each.double() for each in logits_of_kind("random"))
    values, gradient = SquaredDistance().values_and_gradient(student, teacher, TOKENS)
    p, q = student.softmax(-1), teacher.softmax(-1)
    slope = 2 * (p - q)
    expected = p * (slope - (p * slope).sum(-1, keepdim=True))  # through the softmax, by hand
    torch.testing.assert_close(values, (p - q).square().sum(-1))
    torch.testing.assert_close(gradient, expected)
    # In the loss: the same however the rows are cut into tiles, and equal without a graph.
    whole, tiled = case.loss(SquaredDistance()), case.loss(SquaredDistance(), tile_rows=2)
    torch.testing.assert_close(tiled.loss, whole.loss)
    assert_all_close(gradients(tiled.loss, case.inputs()), gradients(whole.loss, case.inputs()))
    with torch.no_grad():
        torch.testing.assert_close(case.loss(SquaredDistance()).values, whole.values)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_bfloat16_logits_are_widened_before_the_softmax(variant):
    # The inputs are rounded to 8 bits, the arithmetic is not: equal to float32 on the rounded
    # logits, but for the gradient that is handed back in bfloat16 (relative error 2^-8).
    name, options = variant
    student, teacher = (each.bfloat16() for each in logits_of_kind("random"))
    divergence = make_divergence(name, **options)
    values, gradient = value_and_gradient(divergence, student, teacher)
    expected, expected_gradient = value_and_gradient(divergence, student.float(), teacher.float())
    torch.testing.assert_close(values, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "topk_teacher"])
def test_gradient_passes_gradcheck_in_float64(name):
    student, teacher = logits_of_kind("random")
    options = {"k": 4} if name.startswith("topk") else {}
    divergence = make_divergence(name, **options)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda each: divergence(each, teacher, TOKENS), student)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_divergence_is_zero_for_equal_logits_and_has_no_gradient(variant):
    name, options = variant
    student, teacher = logits_of_kind("equal")
    values, gradient = value_and_gradient(make_divergence(name, **options), student, teacher)
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "topk_teacher"])
def test_divergence_is_not_negative(name):
    student, teacher = logits_of_kind("random")
    assert (
        make_divergence(name, **{"k": 5} if "topk" in name else {})(student, teacher, TOKENS) > 0
    ).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_gradient_ignores_a_shift_of_all_logits(variant):
    name, options = variant
    student, teacher = logits_of_kind("random")
    _, gradient = value_and_gradient(make_divergence(name, **options), student, teacher)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(ROWS).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "banned" in kind])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_banned_tokens_receive_no_gradient_from_the_student(variant, kind):
    name, options = variant
    student, teacher = logits_of_kind(kind)
    _, gradient = value_and_gradient(make_divergence(name, **options), student, teacher)
    assert (gradient[student.isneginf()] == 0).all()


def test_directions_are_named_by_their_first_argument():
    student, teacher = logits_of_kind("random")
    teacher_first = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(
        -1
    )
    student_first = (student.softmax(-1) * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum(
        -1
    )
    torch.testing.assert_close(
        make_divergence("forward_kl")(student, teacher, TOKENS), teacher_first
    )
    torch.testing.assert_close(
        make_divergence("reverse_kl")(student, teacher, TOKENS), student_first
    )


@pytest.mark.parametrize(
    ("beta", "end", "name"), [(1e-6, 0.0, "forward_kl"), (1 - 1e-6, 1.0, "reverse_kl")]
)
def test_jsd_has_the_two_kls_as_its_ends_and_scaled_limits(beta, end, name):
    student, teacher = (each / 4 for each in logits_of_kind("random"))
    kl, kl_gradient = value_and_gradient(make_divergence(name), student, teacher)
    at_end, end_gradient = value_and_gradient(make_divergence("jsd", beta=end), student, teacher)
    torch.testing.assert_close(at_end, kl, rtol=0, atol=0)
    torch.testing.assert_close(end_gradient, kl_gradient, rtol=0, atol=0)
    near, near_gradient = value_and_gradient(make_divergence("jsd", beta=beta), student, teacher)
    factor = beta * (1 - beta)
    torch.testing.assert_close(near / factor, kl, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(near_gradient / factor, kl_gradient, rtol=1e-3, atol=1e-4)


def test_jsd_is_symmetric_at_one_half_and_bounded_by_log_two():
    student, teacher = logits_of_kind("huge")
    jsd = make_divergence("jsd")
    values = jsd(student, teacher, TOKENS)
    torch.testing.assert_close(values, jsd(teacher, student, TOKENS))
    assert (values <= math.log(2) + 1e-12).all()


def test_sampled_token_averages_to_reverse_kl_in_value_and_gradient():
    student, teacher = (each[:1] for each in logits_of_kind("random"))
    tokens = torch.arange(VOCABULARY)
    values, gradient = make_divergence("sampled_token").values_and_gradient(
        student.expand(VOCABULARY, -1), teacher.expand(VOCABULARY, -1), tokens
    )
    probability = student.softmax(-1)
    kl, kl_gradient = make_divergence("reverse_kl").values_and_gradient(
        student, teacher, tokens[:1]
    )
    torch.testing.assert_close((probability[0] * values).sum(), kl[0])
    torch.testing.assert_close(probability @ gradient, kl_gradient)


@pytest.mark.parametrize("name", ["topk_teacher", "topk_student"])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(
    ("direction", "full"), [("forward", "forward_kl"), ("reverse", "reverse_kl"), ("jsd", "jsd")]
)
def test_top_k_over_the_whole_vocabulary_is_the_full_divergence(name, tail, direction, full):
    student, teacher = logits_of_kind("random")
    top = make_divergence(name, k=VOCABULARY, tail=tail, direction=direction)
    values, gradient = value_and_gradient(top, student, teacher)
    expected, expected_gradient = value_and_gradient(make_divergence(full), student, teacher)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_top_k_with_a_tail_never_exceeds_the_full_kl():
    student, teacher = logits_of_kind("random")
    full = make_divergence("forward_kl")(student, teacher, TOKENS)
    for k in (1, 4, 12):
        part = make_divergence("topk_teacher", k=k)(student, teacher, TOKENS)
        assert (part <= full + 1e-12).all()


def test_clip_bounds_each_entry_and_a_loose_one_changes_nothing():
    student, teacher = logits_of_kind("random")
    plain = make_divergence("forward_kl")(student, teacher, TOKENS)
    loose = make_divergence("forward_kl", clip=1e3)(student, teacher, TOKENS)
    tight = make_divergence("forward_kl", clip=0.01)(student, teacher, TOKENS)
    torch.testing.assert_close(loose, plain, rtol=0, atol=0)
    assert (tight < plain).all()
    assert (tight <= 0.01 * VOCABULARY).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kl", {}, "unknown divergence 'kl'; valid: forward_kl, reverse_kl, jsd"),
        ("forward_kl", {"beta": 0.5}, "forward_kl has no option beta; it has: clip"),
        ("sampled_token", {"clip": 1.0}, "no option clip; it has: none"),
        ("jsd", {"beta": 1.5}, "beta is 1.5"),
        ("reverse_kl", {"clip": 0.0}, "clip is 0.0"),
        ("topk_teacher", {"k": 0}, "k is 0"),
        ("topk_teacher", {"k": 2.5}, "k of divergence topk_teacher is 2.5; it must be int"),
        ("topk_teacher", {"k": True}, "k of divergence topk_teacher is True"),
        ("jsd", {"clip": "1"}, "clip of divergence jsd is '1'; it must be float or null"),
        (
            "topk_student",
            {"direction": "both"},
            "direction is 'both'; valid: forward, reverse, jsd",
        ),
        ("topk_student", {"direction": "jsd", "beta": -1}, "beta is -1"),
    ],
)
def test_a_wrong_choice_is_named_with_the_valid_ones(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_divergence(name, **options)


def test_a_support_larger_than_the_vocabulary_is_an_error():
    student, teacher = logits_of_kind("random")
    with pytest.raises(ValueError, match="k is 100; the vocabulary has 13 tokens"):
        make_divergence("topk_teacher")(student, teacher, TOKENS)


def test_every_divergence_is_in_the_reference_table():
    assert {name for name, _ in VARIANTS} == set(DIVERGENCES)


def test_token_mean_weighs_tokens_alike_and_sequence_mean_sequences():
    sequence_index = torch.tensor([0, 0, 0, 2])
    by_token = reduction_weights("token_mean", sequence_index, 3)
    by_sequence = reduction_weights("sequence_mean", sequence_index, 3)
    torch.testing.assert_close(by_token, torch.tensor([0.25, 0.25, 0.25, 0.25]))
    torch.testing.assert_close(by_sequence, torch.tensor([1 / 9, 1 / 9, 1 / 9, 1 / 3]))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_loss_does_not_depend_on_the_split_into_micro_batches_and_ranks(name, num_ranks):
    values = torch.rand(10, generator=torch.Generator().manual_seed(0))
    sequence_index = torch.tensor([0, 0, 0, 1, 3, 3, 4, 4, 4, 4])  # sequence 2 has no loss token
    whole = (reduction_weights(name, sequence_index, 5) * values).sum()
    parts = []
    for first, last in ((0, 1), (1, 2), (2, 5)):
        chosen = (sequence_index >= first) & (sequence_index < last)
        weights = reduction_weights(
            name, sequence_index[chosen] - first, 5, num_tokens=10, averaged_over=num_ranks
        )
        parts.append((weights * values[chosen]).sum() / num_ranks)
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_unknown_total_can_be_divided_out_of_the_gradient_later():
    sequence_index = torch.zeros(4, dtype=torch.long)
    deferred = reduction_weights("token_mean", sequence_index, 1, num_tokens=1)
    torch.testing.assert_close(deferred / 4, reduction_weights("token_mean", sequence_index, 1))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_no_loss_tokens_give_no_weights(name):
    empty = torch.zeros(0, dtype=torch.long)
    assert reduction_weights(name, empty, 2).shape == (0,)
    assert reduction_weights(name, empty, 2, num_tokens=7).shape == (0,)


def test_a_wrong_reduction_is_named_with_the_valid_ones():
    index = torch.zeros(2, dtype=torch.long)
    with pytest.raises(
        ValueError, match="unknown reduction 'mean'; valid: token_mean, sequence_mean"
    ):
        reduction_weights("mean", index, 1)
    with pytest.raises(ValueError, match="num_tokens is 0 and num_sequences is 1"):
        reduction_weights("token_mean", index, 1, num_tokens=0)


def test_importance_weights_are_clipped_ratios_without_gradient():
    trainer = torch.tensor([-1.0, -1.0, -0.1, -torch.inf], requires_grad=True)
    sampler = torch.tensor([-1.0, -1.5, -5.0, -1.0])
    weights = importance_weights(trainer, sampler, clip=2.0)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, torch.tensor([1.0, math.exp(0.5), 2.0, 0.0]))


def test_importance_weights_make_the_sampler_s_mean_the_trainer_s():
    student, sampler = (each[0] for each in logits_of_kind("random"))
    function = torch.linspace(-1, 1, VOCABULARY).double()
    weights = importance_weights(student.log_softmax(-1), sampler.log_softmax(-1), clip=1e9)
    corrected = (sampler.softmax(-1) * weights * function).sum()
    torch.testing.assert_close(
        corrected, (student.softmax(-1) * function).sum(), rtol=1e-5, atol=1e-6
    )


def test_effective_sample_size_counts_equal_weights_fully():
    assert effective_sample_size(torch.full((8,), 0.3)) == pytest.approx(8.0)
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_sample_size(torch.zeros(0)) == 0.0


def test_importance_weights_reject_a_bound_below_one_and_unequal_shapes():
    with pytest.raises(ValueError, match=r"clip is 0\.5"):
        importance_weights(torch.zeros(2), torch.zeros(2), clip=0.5)
    with pytest.raises(ValueError, match=r"shape \(2,\), sampler_logprobs \(3,\)"):
        importance_weights(torch.zeros(2), torch.zeros(3), clip=2.0)
