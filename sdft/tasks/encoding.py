"""Text to token ids, where text stays text.

A tokenizer reads ``<|im_end|>`` inside of a text as the token that ends a turn, so a row that
quotes chat markup, or HTML's ``<s>``, would close its own turn and open others. Here special
tokens come from the chat template alone: in the texts of a row their names are split into ordinary
tokens. Texts without such names are encoded as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from sdft.types import Message, TokenIds

_NOTHING = re.compile(r"((?!))")
# Characters that mean nothing in themselves; each stands for a name while a template is rendered.
_PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))


class Encoder:
    """Encodes texts and chats whose texts are data.

    Args:
        tokenizer: With a chat template, if chats are encoded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        # The longest first, where one name begins with another.
        names = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self._names = _any_of(names)

    def encode(self, text: str) -> TokenIds:
        """The tokens of a text, none of them special."""
        return self._joined(self._names.split(text))

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """The tokens of a chat up to the assistant's turn; the template's special ones alone."""
        texts = [message["content"] for message in messages]
        found = {name for text in texts for name in self._names.findall(text)}
        free = (chr(code) for code in _PRIVATE if not any(chr(code) in text for text in texts))
        stand_in = dict(zip(sorted(found), free, strict=False))
        hidden = [
            {
                "role": message["role"],
                "content": self._names.sub(lambda name: stand_in[name[0]], text),
            }
            for message, text in zip(messages, texts, strict=True)
        ]
        rendered = self._tokenizer.apply_chat_template(
            hidden, add_generation_prompt=True, tokenize=False
        )
        name_of = {character: name for name, character in stand_in.items()}
        pieces: list[str] = _any_of(name_of).split(str(rendered))
        return self._joined([name_of.get(piece, piece) for piece in pieces])

    def _joined(self, pieces: Sequence[str]) -> TokenIds:
        """Token ids of texts that alternate with names of special tokens."""
        ids: TokenIds = []
        for index, piece in enumerate(pieces):
            ids += self._tokenizer(
                piece, add_special_tokens=False, split_special_tokens=index % 2 == 1
            )["input_ids"]
        return ids


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the texts, in one group."""
    alternatives = "|".join(map(re.escape, texts))
    return re.compile(f"({alternatives})") if alternatives else _NOTHING
