"""``sdft fetch CONFIG …``: fetches every public data set that configurations name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from command_line.shipped_configs import with_shipped_configs
from sdft.evaluation.capabilities.suites import FETCHED
from sdft.tasks.generated import SPLITS
from sdft.tasks.hub import load_hub_split
from sdft.tasks.sources import description_names, fetched, read_description
from sdft.tasks.task_spec import TaskSpec


def fetch_main(arguments: Sequence[str]) -> None:
    """Fetch, and print the folder of each data set; without a configuration, list all of them."""
    parser = argparse.ArgumentParser(
        prog="sdft fetch",
        description="Fetch the data of configurations into the cache, where runs read it.",
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="name or file")
    names = parser.parse_args(list(arguments)).configs
    paths = with_shipped_configs([f"--config={name}" for name in names])
    try:
        files = [Path(path.removeprefix("--config=")) for path in paths]
        tasks = [task for file in files for task in (*tasks_of(file), *suites_of(file))]
        lines = list(map(_brought, tasks)) if names else list(map(_listed, description_names()))
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def tasks_of(config: Path) -> Iterator[dict[str, Any]]:
    """The tasks listed in a configuration file itself."""
    data = (yaml.safe_load(config.read_text("utf-8")) or {}).get("data") or {}
    for key in ("tasks", "tasks+"):
        yield from data.get(key) or []


def suites_of(config: Path) -> Iterator[dict[str, Any]]:
    """The benchmarks whose fetched rows a configuration file measures, as tasks."""
    trainer = (yaml.safe_load(config.read_text("utf-8")) or {}).get("trainer") or {}
    for callback in (trainer.get("callbacks") or []) + (trainer.get("callbacks+") or []):
        options = callback.get("init_args") or {}
        if options.get("folder") == str(FETCHED):
            for name in options.get("suites") or []:
                yield {"name": name, "source": f"suite_{name}"}


def _brought(task: dict[str, Any]) -> str:
    name = task.get("name", "")
    if "source" in task:
        return f"{name}: {fetched(task['source'])}"
    if "hub_id" in task:
        spec = TaskSpec(**{key: value for key, value in task.items() if key in _HUB_KEYS})
        for split in (spec.splits or dict(zip(SPLITS, SPLITS, strict=True))).values():
            load_hub_split(spec.name, task["hub_id"], spec.config_name, spec.revision, split)
        return f"{name}: the hub data set {task['hub_id']}, in the hub's own cache"
    return f"{name}: nothing to fetch"


_HUB_KEYS = ("name", "hub_id", "config_name", "revision", "splits")


def _listed(name: str) -> str:
    description = read_description(name)
    return f"{name}: {description.title}. {description.licence}"
