"""The part of a completion that is an answer: what follows the thought and precedes the stop."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sdft.model.chat_template import open_thought, token_id
from sdft.types import TokenIds

_TAIL = 8  # tokens of a prompt that show whether it opens a thought


def answer_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    stop_strings: Sequence[str] = (),
    thought_marks: Sequence[str] = (),
) -> list[str]:
    """B answers as they are scored: no special tokens, no stop string, no thought.

    Args:
        tokenizer: Of the prompts and completions.
        prompts: B token-id lists, which may end by opening a thought.
        completions: B token-id lists.
        stop_strings: Texts that end a completion; an answer ends before the first of them.
        thought_marks: What a thought begins and ends with. The answer is what follows the last
            end; it is empty where a thought begins and does not end. Without marks the answer is
            the whole completion.
    """
    return [
        _cut(_after_thought(tokenizer, prompt, completion, thought_marks), stop_strings)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _after_thought(
    tokenizer: PreTrainedTokenizerBase,
    prompt: TokenIds,
    completion: TokenIds,
    marks: Sequence[str],
) -> str:
    text = str(tokenizer.decode(completion, skip_special_tokens=True))
    if not marks:
        return text
    begin, end = marks
    if end in tokenizer.all_special_tokens:  # no mark is left in the text
        return _after_token(tokenizer, completion, begin, end)
    thought, found, answer = text.rpartition(end)
    if found:
        return answer.lstrip()
    tail = str(tokenizer.decode(prompt[-_TAIL:]))
    begun = begin in answer or open_thought(tail, marks) is not None
    return "" if begun and not found else thought + answer


def _after_token(
    tokenizer: PreTrainedTokenizerBase, completion: TokenIds, begin: str, end: str
) -> str:
    """The same where the marks are special tokens."""
    begin_id, end_id = token_id(tokenizer, begin), token_id(tokenizer, end)
    if end_id in completion:
        completion = completion[len(completion) - completion[::-1].index(end_id) :]
        return str(tokenizer.decode(completion, skip_special_tokens=True)).lstrip()
    if begin_id in completion:
        return ""
    return str(tokenizer.decode(completion, skip_special_tokens=True))


def _cut(text: str, stop_strings: Sequence[str]) -> str:
    ends = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
