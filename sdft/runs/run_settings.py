"""Which options a resumed run must share with its checkpoint.

A run resumed with another batch size or another order of tasks is neither the old run nor a
new one. Options that only say where, how fast, or how much is logged may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Settings = dict[str, Any]  # option name -> plain JSON value

# The trainer's options that move weights; its others say where and how fast.
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
    """The options of a resolved configuration that alter a run.

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
    """What differs between a checkpoint's settings and those asked for, a line each.

    Args:
        held: The checkpoint's settings, or a value within.
        asked: The configuration's.
        name: Where the value stands; empty for the settings as a whole, of which options that
            only one side knows are left out, since versions of the code come and go.
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
    """A value as it is shown: of a list of tasks the names alone."""
    if _is_list(value) and all(isinstance(entry, Mapping) and "name" in entry for entry in value):
        return [entry["name"] for entry in value]
    return list(value) if _is_list(value) else value
