"""A tokenizer's chat template: what it renders, and how it ends the assistant's turn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from sdft.types import Message

THOUGHT_MARKS = ("<think>", "</think>")
_PROBE = "\ue000"  # a private-use character that no template treats specially
_NOTHING = re.compile(r"((?!))")
_CLOCK = "strftime_now"  # the function that chat templates call for the date
_PADDED = "dmyHIMSj"  # directives that also have a form without leading zeros, such as %-d
_DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuVeDFTRhC"


class ChatTemplateError(ValueError):
    """The chat template rejects a chat, or drops part of it."""


class ChatTemplate:
    """Renders chats with a tokenizer's template.

    Args:
        tokenizer: Must have a chat template.
        options: Variables of the template, such as ``enable_thinking``.
        clock: The date and time given to the template; None for the machine's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        options: Mapping[str, Any] | None = None,
        clock: datetime | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = dict(options or {})
        if clock is not None:
            source = tokenizer.get_chat_template()
            self._options["chat_template"] = _clock_macro(clock) + source
        added = tokenizer.added_tokens_decoder.values()
        self.special_names = tuple(token.content for token in added if token.special)
        self._special = any_of(self.special_names)

    def render(self, messages: Sequence[Message], *, asks: bool) -> str:
        """The chat as the model reads it.

        Args:
            messages: The turns of the chat.
            asks: Whether to open the assistant's turn after them.

        Raises:
            ChatTemplateError: The template rejects the messages; the text gives its reason.
        """
        chat: list[Any] = list(messages)
        try:
            rendered = self._tokenizer.apply_chat_template(
                chat,
                add_generation_prompt=asks,
                tokenize=False,
                **self._options,
            )
        except Exception as error:  # templates raise errors of their own, or any of Jinja's
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ChatTemplateError(f"the chat template refuses it: {reason:.400}") from error
        return str(rendered)

    def ending(self, messages: Sequence[Message]) -> tuple[str, str]:
        """How the template ends a reply to these messages.

        Returns:
            Everything the template writes after the reply when that is the last turn, and the
            part of it that ends the turn: up to and including its first special token. If it has
            none, the turn ends with the special token that immediately starts the next turn, as
            in GLM-4, or else with the tokenizer's end-of-sequence token.
        """
        reply = Message(role="assistant", content=_PROBE)
        behind = self.render([*messages, reply], asks=False).rpartition(_PROBE)[2]
        if found := self._special.search(behind):
            return behind, behind[: found.end()]
        try:
            next_turn = [*messages, reply, Message(role="user", content="?")]
            following = self.render(next_turn, asks=False).rpartition(_PROBE)[2]
        except ChatTemplateError:
            following = ""
        found = self._special.match(following.lstrip())
        return behind, found[0] if found else str(self._tokenizer.eos_token)

    def end_ids(self) -> frozenset[int]:
        """The special tokens that end the assistant's turn; none if the template rejects a test."""
        try:
            _, end = self.ending([Message(role="user", content="?")])
        except ChatTemplateError:
            return frozenset()
        names = self._special.findall(end)[-1:]
        return frozenset(token_id(self._tokenizer, name) for name in names)


def token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """The id of the token with this name."""
    found = tokenizer.convert_tokens_to_ids(name)
    assert isinstance(found, int)
    return found


def _clock_macro(clock: datetime) -> str:
    """Jinja source of a macro that replaces the template's function for the date.

    transformers passes only plain values to templates, so the function cannot be passed in.
    """
    values = {f"%{code}": clock.strftime(f"%{code}") for code in _DIRECTIVES}
    values |= {f"%-{code}": clock.strftime(f"%{code}").lstrip("0") or "0" for code in _PADDED}
    filters = "".join(f"|replace({key!r}, {json.dumps(value)})" for key, value in values.items())
    mark = json.dumps(_PROBE)
    body = f"{{{{ format|replace('%%', {mark}){filters}|replace({mark}, '%') }}}}"
    # Jinja removes the line break after a block, so the template begins at the start of a line.
    return f"{{% macro {_CLOCK}(format) %}}{body}{{% endmacro %}}\n"


def prints_time(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template uses the current date."""
    return _CLOCK in str(tokenizer.chat_template)


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the texts, longest first, in one group; no texts, no matches."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else _NOTHING


def open_thought(prompt: str, marks: Sequence[str] = THOUGHT_MARKS) -> tuple[str, str] | None:
    """The begin and end marks of a thought that a prompt leaves open at its end, or None.

    Args:
        prompt: A rendered prompt.
        marks: Begin and end of a thought. ``<name>`` and ``[NAME]`` are also recognized where the
            name contains "think".
    """
    text = prompt.rstrip()
    if marks and text.endswith(marks[0]):
        return marks[0], marks[1]
    found = re.search(r"<([a-z_]+)>$|\[([A-Z_]+)\]$", text)
    if found is None or "think" not in found[0].lower():
        return None
    return found[0], f"{found[0][0]}/{found[0][1:]}"
