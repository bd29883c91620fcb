"""Encodes texts and chats so that special tokens named in a text stay ordinary text.

A tokenizer reads ``<|im_end|>`` inside a text as the token that ends a turn, so a row that
quotes chat markup, or HTML's ``<s>``, would close its own turn and open others. Here special
tokens come from the chat template alone: in the texts of a row, their names are split into ordinary
tokens. Texts without such names are encoded as usual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from sdft.model.chat_template import (
    THOUGHT_MARKS,
    ChatTemplate,
    ChatTemplateError,
    any_of,
    open_thought,
)
from sdft.types import Message, TokenIds, message_text, with_text

# Characters without a meaning; each stands for a name while a template is rendered.
_PRIVATE = (*range(0xE001, 0xF900), *range(0xF0000, 0xFFFFE))


class Encoder:
    """Encodes texts, and chats made of such texts.

    Args:
        tokenizer: With a chat template, if chats are encoded.
        options: Variables of the chat template.
        clock: The time that the template sees; None for the machine's.
        thought_marks: What a thought begins and ends with in the assistant's turns; empty if the
            model has none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        options: Mapping[str, Any] | None = None,
        clock: datetime | None = None,
        thought_marks: Sequence[str] = THOUGHT_MARKS,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, options, clock)
        self.thought_marks = tuple(thought_marks)
        self._names = any_of(self._template.special_names)
        self._replies_names = any_of(set(self._template.special_names) - set(self.thought_marks))
        self._spaces_texts = _encode(tokenizer, "\na")[-1:] != _encode(tokenizer, "a")

    def encode(self, text: str) -> TokenIds:
        """The tokens of a text, none of them special."""
        return self._joined(self._names.split(text))

    def encode_chat(self, messages: Sequence[Message], shown: Sequence[str] = ()) -> TokenIds:
        """The tokens of a chat up to the assistant's turn; only the template adds special ones.

        Args:
            messages: The turns.
            shown: Texts that must be read in full, such as demonstrations: thoughts in them are
                kept even if the template drops thoughts from earlier turns.

        Raises:
            ValueError: The template refuses the chat, or drops some of its texts.
        """
        hidden = _Hidden(self, messages, shown)
        rendered = hidden.rendered(asks=True)
        for text in (*shown, *_unusual(messages)):
            if _compact(text) not in _compact(hidden.restored(rendered)):
                raise ChatTemplateError(f"the chat template drops some of this text: {text!r:.200}")
        return self._joined(hidden.pieces(rendered))

    def encode_reply(self, messages: Sequence[Message], reply: str) -> TokenIds:
        """The tokens that follow those of :meth:`encode_chat` if this is the assistant's reply.

        They end with the token that the chat template ends the turn with. If the
        template's prompt opens a thought and the reply has none, the thought is closed before the
        reply.

        Raises:
            ValueError: The template refuses the chat.
        """
        if not reply:
            return self._joined(["", self._template.ending(messages)[1], ""], are_names=True)
        turn = Message(role="assistant", content=reply)
        hidden = _Hidden(self, [*messages, turn])
        prompt = hidden.rendered(asks=True, upto=-1)
        following = self._following(hidden, prompt)
        prompt_ids = self._joined(hidden.pieces(prompt))
        ids = self._joined(hidden.pieces(prompt + following))
        if ids[: len(prompt_ids)] == prompt_ids:
            return ids[len(prompt_ids) :]
        # The prompt's last token would differ if it were tokenized with the reply.
        return self._joined(hidden.pieces(following), is_continuation=True)

    def _following(self, hidden: _Hidden, prompt: str) -> str:
        """What the assistant's turn adds to the rendered prompt, through the end of the turn."""
        behind, end = self._template.ending(hidden.messages[:-1])
        reply = message_text(hidden.messages[-1])
        whole = hidden.rendered(asks=False)
        thought = open_thought(prompt, self.thought_marks)
        added = whole[len(prompt) : len(whole) - len(behind)]
        is_said = _compact(prompt + added).endswith(_compact(reply))
        is_closed = thought is None or thought[1] in added
        if whole == prompt + added + behind and is_said and is_closed:
            return added + end
        return _without_open_thought(prompt, reply, thought) + end

    def _joined(
        self, pieces: Sequence[str], *, is_continuation: bool = False, are_names: bool = False
    ) -> TokenIds:
        """Token ids of texts that alternate with names of special tokens, which are text.

        Args:
            pieces: Texts at even places, names at odd ones.
            is_continuation: Whether the first piece follows other text.
            are_names: Whether names become the special tokens that they name.
        """
        ids: TokenIds = []
        for index, piece in enumerate(pieces):
            continues = is_continuation or index > 0
            ids += self._piece(piece, index % 2 == 1 and not are_names, continues)
        return ids

    def _piece(self, piece: str, is_text: bool, continues: bool) -> TokenIds:
        if not (continues and self._spaces_texts and piece):
            return _encode(self._tokenizer, piece, is_text)
        # Some tokenizers (SentencePiece's) put a space before a text; a continuation has none.
        num_before = len(_encode(self._tokenizer, "\n"))
        return _encode(self._tokenizer, "\n" + piece, is_text)[num_before:]


class _Hidden:
    """A chat in which placeholder characters replace what the chat template must not see.

    Args:
        encoder: The encoder whose names of special tokens and marks of thoughts are hidden.
        messages: The chat.
        shown: Assistant's texts in which the marks of thoughts are hidden too.
    """

    def __init__(
        self, encoder: Encoder, messages: Sequence[Message], shown: Sequence[str] = ()
    ) -> None:
        self._encoder = encoder
        texts = [message_text(message) for message in messages]
        self._free = (chr(code) for code in _PRIVATE if not any(chr(code) in t for t in texts))
        self._stand_in: dict[str, str] = {}  # of names
        self._mark: dict[str, str] = {}  # of marks
        self.messages = [
            with_text(message, partial(self._hide, message["role"], shown)) for message in messages
        ]

    def _hide(self, role: str, shown: Sequence[str], text: str) -> str:
        if role == "assistant" and text in shown and self._encoder.thought_marks:
            marks = any_of(self._encoder.thought_marks)
            text = marks.sub(lambda mark: self._character(mark[0], self._mark), text)
        names = self._encoder._names if role != "assistant" else self._encoder._replies_names
        return names.sub(lambda name: self._character(name[0], self._stand_in), text)

    def _character(self, name: str, table: dict[str, str]) -> str:
        if name not in table:
            table[name] = next(self._free)
        return table[name]

    def rendered(self, *, asks: bool, upto: int | None = None) -> str:
        """The chat, or its first messages, as the template renders it, with names still hidden."""
        text = self._encoder._template.render(self.messages[:upto], asks=asks)
        for mark, character in self._mark.items():
            text = text.replace(character, mark)
        return text

    def pieces(self, rendered: str) -> list[str]:
        """The text in pieces that alternate with names of special tokens that are text."""
        name_of = {character: name for name, character in self._stand_in.items()}
        parts: list[str] = any_of(name_of).split(rendered)
        return [name_of.get(part, part) for part in parts]

    def restored(self, rendered: str) -> str:
        """The text with the names restored."""
        return "".join(self.pieces(rendered))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, is_text: bool = False) -> TokenIds:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=is_text)
    ids: TokenIds = encoded["input_ids"]
    return ids


def _unusual(messages: Sequence[Message]) -> Iterator[str]:
    """Texts that a template may drop: those of tools and developers, and those in several parts."""
    for message in messages:
        if message["role"] in ("tool", "developer") or not isinstance(message["content"], str):
            yield message_text(message)


def _compact(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _without_open_thought(prompt: str, reply: str, thought: tuple[str, str] | None) -> str:
    """The reply to a prompt that may open a thought: its thought continues there, or is closed."""
    if thought is None:
        return reply
    begin, end = thought
    line = "\n" if prompt.endswith("\n") else ""
    if reply.lstrip().startswith(begin):
        return reply.lstrip().removeprefix(begin).removeprefix(line)
    return reply if end in reply else f"{line}{end}\n\n{reply}"
