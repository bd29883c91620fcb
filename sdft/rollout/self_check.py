"""Check that a decoder gives the same log-probabilities as full forward passes of the model.

An engine relies on the model's cache to hold the state of every layer, to drop rows from the
batch, and to remove tokens that were read. Not every architecture supports this, and their names
do not tell. Before a decoder is used with a model, it therefore samples a few tokens: from prompts
of different lengths, with a row that ends before the others, and with drafts that are accepted and
rejected. Each token's log-probability is compared with that of one forward pass over its whole
sequence, alone in its batch, without a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sdft.model.modes import evaluation_mode
from sdft.model.sharding import gathered_weights
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.types import Rollout, TokenIds

Decode = Callable[[PreTrainedModel, RolloutRequest], Rollout]

PROMPT_LENGTHS = (7, 1, 3)
NUM_TOKENS = 3
# Allowed error of log-probabilities, in standard deviations of a position's logits. In float32,
# rounding caused errors of at most 3e-5, and a lost or misplaced state at least 1.6e-2.
TOLERANCE = 5e-3
HALF_PRECISION_TOLERANCE = 0.25

logger = logging.getLogger(__name__)


class CheckedDecoder:
    """Decodes each model with the first of several decoders whose log-probabilities are correct.

    The check runs at the first call for a model. If it fails, one line is logged that names the
    decoder used instead. Random states, weights and modes are not changed.

    Args:
        decoders: Name -> decoder, in order of preference; each takes a model and a request.
    """

    def __init__(self, decoders: Mapping[str, Decode]) -> None:
        self._decoders = decoders
        self._chosen: WeakKeyDictionary[PreTrainedModel, Decode] = WeakKeyDictionary()

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """Return the request's B completions.

        Raises:
            ValueError: No decoder decodes this model correctly.
        """
        with gathered_weights(model):
            if model not in self._chosen:
                self._chosen[model] = self._choose(model)
            return self._chosen[model](model, request)

    def _choose(self, model: PreTrainedModel) -> Decode:
        failures: list[str] = []
        for name, decode in self._decoders.items():
            failure = check_decoding(model, decode)
            if failure is None:
                if failures:
                    text = "%s is decoded with %s, because %s"
                    logger.warning(text, type(model).__name__, name, "; ".join(failures))
                return decode
            failures.append(f"{name} does not decode it correctly ({failure})")
        raise ValueError(
            f"{type(model).__name__} cannot be sampled from: {'; '.join(failures)}; use another "
            "model, or rollout_engine vllm if vLLM supports this one"
        )


def check_decoding(model: PreTrainedModel, decode: Decode) -> str | None:
    """Sample a few tokens and compare their log-probabilities with full forward passes.

    Args:
        model: Causal language model with gathered weights.
        decode: The decoder to check.

    Returns:
        What is wrong, in a few words; None if nothing is.
    """
    embedding: Any = model.get_input_embeddings()
    prompts = _prompts(embedding.weight.shape[0])
    settings = SamplingSettings(NUM_TOKENS)
    request = RolloutRequest(prompts, settings, frozenset(), seeds=range(1, len(prompts) + 1))
    precise = all(each.itemsize >= 4 for each in {each.dtype for each in model.parameters()})
    off = torch.autocast(model.device.type, enabled=False)
    try:
        with torch.no_grad(), evaluation_mode(model), off:
            plain = decode(model, request)
            drafted = decode(model, _with_drafts_and_an_end(request, plain))
            same = drafted.completions == _cut(plain, drafted)
            by_passes = _by_full_passes(model, prompts, plain.completions)
            error = _error(plain, by_passes, precise)
            if not same:
                by_passes = _by_full_passes(model, prompts, drafted.completions)
            error = max(error, _error(drafted, by_passes, precise))
    except Exception as failure:  # architectures fail in many ways with a cache
        return f"{type(failure).__name__}: {_first_line(str(failure))}"
    if not _ends_where_it_should(drafted, plain.completions[0][1]):
        return "completions do not stop at their end"
    if precise and not same:
        return "drafts change its completions"
    limit = TOLERANCE if precise else HALF_PRECISION_TOLERANCE
    if not error <= limit:
        return f"log-probabilities are off by {error:.2g} standard deviations of the logits"
    return None


def _prompts(vocab_size: int) -> list[TokenIds]:
    """Token ids spread over the vocabulary, the same at every call."""
    ids = [(1 + 7919 * index) % vocab_size for index in range(sum(PROMPT_LENGTHS))]
    starts = [sum(PROMPT_LENGTHS[:row]) for row in range(len(PROMPT_LENGTHS))]
    return [
        ids[start : start + length] for start, length in zip(starts, PROMPT_LENGTHS, strict=True)
    ]


def _with_drafts_and_an_end(request: RolloutRequest, plain: Rollout) -> RolloutRequest:
    """The request with drafts that are rejected at different tokens, and an end after two tokens.

    The row with the longest prompt ends first, so that the others' padding is then dropped.
    """
    drafts = [list(completion) for completion in plain.completions]
    for row in range(1, len(drafts)):
        drafts[row][row - 1] = 0 if drafts[row][row - 1] else 1
    end_ids = frozenset([plain.completions[0][1]])
    return replace(request, drafts=drafts, end_ids=end_ids)


def _ends_where_it_should(rollout: Rollout, end_id: int) -> bool:
    """Whether rows stop at the first end token, or run to the length limit without one."""
    return all(
        end_id not in completion[:-1]
        and ended == (completion[-1] == end_id)
        and (ended or len(completion) == NUM_TOKENS)
        for completion, ended in zip(rollout.completions, rollout.ended, strict=True)
    )


def _cut(plain: Rollout, drafted: Rollout) -> list[TokenIds]:
    """The plain completions, cut to the lengths of the drafted ones."""
    pairs = zip(plain.completions, drafted.completions, strict=True)
    return [completion[: len(other)] for completion, other in pairs]


def _by_full_passes(
    model: PreTrainedModel, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities of each completion's tokens and standard deviations of their logits, (T,).

    Each row takes one forward pass.
    """
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion[:-1]]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
        tokens = torch.tensor(completion, device=model.device)
        logprobs = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        found.append((logprobs.cpu(), logits.std(-1).clamp(min=1e-6).cpu()))
    return found


def _error(rollout: Rollout, by_passes: list[tuple[Tensor, Tensor]], precise: bool) -> float:
    """The largest error over rows of a rollout's log-probabilities, compared with full passes.

    It is in standard deviations of the logits. In half precision, a row's median counts: a few
    tokens may have larger errors, because rounding may route them to other experts.
    """
    found = 0.0
    for logprobs, (expected, spread) in zip(rollout.logprobs, by_passes, strict=True):
        length = len(logprobs)
        errors = (torch.tensor(logprobs) - expected[:length]).abs() / spread[:length]
        found = max(found, float(errors.max() if precise else errors.median()))
    return found


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:100]
