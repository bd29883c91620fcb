"""Maps the columns of a source to the fields of a row.

A mapping names a column for each field, or a Jinja template over the columns, which is rendered in
a sandbox. Values of columns are inserted into templates, never parsed as templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, TypeVar

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAPPED_FIELDS = ("id", "prompt", "demonstration", "answer", "context")
REQUIRED_FIELDS = ("prompt", "demonstration", "answer")

T = TypeVar("T")
Columns = Mapping[str, Any]
FieldReader = Callable[[Columns], Any]


def mapped(record: Columns, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """The fields of a row, read from a record's columns.

    Args:
        record: Column -> value.
        columns: Field -> column or template.
        where: The record's place, for errors.

    Raises:
        ValueError: A column is absent, or a template fails.
    """
    return {
        field: evaluated(
            partial(field_reader(source, list(record), f"{where}: columns: {field!r}"), record),
            f"{where}: columns: field {field!r}",
        )
        for field, source in columns.items()
    }


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
    about, holds = f"{option}: {condition!r:.80}", compiled_condition(condition, option)
    kept = [
        index
        for index, values in enumerate(rows)
        if evaluated(partial(_truth, holds, values), f"{about} fails on {split} row {index}")
    ]
    if not kept:
        raise ValueError(f"{about} keeps no row of {split}")
    return kept


def compiled_condition(condition: str, option: str) -> Callable[..., Any]:
    """A condition on a row's values, evaluated in a sandbox.

    Args:
        condition: A Jinja expression.
        option: Task and option it comes from, for errors.

    Raises:
        ValueError: The expression does not parse.
    """
    return evaluated(
        lambda: _sandbox().compile_expression(condition, undefined_to_none=False),
        f"{option}: {condition!r:.80} is broken; give an expression such as 'answer == \"no\"'",
    )


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


def field_reader(source: str, names: list[str], where: str) -> FieldReader:
    """A function that reads a field from a record's columns."""
    if is_template(source):
        return _template_reader(source, where)
    if source not in names:
        raise ValueError(
            f"{where}: there is no column {source!r}; "
            f"map the field to one of {', '.join(names)}, or to a template"
        )
    return lambda values: values[source]


def _template_reader(source: str, where: str) -> FieldReader:
    about = f"{where}: the template {source!r:.80} is broken"
    render: FieldReader = evaluated(lambda: _template(source), about).render
    return render


@lru_cache(maxsize=64)
def _template(source: str) -> Template:
    return _sandbox().from_string(source)


def _truth(expression: Callable[[Columns], Any], values: Columns) -> bool:
    return bool(expression(values))  # raises where the value is undefined


def evaluated(evaluate: Callable[[], T], about: str) -> T:
    """The value of an expression; whatever goes wrong is a ValueError."""
    try:
        return evaluate()
    except Exception as error:  # an expression can fail in any way
        raise ValueError(f"{about}: {str(error) or type(error).__name__}") from error
