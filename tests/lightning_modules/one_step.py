"""One training step of a method in float64, without a trainer."""

import torch

from sdft.model.lora import trained_parameters
from sdft.types import DemonstrationBatch

PROMPTS = [[5, 9, 11], [60, 7], [8, 8, 8, 8, 30]]
TEACHER_PROMPTS = [[40, 41, *prompt] for prompt in PROMPTS]
TARGETS = [[70, 12, 44, 0], [33, 13, 88, 30, 0], [7, 0]]
BATCH = DemonstrationBatch((None,) * len(PROMPTS), PROMPTS, TEACHER_PROMPTS, TARGETS)


def moved(kind, **options):
    """A method in float64 whose student is no longer the model it started from."""
    module = kind(pretrained="tiny-random", max_new_tokens=8, **options).double()
    module.log = lambda *args, **kwargs: None
    module.rollout_seeds = lambda num_rows, *stream: list(range(num_rows))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for each in trained_parameters(module.student):
            each.add_(0.1 * torch.randn(each.shape, generator=generator, dtype=each.dtype))
    return module


def logprobs(model, prompt, completion):
    """(T, V) next-token log-probabilities at a completion's tokens."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


def token_logprobs(model, prompt, completion):
    """(T,) log-probabilities of a completion's own tokens."""
    every = logprobs(model, prompt, completion)
    return every.gather(-1, torch.tensor(completion)[:, None])[:, 0]


def assert_step_equals(module, expected, batch=BATCH):
    """Loss and gradient of the training step against a naive loss, differentiated by autograd."""
    parameters = trained_parameters(module.student)
    loss = module.training_step(batch, 0)
    found = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
