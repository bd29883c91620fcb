"""Loads tasks: the rows of three splits, and the scorer of completions.

Rows come from a generator, a folder of JSON Lines files, a public data set or the Hugging Face hub.
All of them are checked when the task is loaded, the gold answers against the scorer too, so that
a bad row stops a run before it starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from sdft.scorers.scorer_registry import SCORER_OF_SCORING, SCORERS, Scorer, get_scorer
from sdft.tasks.columns import matching
from sdft.tasks.generated import SPLITS, Split, generate
from sdft.tasks.hub import kept_indices, load_hub_split, rows_from_dataset, split_names
from sdft.tasks.row_files import split_file
from sdft.tasks.rows import check_unique_ids, read_rows
from sdft.tasks.sources import FetchError, fetched
from sdft.tasks.task_spec import TaskSpec
from sdft.types import Demonstration

logger = logging.getLogger(__name__)

__all__ = ["NUM_GENERATED", "SCORER_OF_GENERATOR", "Task", "TaskSpec", "load_task", "load_tasks"]

NUM_GENERATED: dict[Split, int] = {"train": 512, "validation": 64, "test": 64}
SCORER_OF_GENERATOR = {
    "routing": "exact_label",
    "tool_call": "tool_call",
    "new_facts": "contains",
    "topic_tag": "tagged_answer",
}


@dataclass(frozen=True)
class Task:
    """A loaded task.

    Args:
        name: The name in the spec.
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

    def digests(self) -> dict[str, str]:
        """A short digest of each split's rows in order, which changes with the data."""
        return {split: _digest(getattr(self, split)) for split in SPLITS}


Rows = tuple[Demonstration, ...]
Splits = dict[str, Rows]


def load_tasks(specs: Sequence[TaskSpec], seed: int = 0) -> tuple[Task, ...]:
    """Load tasks in the order given.

    Raises:
        ValueError: There is no task, a name is given twice, or :func:`load_task` fails.
    """
    check_task_names([spec.name for spec in specs])
    return tuple(load_task(spec, seed) for spec in specs)


def check_task_names(names: Sequence[str]) -> None:
    """Raise a ValueError if there is no name, or one is given twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise ValueError("there are no tasks; list at least one")
    if twice:
        raise ValueError(f"task names given twice: {', '.join(twice)}; give each task its own name")


def load_task(spec: TaskSpec, seed: int = 0) -> Task:
    """Load a task's rows and check all of them.

    Args:
        spec: What to load.
        seed: Chooses the rows if fewer are asked for than exist, and seeds generators.

    Raises:
        FileNotFoundError: The folder, or a file it must have, does not exist.
        ValueError: A data set that cannot be loaded, a bad row, a gold answer that does not suit
            the scorer, fewer rows than asked for, or no scorer.
        FetchError: A public data set could not be fetched, or is not what it must be.
    """
    splits, source = _load_splits(spec, seed)
    if spec.prompts_only:
        splits["train"] = tuple(replace(row, demonstration="") for row in splits["train"])
    for split, rows in splits.items():
        check_unique_ids(rows, spec.name, split)
    scorer_name = spec.scorer or _default_scorer(spec, splits)
    scorer = get_scorer(scorer_name, spec.judge)
    for split in SPLITS:
        if not _is_prompts(spec, split):
            splits[split] = _scorable(splits[split], spec, split, scorer)
    return Task(
        name=spec.name,
        scorer_name=scorer_name,
        scorer=scorer,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        source=source,
    )


def _scorable(rows: Rows, spec: TaskSpec, split: Split, scorer: Scorer) -> Rows:
    """The rows whose gold answers the scorer can compare with; the number dropped is logged."""
    kept, refused = [], []
    for row in rows:
        try:
            scorer.gold(row)
            kept.append(row)
        except ValueError as error:
            refused.append(f"task {spec.name!r}, {split}: {error}")
    if refused and (spec.unscorable == "error" or not kept):
        raise ValueError(
            f"{refused[0]}\n{len(refused)} of {len(rows)} {split} rows are refused; correct them, "
            "take another scorer, or set the task's unscorable to drop"
        )
    if refused:
        logger.warning("dropped %d of %d rows; %s", len(refused), len(rows), refused[0])
    return tuple(kept)


def _load_splits(spec: TaskSpec, seed: int) -> tuple[Splits, str]:
    if spec.generator is not None:
        return (
            _generated_splits(spec, spec.generator, seed),
            f"made by the generator {spec.generator!r} with seed {seed}",
        )
    if spec.path is not None:
        folder = Path(spec.path).expanduser()
        return _folder_splits(spec, folder, seed), f"read from the folder {folder}"
    if spec.source is not None:
        return _fetched_splits(spec, spec.source, seed)
    assert spec.hub_id is not None  # a spec without any source is refused when it is made
    revision = "its newest revision" if spec.revision is None else f"revision {spec.revision}"
    return (
        _hub_splits(spec, str(Path(spec.hub_id).expanduser()), seed),
        f"read from the hub data set {spec.hub_id!r} at {revision}",
    )


def _fetched_splits(spec: TaskSpec, source: str, seed: int) -> tuple[Splits, str]:
    try:
        folder = fetched(source)
    except FetchError as error:
        raise FetchError(f"task {spec.name!r}: {error}") from error
    return _folder_splits(spec, folder, seed), f"the public data set {folder.name}"


def _generated_splits(spec: TaskSpec, generator: str, seed: int) -> Splits:
    splits: Splits = {}
    for split in SPLITS:
        number = spec.num_rows(split)
        number = NUM_GENERATED[split] if number is None else number
        try:
            rows = generate(generator, split, number, seed, **(spec.generator_options or {}))
        except ValueError as error:
            raise ValueError(f"task {spec.name!r}: {error}") from error
        splits[split] = tuple(replace(row, task=spec.name) for row in rows)
    return splits


def check_folder(spec: TaskSpec) -> None:
    """Check that a task's folder, if it has one, holds training and validation rows.

    Raises:
        FileNotFoundError: It does not.
    """
    if spec.path is None:
        return
    folder = Path(spec.path).expanduser()
    if not folder.is_dir():
        absolute = "" if folder.is_absolute() else f" (looked for {folder.absolute()})"
        raise FileNotFoundError(
            f"task {spec.name!r}: path {str(folder)!r} is not a folder{absolute}; give a folder "
            "with train.jsonl and validation.jsonl"
        )
    for split in ("train", "validation"):
        if split_file(folder, split) is None:
            held = ", ".join(sorted(each.name for each in folder.iterdir())) or "nothing"
            raise FileNotFoundError(
                f"task {spec.name!r}: {folder} has no {split} rows; it needs {split}.jsonl, .json, "
                f".csv, .tsv, .parquet or .arrow, and holds {held:.200}"
            )


def _folder_splits(spec: TaskSpec, folder: Path, seed: int) -> Splits:
    check_folder(spec)
    splits: Splits = {}
    for split in SPLITS:
        path = split_file(folder, split)
        rows: list[Demonstration] = []
        if path is not None:
            rows = read_rows(
                path,
                spec.name,
                needs_demonstration=split == "train" and not spec.prompts_only,
                needs_answer=not _is_prompts(spec, split),
                context_field=spec.context_field,
                columns=spec.columns,
            )
        kept = _kept(rows, spec, split)
        splits[split] = tuple(kept[index] for index in _chosen(len(kept), spec, split, seed))
    return splits


def _kept(rows: list[Demonstration], spec: TaskSpec, split: Split) -> list[Demonstration]:
    """The rows for which the task's condition holds."""
    if spec.path_where is None or not rows:
        return rows
    named = ({field.name: getattr(row, field.name) for field in fields(row)} for row in rows)
    option = f"task {spec.name!r}: path_where"
    return [rows[index] for index in matching(named, spec.path_where, option, split)]


def _hub_splits(spec: TaskSpec, hub_id: str, seed: int) -> Splits:
    if spec.splits is None:
        found = split_names(spec.name, hub_id, spec.config_name, spec.revision)
        names = {str(split): str(split) for split in SPLITS if split in found}
    else:
        names = spec.splits
    splits: Splits = dict.fromkeys(SPLITS, ())
    for split in SPLITS:
        if split not in names:
            _chosen(0, spec, split, seed)  # an error if rows of it were asked for
            continue
        dataset = load_hub_split(spec.name, hub_id, spec.config_name, spec.revision, names[split])
        kept = kept_indices(dataset, spec.where, spec.name, split)
        splits[split] = tuple(
            rows_from_dataset(
                dataset,
                [kept[index] for index in _chosen(len(kept), spec, split, seed)],
                spec.name,
                split,
                spec.columns,
                needs_demonstration=split == "train" and not spec.prompts_only,
            )
        )
    return splits


def _is_prompts(spec: TaskSpec, split: Split) -> bool:
    return split == "train" and spec.prompts_only


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


def _digest(rows: Sequence[Demonstration]) -> str:
    values = [(row.id, row.prompt, row.demonstration, row.answer, row.context) for row in rows]
    text = json.dumps(values, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _default_scorer(spec: TaskSpec, splits: Splits) -> str:
    if spec.generator is not None:
        return SCORER_OF_GENERATOR[spec.generator]
    scorings = {str(row.meta.get("scoring")) for rows in splits.values() for row in rows}
    known = SCORER_OF_SCORING.keys() & scorings
    if len(scorings) != 1 or not known:
        raise ValueError(
            f"task {spec.name!r} has no scorer, and its rows do not agree on a known one in "
            f"meta.scoring (found {', '.join(sorted(scorings)[:5])}); "
            f"set scorer to one of {', '.join(SCORERS)}"
        )
    return SCORER_OF_SCORING[known.pop()]
