"""Open answers graded by a language model behind an OpenAI-compatible endpoint.

The judge says CORRECT, PARTIALLY_CORRECT or INCORRECT; strict scoring counts the first, lenient
the first two. Verdicts are kept in a file, so that an evaluation that was interrupted, or one by
the other rule, asks for none of them again.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdft.scorers.judge_endpoint import Endpoint, VerdictCache, fingerprint
from sdft.types import Demonstration

logger = logging.getLogger(__name__)

PROMPT_FIELDS = frozenset({"question", "reference", "answer"})
VERDICTS = ("CORRECT", "PARTIALLY_CORRECT", "INCORRECT")
SCORE_OF_VERDICT = {
    "judge_strict": {"CORRECT": 1.0},
    "judge_lenient": {"CORRECT": 1.0, "PARTIALLY_CORRECT": 1.0},
}
_VERDICT = re.compile(rf"\b(?:{'|'.join(VERDICTS)})\b")


class Reference(NamedTuple):
    """The question and the reference answer that an answer is compared with."""

    question: str
    text: str


@dataclass
class Judge:
    """A language model that grades answers.

    Args:
        url: Base URL of the OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.
        model: The model's name there.
        prompt: The judge's prompt: a shipped one (knowledge, medical) or the path of a .jinja file
            with the fields question, reference and answer.
        cache: JSON Lines file of the verdicts so far.
        api_key_variable: Environment variable with the key; without it no key is sent.
        num_attempts: Number of requests for one verdict before the run ends.
        timeout_s: Longest wait for a reply, in seconds.

    Raises:
        ValueError: An option is out of range, or the prompt is not usable.
    """

    url: str
    model: str
    prompt: str = "knowledge"
    cache: str = "runs/judge.jsonl"
    api_key_variable: str = "OPENAI_API_KEY"
    num_attempts: int = 5
    timeout_s: float = 60.0
    source: str = field(init=False, repr=False, compare=False)
    _template: Template = field(init=False, repr=False, compare=False)
    _verdicts: VerdictCache = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"judge.url is {self.url!r}; it must begin with http:// or https://")
        if self.num_attempts < 1:
            raise ValueError(f"judge.num_attempts is {self.num_attempts}; it must be at least 1")
        if self.timeout_s <= 0:
            raise ValueError(f"judge.timeout_s is {self.timeout_s}; it must be above 0")
        self.source = _source(self.prompt)
        self._template = _template(self.prompt, self.source)
        self._verdicts = VerdictCache(Path(self.cache))

    def verdict(self, answer: str, gold: Reference) -> str:
        """CORRECT, PARTIALLY_CORRECT or INCORRECT; may be called from several threads.

        A reply without any of these words counts as INCORRECT, with a warning.

        Raises:
            RuntimeError: The endpoint gave no reply.
        """
        text = self._template.render(question=gold.question, reference=gold.text, answer=answer)
        key = fingerprint(self.model, text)
        known = self._verdicts.get(key)
        if known is not None:
            return known
        reply = self._endpoint().reply(text)
        found = _VERDICT.findall(reply)
        if not found:
            logger.warning("the judge's reply has no verdict, taken as INCORRECT: %.200r", reply)
        verdict: str = found[-1] if found else "INCORRECT"
        self._verdicts.add(key, verdict, reply)
        return verdict

    def score(self, rule: str, answer: str, gold: Reference) -> float:
        """1 or 0 by a rule, ``judge_strict`` or ``judge_lenient``."""
        return SCORE_OF_VERDICT[rule].get(self.verdict(answer, gold), 0.0)

    def _endpoint(self) -> Endpoint:
        return Endpoint(
            self.url,
            self.model,
            os.environ.get(self.api_key_variable),
            self.num_attempts,
            self.timeout_s,
        )


def reference_gold(row: Demonstration) -> Reference:
    """The question and its reference answer, which must be a non-blank text."""
    if not isinstance(row.answer, str) or not row.answer.strip():
        raise ValueError(f"needs a non-empty string as the answer, not {row.answer!r:.80}")
    return Reference(row.question, row.answer)


def shipped_prompts() -> list[str]:
    """Names of the prompts that come with the package."""
    folder = resources.files("sdft.scorers").joinpath("judge_prompts")
    return sorted(entry.name.removesuffix(".jinja") for entry in folder.iterdir())


def _source(name_or_path: str) -> str:
    if name_or_path in shipped_prompts():
        file = resources.files("sdft.scorers").joinpath("judge_prompts", f"{name_or_path}.jinja")
        return file.read_text("utf-8")
    if Path(name_or_path).is_file():
        return Path(name_or_path).read_text("utf-8")
    raise ValueError(
        f"judge.prompt {name_or_path!r} is neither a shipped prompt "
        f"({', '.join(shipped_prompts())}) nor an existing .jinja file"
    )


def _template(name_or_path: str, source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        used = find_undeclared_variables(environment.parse(source))
    except TemplateError as error:
        raise ValueError(f"judge.prompt {name_or_path}: {error}") from error
    if used != PROMPT_FIELDS:
        raise ValueError(
            f"judge.prompt {name_or_path} uses {', '.join(sorted(used)) or 'no fields'}; it must "
            f"use {', '.join(sorted(PROMPT_FIELDS))}, and these alone"
        )
    return environment.from_string(source)
