"""Preambles such as "Based on the text" that a student may learn from its teacher.

The teacher has a text in its prompt and the student does not, so a preamble that refers to the text
is an artifact. The paper masks the loss on a fixed number of first tokens. Here the loss can also
be masked on exactly the tokens of given phrases. The mask only affects the loss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sdft.types import TokenIds

# Counted in rollouts of student and teacher, whether they are masked or not.
WATCHED_PREAMBLES = (
    "According to the",
    "As mentioned in the",
    "As shown in the",
    "Based on the",
    "From the example",
    "From the text",
    "In the example",
    "The example",
    "The text",
)


class Preambles:
    """Finds phrases at the beginning of completions, ignoring case and leading white space.

    A phrase that ends in a letter or digit must end at the end of a word: "Based on the" does not
    match "Based on theory".

    Args:
        phrases: Phrases to look for; may be empty.
        tokenizer: Tokenizer of the completions.

    Raises:
        ValueError: A phrase is empty.
    """

    def __init__(self, phrases: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        for phrase in phrases:
            if not phrase.strip():
                raise ValueError(f"preamble {phrase!r} is empty; give it some text")
        self.phrases = tuple(phrase.strip() for phrase in phrases)
        self._tokenizer = tokenizer
        alternatives = [
            re.escape(phrase) + (r"(?!\w)" if re.match(r"\w", phrase[-1]) else "")
            for phrase in sorted(self.phrases, key=len, reverse=True)
        ]
        self._pattern = re.compile("|".join(alternatives), re.IGNORECASE)

    @property
    def max_tokens(self) -> int:
        """Number of first tokens that suffice to tell whether a completion begins with a phrase.

        It is the length of the longest phrase, plus a few for white space and its last word's end.
        """
        encode = self._tokenizer.encode
        return 4 + max(len(encode(phrase, add_special_tokens=False)) for phrase in self.phrases)

    def num_tokens(self, completions: Sequence[TokenIds]) -> list[int]:
        """Number of tokens of each completion up to the end of its phrase; 0 if it has none.

        Args:
            completions: B token-id lists.
        """
        if not self.phrases:
            return [0] * len(completions)
        return [self._num_tokens(completion) for completion in completions]

    def rate(self, completions: Sequence[TokenIds]) -> float:
        """Fraction of completions that begin with a phrase."""
        found = self.num_tokens(completions)
        return sum(number > 0 for number in found) / len(found)

    def _num_tokens(self, completion: TokenIds) -> int:
        found = self._pattern.match(self._text(completion))
        if found is None:
            return 0
        # Part of a character decodes to a replacement mark, so it never completes the phrase.
        return next(
            number
            for number in range(1, len(completion) + 1)
            if self._text(completion[:number]).startswith(found.group())
        )

    def _text(self, tokens: TokenIds) -> str:
        text = self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text.lstrip()
