"""Compare the options of a resumed run with those of its checkpoint.

A run resumed with another batch size or another order of tasks would be neither the old run nor a
new one. Options that only affect where and how fast it runs, or what it logs, may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Settings = dict[str, Any]  # option name -> plain JSON value

# The trainer's options that change the weights; its others only affect where and how fast it runs.
TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
# Memory, speed and logging. A task's rows are compared by content instead of by path.
HARMLESS = {
    "model.activation_checkpointing",
    "model.micro_batch_size",
    "model.trust_remote_code",
    "data.eval_batch_size",
    "data.tokenizer",
    "path",
}


def run_settings(config: Mapping[str, Any]) -> Settings:
    """The options of a resolved configuration that affect a run's result.

    Args:
        config: The ``fit`` configuration as nested plain values.
    """
    model = config["model"]
    options = {
        "seed_everything": config["seed_everything"],
        "model": model["class_path"],
        **{f"model.{name}": value for name, value in model["init_args"].items()},
        **{f"data.{name}": value for name, value in config["data"].items()},
        **{f"trainer.{name}": config["trainer"][name] for name in TRAINER},
    }
    return {name: value for name, value in options.items() if name not in HARMLESS}


def differences(held: Any, asked: Any, name: str = "") -> list[str]:
    """The differences between a checkpoint's settings and the configuration's, one line each.

    Args:
        held: The checkpoint's settings, or a value in them.
        asked: The configuration's settings, or the value in them.
        name: Name of the value; empty for all settings, of which options that only one side has
            are ignored, since another version of the code may have written them.
    """
    if isinstance(held, Mapping) and isinstance(asked, Mapping):
        names = list({**held, **asked}) if name else [key for key in asked if key in held]
        return [
            line
            for key in names
            if key not in HARMLESS
            for line in differences(held.get(key), asked.get(key), f"{name}.{key}".lstrip("."))
        ]
    if _is_list(held) and _is_list(asked) and len(held) == len(asked):
        return list(_in_lists(held, asked, name))
    return [] if _plain(held) == _plain(asked) else [f"{name}: {_plain(held)} -> {_plain(asked)}"]


def _in_lists(held: Sequence[Any], asked: Sequence[Any], name: str) -> Iterator[str]:
    for index, (ours, theirs) in enumerate(zip(held, asked, strict=True)):
        yield from differences(ours, theirs, f"{name}[{index}]")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _plain(value: Any) -> Any:
    """A value as it is printed; a list of tasks is reduced to their names."""
    if _is_list(value) and all(isinstance(entry, Mapping) and "name" in entry for entry in value):
        return [entry["name"] for entry in value]
    return list(value) if _is_list(value) else value
