"""Decide where a completion ends: at an end-of-turn token, or when it contains a stop string."""

from __future__ import annotations

from collections.abc import Callable

from sdft.types import TokenIds

Decode = Callable[[TokenIds], str]


class Ending:
    """Tells whether a completion has ended, token by token.

    Args:
        end_ids: Tokens that end a completion; they are part of it.
        stop_strings: Texts that end a completion; the token that completes one is part of it.
        decode: Turns token ids into text that includes special tokens; only needed for stop
            strings.

    Raises:
        ValueError: There are stop strings but no ``decode``.
    """

    def __init__(
        self,
        end_ids: frozenset[int],
        stop_strings: tuple[str, ...] = (),
        decode: Decode | None = None,
    ) -> None:
        if stop_strings and decode is None:
            raise ValueError(f"stop_strings {list(stop_strings)} need decode, the tokenizer's")
        self.end_ids = end_ids
        self.stop_strings = stop_strings
        self._decode = decode
        # Every token is at least one byte of text; one token more, because the first token of a
        # tail may be decoded differently than within a text.
        self.reach = 1 + max((len(text.encode()) for text in stop_strings), default=0)

    def ends(self, completion: TokenIds) -> bool:
        """Whether the last token ends the completion, given that none before it did.

        Only the last ``reach`` tokens matter.
        """
        if completion[-1] in self.end_ids:
            return True
        if self._decode is None or not self.stop_strings:
            return False
        tail = self._decode(completion[-self.reach :])
        return any(text in tail for text in self.stop_strings)

    def cut(self, tokens: TokenIds) -> tuple[TokenIds, bool]:
        """The tokens up to the first that ends them, and whether one does."""
        for length in range(1, len(tokens) + 1):
            if self.ends(tokens[max(length - self.reach, 0) : length]):
                return tokens[:length], True
        return tokens, False
