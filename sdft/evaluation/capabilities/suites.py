"""The benchmarks: their rows, their prompts, and the metric that is their score."""

from __future__ import annotations

import io
import string
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from sdft.evaluation.capabilities import human_eval
from sdft.tasks.rows import read_rows
from sdft.tasks.sources import fetched
from sdft.types import Demonstration

FETCHED = Path("fetched")  # instead of a folder: the public rows, downloaded if needed
Doc = dict[str, Any]

SENTENCE_INSTRUCTIONS = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)


@dataclass(frozen=True, slots=True)
class Suite:
    """A benchmark.

    Args:
        name: Name in configs; its local rows are in ``suite_<name>/test.jsonl``.
        hub_task: The harness's own task, whose rows come from the hub.
        score: The metric that is the suite's score.
        doc: Converts a local row to the fields that the task reads.
        config: Returns the harness's configuration of the task for local rows.
        runs_code: Whether scoring runs code that the model wrote.
    """

    name: str
    hub_task: str
    score: str
    doc: Callable[[Demonstration], Doc]
    config: Callable[[], Mapping[str, Any]]
    runs_code: bool = False

    def read(self, folder: Path, num_rows: int | None = None) -> list[Doc]:
        """Read the local rows.

        Args:
            folder: Folder with ``suite_<name>/test.jsonl``; :data:`FETCHED` for the public rows.
            num_rows: Number of first rows to keep; None keeps all.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A row does not have the form that the suite needs.
        """
        name = f"suite_{self.name}"
        path = (fetched(name) if folder == FETCHED else folder / name) / "test.jsonl"
        docs = []
        for row in read_rows(path, self.name, needs_demonstration=False)[:num_rows]:
            try:
                docs.append(self.doc(row))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, row {row.id!r}: not a row of the suite {self.name}: {error!r}"
                ) from error
        return docs


def _choices(row: Demonstration) -> Doc:
    """Choices compared by the likelihood of their texts after the context."""
    meta = row.meta
    return _with_gold(row, {"context": meta["context"], "choices": list(meta["choices"])})


def _letters(row: Demonstration) -> Doc:
    """Lettered choices in the context, compared by the likelihood of their letters (MMLU)."""
    choices = row.meta["choices"]
    letters = list(string.ascii_uppercase[: len(choices)])
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    context = "\n".join([row.meta["context"].strip(), *lines, "Answer:"])
    return _with_gold(row, {"context": context, "choices": letters})


def _filled_blank(row: Demonstration) -> Doc:
    """Contexts compared by the likelihood of what follows them (WinoGrande)."""
    meta = row.meta
    contexts = list(meta["partial_contexts"])
    _with_gold(row, {"choices": contexts})
    return {"contexts": contexts, "continuation": meta["continuation"], "gold": meta["gold"]}


def _with_gold(row: Demonstration, doc: Doc) -> Doc:
    gold = row.meta["gold"]
    if gold not in range(len(doc["choices"])):
        raise ValueError(f"gold is {gold}, there are {len(doc['choices'])} choices")
    return doc | {"gold": gold}


def _instructions(row: Demonstration) -> Doc:
    """A prompt and the instructions to check in the answer (IFEval)."""
    instructions = list(row.answer["instruction_id_list"])
    if SENTENCE_INSTRUCTIONS.intersection(instructions) and not _has_sentence_data():
        raise ValueError(
            "its check splits sentences with data of nltk that is not here; fetch it once with "
            "`python -m nltk.downloader punkt_tab`, or keep fewer rows with num_rows"
        )
    return {
        "key": row.id,
        "prompt": row.question,
        "instruction_id_list": instructions,
        "kwargs": list(row.answer["kwargs"]),
    }


@cache
def _has_sentence_data() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def _function(row: Demonstration) -> Doc:
    """A function to complete and its tests (HumanEval)."""
    tests = {name: row.answer[name] for name in ("test", "entry_point")}
    return {"code_prompt": row.meta["code_prompt"], **tests}


def _chosen(*metrics: str, **other: str) -> dict[str, Any]:
    """A task whose choices are compared by their likelihood."""
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_mean(metric) for metric in metrics],
        **other,
    }


def _blank_chosen() -> dict[str, Any]:
    """A task whose contexts are compared by the likelihood of what follows."""
    reads = {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
    return _chosen("acc", **reads)


def _answered() -> dict[str, Any]:
    """A task whose answers are checked instruction by instruction."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it tries a download
        from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results

    levels = {"prompt_level": "mean", "inst_level": agg_inst_level_acc}
    return {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "key",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 1280},
        "process_results": process_results,
        "metric_list": [
            _mean(f"{level}_{kind}_acc", aggregation)
            for level, aggregation in levels.items()
            for kind in ("strict", "loose")
        ],
    }


def _written() -> dict[str, Any]:
    """A task whose answers are run."""
    return {**human_eval.TASK, "process_results": human_eval.pass_at_1}


def _mean(metric: str, aggregation: Any = "mean") -> dict[str, Any]:
    return {"metric": metric, "aggregation": aggregation, "higher_is_better": True}


_NORMALISED = partial(_chosen, "acc", "acc_norm")

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("hellaswag", "hellaswag", "acc_norm", _choices, _NORMALISED),
        Suite("truthfulqa_mc1", "truthfulqa_mc1", "acc", _choices, partial(_chosen, "acc")),
        Suite("mmlu", "mmlu", "acc", _letters, partial(_chosen, "acc")),
        Suite("ifeval", "ifeval", "prompt_level_strict_acc", _instructions, _answered),
        Suite("winogrande", "winogrande", "acc", _filled_blank, _blank_chosen),
        Suite("humaneval", "humaneval", "pass@1", _function, _written, runs_code=True),
        Suite("arc_easy", "arc_easy", "acc", _choices, _NORMALISED),
        Suite("arc_challenge", "arc_challenge", "acc_norm", _choices, _NORMALISED),
    )
}


def get_suite(name: str) -> Suite:
    """The suite with this name.

    Raises:
        ValueError: There is no such suite; the message lists all names.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; use some of {', '.join(SUITES)}")
    return SUITES[name]
