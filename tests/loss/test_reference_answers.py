import copy

import pytest
import torch
from safetensors.torch import load, save

from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.loss.reference_answers import ReferenceAnswers, lumped, lumped_kl
from sdft.model.head import VocabularyHead

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
COMPLETIONS = [[20, 21], [22, 23, 24, 25], [26]]
VOCABULARY = 37


def naive_lumped_kl(reference, model, num_kept):
    """KL of two distributions whose least likely tokens (of the reference) are one entry."""
    p, q = reference.double().softmax(-1), model.double().softmax(-1)
    values = []
    for own, other in zip(p, q, strict=True):
        order = own.argsort(descending=True)
        kept, others = order[:num_kept], order[num_kept:]
        own = torch.cat([own[kept], own[others].sum()[None]])
        other = torch.cat([other[kept], other[others].sum()[None]])
        values.append(sum(a * (a / b).log() for a, b in zip(own, other, strict=True) if a > 0))
    return torch.stack(values)


def another(model):
    moved = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return moved


def whole_logits(model, prompts, completions):
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("num_kept", [1, 5, VOCABULARY - 1, VOCABULARY, 2 * VOCABULARY])
def test_lumped_kl_and_its_gradient_are_those_of_float64(num_kept):
    torch.manual_seed(0)
    reference, model = 3 * torch.randn(2, 6, VOCABULARY)
    model.requires_grad_()
    found = lumped_kl(*lumped(reference, num_kept), model)
    (gradient,) = torch.autograd.grad(found.sum(), model)
    exact = model.detach().double().requires_grad_()
    expected = naive_lumped_kl(reference, exact, num_kept)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


def test_lumping_never_overstates_and_is_exact_with_the_whole_vocabulary():
    torch.manual_seed(1)
    reference, model = 3 * torch.randn(2, 50, VOCABULARY)
    p, q = (each.double().log_softmax(-1) for each in (reference, model))
    full = (p.exp() * (p - q)).sum(-1)
    for num_kept in (1, 4, 16):
        assert (lumped_kl(*lumped(reference, num_kept), model) <= full + 1e-6).all()
    exact = lumped_kl(*lumped(reference, VOCABULARY), model)
    torch.testing.assert_close(exact.double(), full, rtol=1e-5, atol=1e-6)


def test_a_certain_reference_has_a_finite_divergence_and_gradient():
    reference = torch.zeros(1, VOCABULARY)
    reference[0, 3] = 1e4
    model = torch.zeros(1, VOCABULARY, requires_grad=True)
    found = lumped_kl(*lumped(reference, 4), model)
    assert found.item() == pytest.approx(torch.tensor(VOCABULARY).log().item(), rel=1e-5)
    found.sum().backward()
    assert model.grad.isfinite().all()


def test_answers_record_the_model_and_measure_another(tiny):
    answers = ReferenceAnswers.of(tiny.model, PROMPTS, COMPLETIONS, num_kept=10**6)
    assert answers.kl_of(tiny.model).abs().max() < 1e-5
    moved = another(tiny.model)
    p = whole_logits(tiny.model, PROMPTS, COMPLETIONS).double().log_softmax(-1)
    q = whole_logits(moved, PROMPTS, COMPLETIONS).double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    assert expected.max() > 0.01
    torch.testing.assert_close(answers.kl_of(moved).double(), expected, rtol=1e-3, atol=1e-5)
    positions = LossPositions.of(COMPLETIONS)
    hidden = completion_hidden_states(moved, PROMPTS, COMPLETIONS, positions)
    found = answers.kl(hidden, VocabularyHead.of(moved))
    torch.testing.assert_close(found, answers.kl_of(moved), rtol=1e-4, atol=1e-6)
    assert found.requires_grad


def test_answers_survive_a_file_and_can_be_picked(tiny):
    answers = ReferenceAnswers.of(tiny.model, PROMPTS, COMPLETIONS, num_kept=8)
    again = ReferenceAnswers.from_state(load(save(answers.state())))
    moved = another(tiny.model)
    assert torch.equal(again.kl_of(moved), answers.kl_of(moved))
    assert (again.prompts, again.completions) == (PROMPTS, COMPLETIONS)
    picked = again.of_rows([2, 0, 2])
    assert picked.completions == [COMPLETIONS[2], COMPLETIONS[0], COMPLETIONS[2]]
    all_kl = answers.kl_of(moved)
    expected = torch.cat([all_kl[6:], all_kl[:2], all_kl[6:]])
    torch.testing.assert_close(picked.kl_of(moved), expected, rtol=1e-4, atol=1e-6)
