import pytest
import torch

from lightning_modules import DFTModule, KLPenaltyModule
from tests.lightning_modules.one_step import (
    BATCH,
    PROMPTS,
    TARGETS,
    assert_step_equals,
    logprobs,
    moved,
    token_logprobs,
)

PAIRS = list(zip(PROMPTS, TARGETS, strict=True))


def test_dft_is_cross_entropy_weighted_by_the_models_own_detached_probability():
    module = moved(DFTModule)
    own = torch.cat([token_logprobs(module.student, *pair) for pair in PAIRS])
    assert_step_equals(module, -(own.exp().detach() * own).mean())


def test_dfts_gradient_is_that_of_the_probability_itself():
    module = moved(DFTModule, reduction="sequence_mean")
    probability = [token_logprobs(module.student, *pair).exp().mean() for pair in PAIRS]
    parameter = module.student.model.norm.weight
    (expected,) = torch.autograd.grad(-torch.stack(probability).mean(), parameter)
    (found,) = torch.autograd.grad(module.training_step(BATCH, 0), parameter)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward_kl", "reverse_kl"])
def test_the_penalty_is_the_kl_to_the_base_model_in_the_named_direction(direction):
    module = moved(KLPenaltyModule, penalty=0.7, penalty_direction=direction)
    base = module.base_model.model
    losses = []
    for pair in PAIRS:
        student, anchor = logprobs(module.student, *pair), logprobs(base, *pair).detach()
        if direction == "reverse_kl":
            kl = (student.exp() * (student - anchor)).sum(-1)
        else:
            kl = (anchor.exp() * (anchor - student)).sum(-1)
        assert (kl > 1e-3).all()
        losses.append(0.7 * kl - token_logprobs(module.student, *pair))
    assert_step_equals(module, torch.cat(losses).mean())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"penalty": 0.0}, "model.penalty is 0.0; it must be above 0"),
        ({"penalty_direction": "jsd"}, "model.penalty_direction is jsd; it must be reverse_kl or"),
    ],
)
def test_penalties_out_of_range_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        KLPenaltyModule(pretrained="tiny-random", **options)
