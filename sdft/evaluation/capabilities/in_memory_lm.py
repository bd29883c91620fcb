"""An lm-evaluation-harness model that uses the weights of the model in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, resolve_max_length
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.model.head import VocabularyHead
from sdft.rollout.request import SamplingSettings
from sdft.scorers.answer_text import answer_texts
from sdft.tasks.encoding import Encoder
from sdft.types import Message, Rollout, TokenIds

Scored = tuple[tuple[str, str], TokenIds, TokenIds]  # texts, context, continuation


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure, with what is needed to do so.

    Args:
        model: Causal language model; its weights are read in place.
        head: Its output head.
        tokenizer: Its tokenizer, with a chat template.
        generate: Completes B prompts with given settings.
        encoder: Encodes questions as chats; None uses the tokenizer's defaults.
    """

    model: PreTrainedModel
    head: VocabularyHead
    tokenizer: PreTrainedTokenizerBase
    generate: Callable[[Sequence[TokenIds], SamplingSettings], Rollout]
    encoder: Encoder | None = None


class InMemoryLM(TemplateLM):  # type: ignore[misc]
    """Answers the harness's requests with the current weights in memory.

    Likelihoods are computed on plain text and equal those of the harness's own HFLM: a text without
    context follows the token that begins texts, and a text longer than the model's range is cut on
    the left. Generation is greedy and uses the chat template: the request is a user's turn.

    Args:
        subject: The model, its tokenizer and how to sample from it.
        batch_size: Requests per batch.
        max_generated_tokens: Length limit of completions, for suites that allow longer ones; None
            for the suite's own limit.
        bar: Progress bar that advances with every request.
    """

    def __init__(
        self,
        subject: Subject,
        batch_size: int,
        max_generated_tokens: int | None = None,
        bar: tqdm[Any] | None = None,
    ) -> None:
        super().__init__()
        self._subject = subject
        self._tokenizer: Any = subject.tokenizer
        self._encoder = subject.encoder or Encoder(subject.tokenizer)
        self._batch_size = batch_size
        self._max_generated_tokens = max_generated_tokens
        self._bar = bar
        self._window = int(resolve_max_length(subject.model.config, subject.tokenizer))

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self._tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        begins = self._tokenizer.bos_token_id
        return self.eot_token_id if begins is None else int(begins)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> TokenIds:
        """Token ids of plain text, with the tokenizer's special tokens added only once."""
        begun = has_bos_prefix(string, self._tokenizer.decode(self.prefix_token_id))
        special = not begun if add_special_tokens is None else add_special_tokens
        ids: TokenIds = self._tokenizer(string, add_special_tokens=special)["input_ids"]
        return ids

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would write it."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> Any:
        """Perplexity of whole documents; not implemented because no suite uses it."""
        raise NotImplementedError("no suite of sdft.evaluation.capabilities measures perplexity")

    def _loglikelihood_tokens(self, requests: list[Scored], **_: Any) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(requests)), key=lambda index: _length(requests[index]))
        for group in self._batches(order):
            pairs = [(requests[index][1], requests[index][2]) for index in group]
            found.update(zip(group, self._score(pairs), strict=True))
        return [found[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, bool]]:
        """Each continuation's log-probability; inputs that several pairs share are read once."""
        kept = [self._kept(context, text) for context, text in pairs]
        reads = [(tuple(context), tuple(text[:-1])) for context, text in kept]
        rows = {read: row for row, read in enumerate(dict.fromkeys(reads))}
        prompts = [list(context) for context, _ in rows]
        texts = [[*start, 0] for _, start in rows]  # the last token is predicted, never read
        device = self._subject.model.device
        positions = LossPositions.of(texts, device=device)
        hidden = completion_hidden_states(self._subject.model, prompts, texts, positions)
        logprobs = self._subject.head.logits(hidden).float().log_softmax(-1)  # (N, V)
        parts = torch.split(logprobs, [len(text) for text in texts])
        return [
            _likelihood(parts[rows[read]], torch.tensor(text, device=device))
            for read, (_, text) in zip(reads, kept, strict=True)
        ]

    def _kept(self, context: TokenIds, text: TokenIds) -> tuple[TokenIds, TokenIds]:
        """The context cut on the left, so that the model can read all but the text's last token.

        Raises:
            ValueError: One of them is empty, or the text alone is longer than the model's range.
        """
        if not context or not 0 < len(text) <= self._window:
            raise ValueError(
                f"a continuation of {len(text)} tokens on a context of {len(context)}: both need "
                f"at least one, and the model reads {self._window} at most; leave the row out"
            )
        return (context + text)[-(self._window + 1) : -len(text)], text

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers, each cut before the first of the request's stop strings."""
        by_settings: defaultdict[SamplingSettings, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            by_settings[self._settings(request.args[1])].append(index)
        answers: dict[int, str] = {}
        for settings, indices in by_settings.items():
            for group in self._batches(indices):
                texts = self._answers([requests[index].args[0] for index in group], settings)
                answers.update(zip(group, texts, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _settings(self, options: dict[str, Any]) -> SamplingSettings:
        if options.get("do_sample"):
            raise ValueError("suites are answered greedily, and one asks for sampling")
        until = options.get("until") or []
        longest = options["max_gen_toks"]
        if self._max_generated_tokens is not None:
            longest = min(longest, self._max_generated_tokens)
        return SamplingSettings(
            longest,
            temperature=0.0,
            stop_strings=tuple([until] if isinstance(until, str) else until),
        )

    def _answers(self, questions: Sequence[str], settings: SamplingSettings) -> list[str]:
        chats = ([Message(role="user", content=question)] for question in questions)
        prompts = [self._encoder.encode_chat(chat) for chat in chats]
        rollout = self._subject.generate(prompts, settings)
        return answer_texts(
            self._tokenizer,
            prompts,
            rollout.completions,
            stop_strings=settings.stop_strings,
            thought_marks=self._encoder.thought_marks,
        )

    def _batches(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(indices), self._batch_size):
            group = indices[start : start + self._batch_size]
            yield group
            if self._bar is not None:
                self._bar.update(len(group))


def _length(request: Scored) -> int:
    return len(request[1]) + len(request[2])


def _likelihood(logprobs: Tensor, tokens: Tensor) -> tuple[float, bool]:
    """Summed log-probability of tokens, (T, V) and (T,), and whether each is the most likely."""
    total = logprobs.gather(1, tokens[:, None]).sum()
    return float(total), bool((logprobs.argmax(-1) == tokens).all())
