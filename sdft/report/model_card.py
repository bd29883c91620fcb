"""Writes a model card for each exported stage, from the files of its run."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdft.runs.file_values import read_json, read_yaml
from sdft.runs.files import write_bytes_atomically, write_text_atomically

DISTRIBUTIONS = ("sdft-lightning", "torch", "transformers", "lightning", "peft")
TRAINER_OPTIONS = ("precision", "gradient_clip_val", "devices", "num_nodes", "strategy")
"""Options of the trainer that change what is trained."""


def write_model_card(run: Path, export: Path, stage: int) -> None:
    """Write ``README.md``, ``training.yaml`` and the figure beside a stage's weights.

    Args:
        run: The run's directory, with ``config.yaml`` and ``retention.json``.
        export: The directory of the weights.
        stage: Number of stages trained, from 1.

    Raises:
        ValueError: A file of the run is missing or broken.
    """
    config = read_yaml(run / "config.yaml")
    record = read_json(run / "retention.json")
    figure = run / "retention.png"
    text = model_card(config, record, stage, export.name, has_figure=figure.is_file())
    write_text_atomically(export / "README.md", text)
    training = yaml.safe_dump(training_config(config), sort_keys=False, allow_unicode=True)
    write_text_atomically(export / "training.yaml", training)
    if figure.is_file():
        write_bytes_atomically(export / figure.name, figure.read_bytes())


def model_card(
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    stage: int,
    title: str,
    *,
    has_figure: bool,
) -> str:
    """The card as Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        config: The run's resolved configuration.
        record: The content of ``retention.json``.
        stage: Number of stages the weights were trained in, from 1.
        title: The name of the export.
        has_figure: Whether ``retention.png`` is in the card's folder.
    """
    names = list(record["tasks"])
    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader("sdft.report"),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    base = str(record["model"])
    return environment.get_template("model_card.md.jinja").render(
        title=title,
        base_name=base,
        base_model=base if "/" in base and not Path(base).exists() else "",
        method=record["method"],
        stage=stage,
        names=names,
        trained=names[:stage],
        tasks=[_task(task) for task in config["data"]["tasks"]],
        rows=_rows(record, names, stage),
        has_figure=has_figure,
        seed=config["seed_everything"],
        versions=[f"{name} {version(name)}" for name in DISTRIBUTIONS if _is_installed(name)],
        python=platform.python_version(),
    )


def training_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that affect training, without those that are not set."""
    trainer = {name: config["trainer"][name] for name in TRAINER_OPTIONS}
    kept = {
        "seed_everything": config["seed_everything"],
        "trainer": trainer,
        "model": config["model"],
        "data": config["data"],
    }
    return dict(_without_nulls(kept))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _task(task: Mapping[str, Any]) -> dict[str, str]:
    made = {
        "generator": "the generator {}",
        "source": "the public data set {}",
        "hub_id": "{} on the Hugging Face hub",
        "path": "a folder of the one who trained it",
    }
    origin = next(text.format(task[key]) for key, text in made.items() if task.get(key))
    return {"name": task["name"], "rows": origin}


def _rows(record: Mapping[str, Any], names: Sequence[str], stage: int) -> list[dict[str, Any]]:
    rows = [
        {
            "label": f"after {row['after']}" if row["after"] else "before training",
            "cells": _percents(row["accuracy"], names),
        }
        for row in record["rows"]
        if row["stage"] <= stage
    ]
    if stage == len(names) and record.get("test"):
        test = _percents(record["test"]["accuracy"], names)
        rows.append({"label": "test rows", "cells": test})
    return rows


def _percents(accuracy: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    values = (accuracy.get(name) for name in names)
    return ["not measured" if value is None else f"{100 * value:.1f}" for value in values]


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except ModuleNotFoundError:
        return False
    return True
