"""Rows from a data set on the Hugging Face hub, through a mapping of its columns.

The mapping says for each field of a row which column holds it, or how to write it from the
columns: a Jinja template, rendered in a sandbox. Values of columns are inserted into templates,
never parsed as templates. Only data files are loaded, never a data set's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdft.tasks.rows import row_from
from sdft.types import Demonstration

if TYPE_CHECKING:
    from datasets import Dataset

MAPPED_FIELDS = ("id", "prompt", "demonstration", "answer", "context")
REQUIRED_FIELDS = ("prompt", "demonstration", "answer")

T = TypeVar("T")
Columns = Mapping[str, Any]
FieldReader = Callable[[Columns], Any]


def load_hub_split(
    task: str, hub_id: str, config_name: str | None, revision: str | None, split: str
) -> Dataset:
    """Load one split of a data set from the hub.

    Args:
        task: The task's name, for errors.
        hub_id: Such as ``stanfordnlp/snli``.
        config_name: Of the data set's configuration; None for its default.
        revision: Branch, tag or commit; None for the newest.
        split: The hub's name of the split; slices such as ``train[:500]`` are allowed.

    Raises:
        RuntimeError: It could not be loaded, for whatever reason.
    """
    from datasets import load_dataset  # takes seconds, and most runs need no hub

    try:
        return load_dataset(hub_id, config_name, revision=revision, split=split)
    except Exception as error:  # the library raises many unrelated types
        raise RuntimeError(
            f"task {task!r}: could not load the split {split!r} of the hub data set {hub_id!r} "
            f"(config_name {config_name!r}, revision {revision!r}); check these names and the "
            "network connection, or give `path`, a folder with train.jsonl and validation.jsonl. "
            f"The error was: {error}"
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
        split: Our name of the split; part of the ids that are made up where none is mapped.
        columns: Field -> column or template; None takes the columns named like fields. A column
            of class labels gives the label's name, not its number.
        needs_demonstration: Whether an empty demonstration is an error.

    Raises:
        ValueError: A mapped column is absent, a template fails, or a row breaks the schema.
    """
    names = dataset.column_names
    if columns is None:
        columns = {name: name for name in MAPPED_FIELDS if name in (*names, *REQUIRED_FIELDS)}
    readers = {
        field: _field_reader(source, names, f"task {task!r}: columns: field {field!r}")
        for field, source in columns.items()
    }
    label_names = _label_names(dataset)
    rows = []
    for index, values in zip(indices, dataset.select(indices), strict=True):
        where = f"task {task!r}: {split} row {index}"
        named = {**values, **_named_labels(values, label_names, where)}
        record = {
            field: _evaluated(partial(reader, named), f"{where}: columns: field {field!r}")
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


def matching(rows: Iterable[Columns], condition: str, option: str, split: str) -> list[int]:
    """Indices of the rows for which a condition holds.

    Args:
        rows: The values that the condition may name.
        condition: A Jinja expression, evaluated in a sandbox.
        option: Task and option it comes from, for errors.
        split: The rows' split, for errors.

    Raises:
        ValueError: The expression does not parse, fails on a row, or keeps no row.
    """
    about = f"{option}: {condition!r:.80}"
    holds = _evaluated(
        lambda: _sandbox().compile_expression(condition, undefined_to_none=False),
        f"{about} is broken",
    )
    kept = [
        index
        for index, values in enumerate(rows)
        if _evaluated(partial(_truth, holds, values), f"{about} fails on {split} row {index}")
    ]
    if not kept:
        raise ValueError(f"{about} keeps no row of {split}")
    return kept


def check_columns(columns: Mapping[str, str], task: str) -> None:
    """Check a column mapping as far as that is possible without the data.

    Raises:
        ValueError: An unknown field, a required one left out, or a template that does not parse.
    """
    for field, source in columns.items():
        if field not in MAPPED_FIELDS:
            raise ValueError(
                f"task {task!r}: columns: unknown field {field!r}; "
                f"map any of {', '.join(MAPPED_FIELDS)}"
            )
        if is_template(source):
            _template_reader(source, f"task {task!r}: columns: field {field!r}")
    for field in REQUIRED_FIELDS:
        if field not in columns:
            raise ValueError(f"task {task!r}: columns: field {field!r} is not mapped; add it")


def is_template(source: str) -> bool:
    """Whether a mapping's right side is a template rather than a column's name."""
    return "{{" in source


def _sandbox() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def _field_reader(source: str, names: list[str], where: str) -> FieldReader:
    if is_template(source):
        return _template_reader(source, where)
    if source not in names:
        raise ValueError(
            f"{where}: there is no column {source!r}; "
            f"map the field to one of {', '.join(names)}, or to a template"
        )
    return lambda values: values[source]


def _template_reader(source: str, where: str) -> FieldReader:
    template = _evaluated(
        lambda: _sandbox().from_string(source), f"{where}: the template {source!r:.80} is broken"
    )
    return template.render


def _truth(expression: Callable[[Columns], Any], values: Columns) -> bool:
    return bool(expression(values))  # raises where the value is undefined


def _evaluated(evaluate: Callable[[], T], about: str) -> T:
    try:
        return evaluate()
    except Exception as error:  # an expression may fail in any way
        raise ValueError(f"{about}: {str(error) or type(error).__name__}") from error


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
