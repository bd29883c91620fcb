"""Loads rows of a data set on the Hugging Face hub, or of a local folder that ``datasets`` reads.

Only data files are loaded, never a data set's code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sdft.tasks.columns import (
    MAPPED_FIELDS,
    REQUIRED_FIELDS,
    Columns,
    evaluated,
    field_reader,
    matching,
)
from sdft.tasks.rows import CHAT, row_from
from sdft.types import Demonstration

if TYPE_CHECKING:
    from datasets import Dataset


def load_hub_split(
    task: str, hub_id: str, config_name: str | None, revision: str | None, split: str
) -> Dataset:
    """Load one split of a data set from the hub.

    Args:
        task: The task's name, for errors.
        hub_id: Such as ``stanfordnlp/snli``.
        config_name: The data set's configuration; None for its default.
        revision: Branch, tag or commit; None for the newest.
        split: The hub's name of the split; slices such as ``train[:500]`` are allowed.

    Raises:
        ValueError: It could not be loaded, for any reason.
    """
    from datasets import load_dataset  # takes seconds, and most runs need no hub

    about = f"the split {split!r} of the data set {hub_id!r}"
    with _explained(task, about, config_name, revision):
        return load_dataset(hub_id, config_name, revision=revision, split=split)


def split_names(task: str, hub_id: str, config_name: str | None, revision: str | None) -> list[str]:
    """The names of a data set's splits, of which train and validation are needed.

    Raises:
        ValueError: They could not be read, or one of the two is missing.
    """
    from datasets import get_dataset_split_names

    with _explained(task, f"the splits of the data set {hub_id!r}", config_name, revision):
        found: list[str] = get_dataset_split_names(hub_id, config_name, revision=revision)
    if not {"train", "validation"} <= {*found}:
        raise ValueError(
            f"task {task!r}: the data set {hub_id!r} has the splits {', '.join(found)}; say which "
            'are train and validation, such as splits: {train: "train[:90%]", validation: '
            '"train[90%:]"}'
        )
    return found


@contextmanager
def _explained(
    task: str, about: str, config_name: str | None, revision: str | None
) -> Iterator[None]:
    """Turn whatever the library raises into one line."""
    try:
        yield
    except Exception as error:  # of many unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"task {task!r}: could not load {about} (config_name {config_name!r}, revision "
            f"{revision!r}): {reason:.300}; check these names and the network, or give path, a "
            "folder with train and validation rows"
        ) from error


def rows_from_dataset(
    dataset: Dataset,
    indices: Sequence[int],
    task: str,
    split: str,
    columns: Mapping[str, str] | None,
    *,
    needs_demonstration: bool,
) -> list[Demonstration]:
    """Turn rows of a loaded data set into rows of a task.

    Args:
        dataset: One split.
        indices: Which of its rows, from 0.
        task: The name the rows get.
        split: Our name of the split; part of the ids of rows where no id is mapped.
        columns: Field -> column or template; None takes the columns named like fields. A column
            of class labels gives the label's name, not its number.
        needs_demonstration: Whether an empty demonstration is an error.

    Raises:
        ValueError: A mapped column is absent, a template fails, or a row breaks the schema.
    """
    names = dataset.column_names
    if columns is None:
        required = () if CHAT in names else REQUIRED_FIELDS
        columns = {name: name for name in (*MAPPED_FIELDS, CHAT) if name in (*names, *required)}
    readers = {
        field: field_reader(source, names, f"task {task!r}: columns: field {field!r}")
        for field, source in columns.items()
    }
    label_names = _label_names(dataset)
    rows = []
    for index, values in zip(indices, dataset.select(indices), strict=True):
        where = f"task {task!r}: {split} row {index}"
        named = {**values, **_named_labels(values, label_names, where)}
        record = {
            field: evaluated(partial(reader, named), f"{where}: columns: field {field!r}")
            for field, reader in readers.items()
        }
        record["id"] = _id(record.get("id", f"{split}-{index}"))
        rows.append(row_from(record, task, where, needs_demonstration=needs_demonstration))
    return rows


def kept_indices(dataset: Dataset, where: str | None, task: str, split: str) -> list[int]:
    """Indices of the rows for which an expression over the columns holds.

    Args:
        dataset: One split.
        where: A Jinja expression such as ``label != "oos"``; None keeps all rows.
        task: The task's name, for errors.
        split: Our name of the split, for errors.

    Raises:
        ValueError: The expression does not parse, fails on a row, or keeps no row.
    """
    if where is None:
        return list(range(len(dataset)))
    label_names = _label_names(dataset)
    named = (
        {**values, **_named_labels(values, label_names, f"task {task!r}: {split} row {index}")}
        for index, values in enumerate(dataset)
    )
    return matching(named, where, f"task {task!r}: where", split)


def _id(value: Any) -> Any:
    return str(value) if isinstance(value, int) else value


def _label_names(dataset: Dataset) -> dict[str, list[str]]:
    from datasets import ClassLabel

    return {
        column: feature.names
        for column, feature in dataset.features.items()
        if isinstance(feature, ClassLabel)
    }


def _named_labels(
    values: Columns, label_names: Mapping[str, list[str]], where: str
) -> dict[str, str]:
    named = {}
    for column, names in label_names.items():
        number = values[column]
        if number is None or not 0 <= number < len(names):
            raise ValueError(
                f"{where}: column {column!r}: no label has the number {number}; "
                "the split may be unlabelled, so use another one"
            )
        named[column] = names[number]
    return named
