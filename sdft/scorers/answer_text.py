"""Extracts the answer from a completion: the text after the thought and before the stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sdft.model.chat_template import any_of, open_thought
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
    """B answers as they are scored, without special tokens, stop strings and thoughts.

    Args:
        tokenizer: The tokenizer of prompts and completions.
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
    special = any_of(tokenizer.all_special_tokens)
    are_special = any(special.search(mark) for mark in marks)  # then the text must spell them
    text = str(tokenizer.decode(completion, skip_special_tokens=not are_special))
    if marks:
        text = _behind(text, str(tokenizer.decode(prompt[-_TAIL:])), marks)
    return special.sub("", text) if are_special else text


def _behind(text: str, prompt_end: str, marks: Sequence[str]) -> str:
    """The text after the last thought; empty if that thought does not end."""
    begin, end = marks
    _, has_ended, answer = text.rpartition(end)
    if has_ended:
        return answer.lstrip()
    return "" if begin in text or open_thought(prompt_end, marks) else text


def _cut(text: str, stop_strings: Sequence[str]) -> str:
    ends = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
