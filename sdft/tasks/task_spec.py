"""The options of a task: where its rows come from and how it is scored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sdft.keyword_options import check_options
from sdft.scorers.judge import Judge
from sdft.scorers.scorer_registry import get_scorer
from sdft.tasks.columns import check_columns, compiled_condition
from sdft.tasks.generated import GENERATORS, SPLITS, Split
from sdft.tasks.prompting import TEACHER_CONTEXTS, TeacherContext
from sdft.tasks.sources import read_description, shipped_rows

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_SOURCES = ("generator", "path", "source", "hub_id")
_FOLDER_ONLY = ("path_where", "context_field")
_HUB_ONLY = ("revision", "config_name", "where", "splits")


@dataclass
class TaskSpec:
    """Where a task's rows come from and how its completions are scored.

    Give one of ``generator``, ``path``, ``source`` and ``hub_id``.

    Args:
        name: The task's name in metrics, files and figures: at most 100 letters, digits, ``_``,
            ``.``, ``-``.
        scorer: Name of the rule that scores completions. None takes the generator's own, or the
            one that all rows name in ``meta.scoring``.
        generator: A generated task: routing, tool_call, new_facts or topic_tag.
        generator_options: Options of the generator, such as ``num_entities`` of new_facts.
        path: A folder with train.jsonl, validation.jsonl and optionally test.jsonl, or files of
            another format (docs/tasks.md); relative to the working directory.
        source: A public data set by the name of its description in ``sdft/tasks/sources``, such as
            ``banking77``, or the path of a description of your own. It is fetched, checked and
            converted at its first use, and read from the cache from then on. The rows of
            ``general_prompts`` come with the package.
        hub_id: A data set on the Hugging Face hub, such as ``PolyAI/banking77``, or a local
            folder that ``datasets`` reads.
        revision: The hub data set's branch, tag or commit.
        config_name: The hub data set's configuration.
        columns: For each of id, prompt, demonstration, answer and context, the data set's
            or path's column, or a Jinja template over the columns (a text with ``{{``). None takes
            the columns of these names. Rows without an id are numbered.
        where: A Jinja expression over the hub's columns, such as ``label != "oos"``; rows for
            which it does not hold are left out. None keeps all.
        splits: For each of train, validation and test, the hub's split, such as
            ``train[:500]``; test may be left out. None takes the splits of these names.
        num_train: How many training rows to use, drawn by the seed; None uses all. For a
            generated task, how many to make; None makes 512.
        num_validation: The same for validation rows; None makes 64.
        num_test: The same for test rows; None makes 64.
        path_where: A Jinja expression over the rows of a path or source (id, prompt,
            demonstration, answer, context and meta), such as ``answer in ["yes", "no"]``; rows
            for which it does not hold are left out. None keeps all.
        context_field: Dotted path of the value in a JSON Lines row that only the teacher may
            read, such as ``meta.document``. None takes the field ``context``.
        teacher_context: What the teacher is shown of this task's rows: demonstration, context or
            both. None takes the data module's.
        judge: The language model that grades answers, for the scorers judge_strict and
            judge_lenient.
        unscorable: What to do with a row whose answer the scorer cannot compare with: error, or
            drop (with a report).
        prompts_only: Train on the rows' prompts alone: a demonstration may be missing, and is left
            out where there is one. For methods that need no demonstrations, such as re-invoke.

    Raises:
        ValueError: The name, the combination of sources or an option is not usable.
    """

    name: str
    scorer: str | None = None
    generator: str | None = None
    generator_options: dict[str, int] | None = None
    path: str | None = None
    source: str | None = None
    hub_id: str | None = None
    revision: str | None = None
    config_name: str | None = None
    columns: dict[str, str] | None = None
    where: str | None = None
    splits: dict[str, str] | None = None
    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    path_where: str | None = None
    context_field: str | None = None
    teacher_context: TeacherContext | None = None
    judge: Judge | None = None
    unscorable: Literal["error", "drop"] = "error"
    prompts_only: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not self.name.strip("."):
            raise ValueError(
                f"task name {self.name!r:.80} cannot name files; "
                "use at most 100 letters, digits, '_', '.', '-'"
            )
        self._check_scorer()
        self._check_source()
        self._check_options()

    def num_rows(self, split: Split) -> int | None:
        """The number of rows of a split that is asked for; None if none is given."""
        return {
            "train": self.num_train,
            "validation": self.num_validation,
            "test": self.num_test,
        }[split]

    def _check_scorer(self) -> None:
        try:
            if self.scorer is not None:
                get_scorer(self.scorer, self.judge)
            elif self.judge is not None:
                raise ValueError("a judge without a scorer; use judge_strict or judge_lenient")
        except ValueError as error:
            raise ValueError(f"task {self.name!r}: {error}") from error

    def _check_source(self) -> None:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"task {self.name!r} has {' and '.join(given) or 'no rows'}: give it one of "
                f"{', '.join(_SOURCES)}"
            )
        if self.generator is not None and self.generator not in GENERATORS:
            raise ValueError(
                f"task {self.name!r}: unknown generator {self.generator!r}; "
                f"use one of {', '.join(GENERATORS)}"
            )
        if self.generator is not None:
            check_options(
                GENERATORS[self.generator],
                self.generator_options or {},
                f"task {self.name!r}: generator {self.generator}",
                given=("split", "num_rows", "seed"),
            )
        if self.source is not None and shipped_rows(self.source) is None:
            try:
                read_description(self.source)
            except ValueError as error:
                raise ValueError(f"task {self.name!r}: {error}") from error

    def _check_options(self) -> None:
        self._check_effects()
        for split in SPLITS:
            number = self.num_rows(split)
            if number is not None and number < 1:
                raise ValueError(f"task {self.name!r}: num_{split} is {number}; use 1 or more")
        if self.unscorable not in ("error", "drop"):
            raise ValueError(
                f"task {self.name!r}: unscorable is {self.unscorable!r:.80}; use error or drop"
            )
        if self.teacher_context not in (None, *TEACHER_CONTEXTS):
            raise ValueError(
                f"task {self.name!r}: teacher_context is {self.teacher_context!r:.80}; "
                f"use one of {', '.join(TEACHER_CONTEXTS)}"
            )
        if self.columns is not None:
            check_columns(self.columns, self.name)
        for option in ("where", "path_where"):
            if (condition := getattr(self, option)) is not None:
                compiled_condition(condition, f"task {self.name!r}: {option}")
        self._check_splits()

    def _check_effects(self) -> None:
        given = {option for option, value in vars(self).items() if value is not None}
        unused = [option for option in _HUB_ONLY if option in given and self.hub_id is None]
        if not {"path", "source"} & given:
            unused += [option for option in _FOLDER_ONLY if option in given]
        if self.generator_options is not None and self.generator is None:
            unused.append("generator_options")
        if self.columns is not None and not {"path", "hub_id"} & given:
            unused.append("columns")
        if unused:
            raise ValueError(
                f"task {self.name!r}: {', '.join(unused)} would have no effect: "
                f"{', '.join(_FOLDER_ONLY)} belong to a path or source, {', '.join(_HUB_ONLY)} to "
                "a hub_id, columns to a path or hub_id, generator_options to a generator"
            )

    def _check_splits(self) -> None:
        if self.splits is None:
            return
        if not {"train", "validation"} <= self.splits.keys() <= set(SPLITS):
            raise ValueError(
                f"task {self.name!r}: splits names {', '.join(self.splits) or 'nothing'}; "
                "it must name train and validation, and may name test"
            )
