"""The workloads of the cases of `benchmarks/step.py`: models, rows, lengths."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepping.random_models import Shape, number, text, write_random_model

from sdft.model.pretrained import load_model, save_model
from sdft.stages import StagePlan
from sdft.tasks.prompting import TeacherTemplate
from sdft.tasks.sources import fetched
from sdft.types import Demonstration, Message

BATCH_SIZE = 8
TINY = Shape(2048, 32, 2)
TINY_COUNTING = Shape(2048, 32, 2, tied=False)
SMALL = Shape(32_768, 128, 2)
SMALL_COUNTING = Shape(16_384, 128, 2, tied=False)  # as many weights as the small one
MEDIUM = Shape(32_768, 384, 8)
TEMPLATE = "paper"
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The rows that one step reads, and the completions that it writes.

    Args:
        title: Its line in the table.
        model: A transformers directory.
        rows: At least as many rows as all steps read.
        max_new_tokens: Longest completion.
        forced: Whether no completion may end earlier.
        equal_tokens: Whether both sides must have read and written the same number of tokens.
        batch_size: Rows of a step.
        options: Further options of the module.
        data_options: Further options of the data module.
    """

    title: str
    model: Path
    rows: Sequence[Row]
    max_new_tokens: int
    forced: bool = False
    equal_tokens: bool = True
    batch_size: int = BATCH_SIZE
    options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=lambda: {"teacher_template": TEMPLATE})


def random_work(folder: Path, shape: Shape, num_rows: int, length: int) -> Work:
    """Equal forced lengths on a random model: prompts and demonstrations of 32 words."""
    num_weights = write_random_model(folder, shape, known_text())
    generator = random.Random(0)
    rows = [
        row(index, asked_by_user(text(32, generator)), text(32, generator))
        for index in range(num_rows)
    ]
    title = f"random {num_weights / 1e6:.1f}M, T {length}"
    return Work(title, folder, rows, length, forced=True)


def mixed_work(folder: Path, shape: Shape, num_rows: int, longest: tuple[int, int]) -> Work:
    """Lengths as in real data: log-uniform, given for each row by its first word.

    Args:
        folder: The folder for the model.
        shape: Untied, so that the model counts.
        num_rows: Number of rows.
        longest: The longest prompt and the longest completion.
    """
    num_weights = write_random_model(folder, shape, known_text())
    generator = random.Random(0)
    prompt, completion = longest
    rows = []
    for index in range(num_rows):
        asked = log_uniform(1, completion, generator)
        words = log_uniform(10, prompt - 10, generator)  # the chat template adds the rest
        prompt_text = f"{number(asked)} {text(words, generator)}"
        rows.append(row(index, asked_by_user(prompt_text), text(asked, generator)))
    title = f"random {num_weights / 1e6:.1f}M, mixed lengths"
    return Work(title, folder, rows, completion)


def real_work(
    folder: Path, source: str, num_rows: int, length: int, *, forced: bool = True, **fields: Any
) -> Work:
    """Rows of a public data set on SmolLM2-135M-Instruct."""
    if not folder.is_dir():
        loaded = load_model("smollm2-135m-instruct")
        save_model(loaded.model, loaded.tokenizer, folder)
    lines = (fetched(source) / "train.jsonl").read_text(encoding="utf-8").splitlines()[:num_rows]
    found = map(json.loads, lines)
    rows = [row(index, each["prompt"], each["demonstration"]) for index, each in enumerate(found)]
    ends = "T" if forced else "natural, T ≤"
    title = f"SmolLM2 {source.split('_')[0]}, {ends} {length}"
    return Work(title, folder, rows, length, forced=forced, equal_tokens=forced, **fields)


def row(index: int, prompt: list[Message], demonstration: str) -> Row:
    """A row of a JSON Lines file; the gold answer does not matter here."""
    return {
        "id": str(index),
        "prompt": prompt,
        "demonstration": demonstration,
        "answer": demonstration,
    }


def asked_by_user(content: str) -> list[Message]:
    """A chat of one turn."""
    return [Message(role="user", content=content)]


def log_uniform(low: int, high: int, generator: random.Random) -> int:
    """An integer whose logarithm is uniformly distributed."""
    return round(math.exp(generator.uniform(math.log(low), math.log(high))))


def known_text() -> str:
    """Text that a tokenizer should know besides the words: the teacher prompt and the roles."""
    return peer_template() + " user assistant"


def peer_template() -> str:
    """Our prompt template as a pattern for `str.format`, which TRL uses for its own."""
    probe = Demonstration("", "", tuple(asked_by_user("<prompt>")), "<shown>", "")
    (turn,) = TeacherTemplate.load(TEMPLATE).messages(probe)
    plain = turn["content"].replace("{", "{{").replace("}", "}}")
    return plain.replace("<prompt>", "{prompt}").replace("<shown>", "{privileged_context}")


def write_job(folder: Path, work: Work, num_steps: int, threads: int) -> dict[str, Any]:
    """The job of either side, with its rows in a file next to it; see the sides' scripts."""
    rows = folder / "rows"
    rows.mkdir(parents=True)
    for split, chosen in (("train", work.rows), ("validation", [work.rows[0] | {"id": "other"}])):
        lines = "".join(json.dumps(each) + "\n" for each in chosen)
        (rows / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return {
        "folder": str(folder),
        "model": str(work.model),
        "rows": str(rows),
        "peer_rows": [
            {"prompt": each["prompt"], "privileged_context": each["demonstration"]}
            for each in in_order_of_training(work, num_steps)
        ],
        "peer_template": peer_template(),
        "batch_size": work.batch_size,
        "num_steps": num_steps,
        "max_new_tokens": work.max_new_tokens,
        "max_prompt_tokens": 4096,
        "forced": work.forced,
        "threads": threads,
        "method": "SDFTModule",
        "module_options": dict(work.options),
        "data_options": dict(work.data_options),
        "peer_defaults": False,
    }


def in_order_of_training(work: Work, num_steps: int) -> list[Row]:
    """The rows as our data module will draw them, so that a peer reads the same batches."""
    rows, size = work.rows, work.batch_size
    plan = StagePlan(("rows",), (len(rows),), (num_steps * size,), size, seed=0)
    return [rows[index] for batch in plan.batches(0) for _, index in batch]
