"""A task: its rows in three splits, and the scorer of its completions.

Rows come from a generator, from a folder of JSON Lines files, or from the Hugging Face hub. All
of them are checked when the task is loaded, the gold answers against the scorer too, so that a
bad row stops a run before it starts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdft.generated import GENERATORS, SPLITS, Split, generate
from sdft.hub import check_columns, load_hub_split, rows_from_dataset
from sdft.rows import check_unique_ids, read_rows
from sdft.scorers import SCORER_OF_SCORING, SCORERS, Scorer, check_row, get_scorer
from sdft.types import Demonstration

NUM_GENERATED: dict[Split, int] = {"train": 512, "validation": 64, "test": 64}
SCORER_OF_GENERATOR = {"routing": "exact_label", "tool_call": "tool_call", "new_facts": "contains"}

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_HUB_ONLY = ("revision", "config_name", "columns", "splits")


@dataclass
class TaskSpec:
    """Where a task's rows come from and how its completions are scored.

    Give one source: ``generator``, ``path``, ``hub_id``, or ``path`` and ``hub_id``, where the
    folder is used if it exists and the hub if not.

    Args:
        name: The task's name in metrics, files and figures: letters, digits, ``_``, ``.``, ``-``.
        scorer: Name of the rule that scores completions. None takes the generator's own, or the
            one that all rows name in ``meta.scoring``.
        generator: A generated task: routing, tool_call or new_facts.
        path: A folder with train.jsonl, validation.jsonl and, if wanted, test.jsonl; relative to
            the working directory.
        hub_id: A data set on the Hugging Face hub, such as ``PolyAI/banking77``.
        revision: The hub data set's branch, tag or commit.
        config_name: The hub data set's configuration.
        columns: For each of id, prompt, demonstration, answer and context, the hub data set's
            column, or a Jinja template over the columns (a text with ``{{``). None takes the
            columns of these names. Rows without an id are numbered.
        splits: For each of train, validation and test, the hub's split, such as
            ``train[:500]``; test may be left out. None takes the splits of these names.
        num_train: How many training rows to use, drawn by the seed; None uses all. For a
            generated task, how many to make; None makes 512.
        num_validation: The same for validation rows; None makes 64.
        num_test: The same for test rows; None makes 64.
        context_field: Dotted path of the value in a JSON Lines row that only the teacher may
            read, such as ``meta.document``. None takes the field ``context``.

    Raises:
        ValueError: The name, the combination of sources or an option is not usable.
    """

    name: str
    scorer: str | None = None
    generator: str | None = None
    path: str | None = None
    hub_id: str | None = None
    revision: str | None = None
    config_name: str | None = None
    columns: dict[str, str] | None = None
    splits: dict[str, str] | None = None
    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    context_field: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not self.name.strip("."):
            raise ValueError(
                f"task name {self.name!r:.80} cannot name files; use letters, digits, '_', '.', '-'"
            )
        if self.scorer is not None:
            get_scorer(self.scorer)
        self._check_source()
        self._check_options()

    def num_rows(self, split: Split) -> int | None:
        """How many rows of a split are asked for; None means no number was given."""
        return {
            "train": self.num_train,
            "validation": self.num_validation,
            "test": self.num_test,
        }[split]

    def _check_source(self) -> None:
        if self.generator is None and self.path is None and self.hub_id is None:
            raise ValueError(
                f"task {self.name!r} has no source; give it a generator, a path or a hub_id"
            )
        if self.generator is None:
            return
        if self.path is not None or self.hub_id is not None:
            raise ValueError(
                f"task {self.name!r} has two sources: a generator and a path or hub_id; keep one"
            )
        if self.generator not in GENERATORS:
            raise ValueError(
                f"task {self.name!r}: unknown generator {self.generator!r}; "
                f"use one of {', '.join(GENERATORS)}"
            )

    def _check_options(self) -> None:
        given = {option for option, value in vars(self).items() if value is not None}
        unused = [option for option in _HUB_ONLY if option in given and self.hub_id is None]
        if self.context_field is not None and self.path is None:
            unused.append("context_field")
        if unused:
            raise ValueError(
                f"task {self.name!r}: {', '.join(unused)} would have no effect: context_field "
                f"belongs to a path, {', '.join(_HUB_ONLY)} to a hub_id"
            )
        for split in SPLITS:
            number = self.num_rows(split)
            if number is not None and number < 1:
                raise ValueError(f"task {self.name!r}: num_{split} is {number}; use 1 or more")
        if self.columns is not None:
            check_columns(self.columns, self.name)
        self._check_splits()

    def _check_splits(self) -> None:
        if self.splits is None:
            return
        if not {"train", "validation"} <= self.splits.keys() <= set(SPLITS):
            raise ValueError(
                f"task {self.name!r}: splits names {', '.join(self.splits) or 'nothing'}; "
                "it must name train and validation, and may name test"
            )


@dataclass(frozen=True)
class Task:
    """A loaded task.

    Args:
        name: As the spec has it.
        scorer_name: The scorer's name.
        scorer: (completion, row) -> score in [0, 1].
        train: Rows to learn from; each has a demonstration.
        validation: Rows of the accuracy matrix.
        test: Rows scored once at the end; may be empty.
        source: A sentence that says where the rows came from.
    """

    name: str
    scorer_name: str
    scorer: Scorer
    train: tuple[Demonstration, ...]
    validation: tuple[Demonstration, ...]
    test: tuple[Demonstration, ...]
    source: str


Splits = dict[Split, tuple[Demonstration, ...]]


def load_tasks(specs: Sequence[TaskSpec], seed: int = 0) -> tuple[Task, ...]:
    """Load tasks in the order given.

    Raises:
        ValueError: No task, a name given twice, or what :func:`load_task` raises.
    """
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise ValueError("there are no tasks; list at least one")
    if twice:
        raise ValueError(f"task names given twice: {', '.join(twice)}; give each task its own name")
    return tuple(load_task(spec, seed) for spec in specs)


def load_task(spec: TaskSpec, seed: int = 0) -> Task:
    """Load a task's rows and check all of them.

    Args:
        spec: What to load.
        seed: Chooses the rows where fewer than there are were asked for, and seeds generators.

    Raises:
        FileNotFoundError: The folder, or a file it must have, does not exist.
        ValueError: A bad row, a gold answer that does not suit the scorer, fewer rows than
            asked for, or no scorer.
        RuntimeError: The hub data set could not be loaded.
    """
    splits, source = _load_splits(spec, seed)
    check_unique_ids(splits, spec.name)
    scorer_name = spec.scorer or _default_scorer(spec, splits)
    for split, rows in splits.items():
        for row in rows:
            try:
                check_row(scorer_name, row)
            except ValueError as error:
                raise ValueError(f"task {spec.name!r}, {split}: {error}") from error
    return Task(
        name=spec.name,
        scorer_name=scorer_name,
        scorer=get_scorer(scorer_name),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        source=source,
    )


def _load_splits(spec: TaskSpec, seed: int) -> tuple[Splits, str]:
    if spec.generator is not None:
        return (
            _generated_splits(spec, spec.generator, seed),
            f"made by the generator {spec.generator!r} with seed {seed}",
        )
    folder = None if spec.path is None else Path(spec.path)
    if folder is not None and (folder.is_dir() or spec.hub_id is None):
        passed_over = "" if spec.hub_id is None else f"; not from the hub data set {spec.hub_id!r}"
        return _folder_splits(spec, folder, seed), f"read from the folder {folder}{passed_over}"
    assert spec.hub_id is not None  # a spec without any source is refused when it is made
    passed_over = "" if folder is None else f", for the folder {folder} does not exist"
    revision = "its newest revision" if spec.revision is None else f"revision {spec.revision}"
    return (
        _hub_splits(spec, spec.hub_id, seed),
        f"read from the hub data set {spec.hub_id!r} at {revision}{passed_over}",
    )


def _generated_splits(spec: TaskSpec, generator: str, seed: int) -> Splits:
    splits: Splits = {}
    for split in SPLITS:
        number = spec.num_rows(split)
        rows = generate(generator, split, NUM_GENERATED[split] if number is None else number, seed)
        splits[split] = tuple(replace(row, task=spec.name) for row in rows)
    return splits


def _folder_splits(spec: TaskSpec, folder: Path, seed: int) -> Splits:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"task {spec.name!r}: path {str(folder)!r} is not a folder (looked for "
            f"{folder.absolute()}); give a folder with train.jsonl and validation.jsonl"
        )
    splits: Splits = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        rows: list[Demonstration] = []
        if path.exists() or split != "test":
            rows = read_rows(
                path,
                spec.name,
                needs_demonstration=split == "train",
                context_field=spec.context_field,
            )
        splits[split] = tuple(rows[index] for index in _chosen(len(rows), spec, split, seed))
    return splits


def _hub_splits(spec: TaskSpec, hub_id: str, seed: int) -> Splits:
    names = {split: split for split in SPLITS} if spec.splits is None else spec.splits
    splits: Splits = {}
    for split in SPLITS:
        rows: list[Demonstration] = []
        if split in names:
            dataset = load_hub_split(
                spec.name, hub_id, spec.config_name, spec.revision, names[split]
            )
            rows = rows_from_dataset(
                dataset.select(_chosen(len(dataset), spec, split, seed)),
                spec.name,
                split,
                spec.columns,
                needs_demonstration=split == "train",
            )
        elif spec.num_rows(split) is not None:
            _chosen(0, spec, split, seed)
        splits[split] = tuple(rows)
    return splits


def _chosen(num_present: int, spec: TaskSpec, split: Split, seed: int) -> list[int]:
    """Which rows of a split to use, ascending: a larger number keeps those of a smaller one."""
    number = spec.num_rows(split)
    if number is None:
        return list(range(num_present))
    if number > num_present:
        raise ValueError(
            f"task {spec.name!r}: num_{split} asks for {number} rows, but there are {num_present}; "
            "ask for fewer, or for none in particular to use all"
        )
    order = list(range(num_present))
    random.Random(f"{seed}/{split}").shuffle(order)
    return sorted(order[:number])


def _default_scorer(spec: TaskSpec, splits: Splits) -> str:
    if spec.generator is not None:
        return SCORER_OF_GENERATOR[spec.generator]
    scorings = {row.meta.get("scoring") for rows in splits.values() for row in rows}
    scoring = scorings.pop() if len(scorings) == 1 else None
    if scoring not in SCORER_OF_SCORING:
        raise ValueError(
            f"task {spec.name!r} has no scorer, and its rows do not agree on a known one in "
            f"meta.scoring; set scorer to one of {', '.join(SCORERS)}"
        )
    return SCORER_OF_SCORING[scoring]
