import copy

import pytest

from lightning_modules.options import resolved
from sdft.runs.run_settings import differences, run_settings

CONFIG = {
    "seed_everything": 1,
    "model": {
        "class_path": "lightning_modules.SDFTModule",
        "init_args": {"teacher": {"kind": "ema"}, "micro_batch_size": None, "lora": None},
    },
    "data": {
        "tasks": [
            {"name": "one", "path": "here/one", "num_train": 8},
            {"name": "two", "path": "here/two", "num_train": 8},
        ],
        "batch_size": 4,
        "eval_batch_size": 32,
    },
    "trainer": {
        "precision": None, "gradient_clip_val": 1.0, "gradient_clip_algorithm": None, "devices": 1
    },
}  # fmt: skip


def changed(**places):
    """The configuration with other values, by dotted path."""
    config = copy.deepcopy(CONFIG)
    for place, value in places.items():
        *path, name = place.split("__")
        target = config
        for key in path:
            target = target[int(key) if isinstance(target, list) else key]
        target[name] = value
    return config


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"seed_everything": 2}, ["seed_everything: 1 -> 2"]),
        ({"model__class_path": "SFT"}, ["model: lightning_modules.SDFTModule -> SFT"]),
        ({"model__init_args__teacher": {"kind": "base"}}, ["model.teacher.kind: ema -> base"]),
        ({"data__batch_size": 8}, ["data.batch_size: 4 -> 8"]),
        ({"data__tasks__1__num_train": 9}, ["data.tasks[1].num_train: 8 -> 9"]),
        ({"data__tasks": CONFIG["data"]["tasks"][:1]}, ["data.tasks: ['one', 'two'] -> ['one']"]),
        ({"trainer__gradient_clip_val": None}, ["trainer.gradient_clip_val: 1.0 -> None"]),
        ({"model__init_args__lora": {"r": 4}}, ["model.lora: None -> {'r': 4}"]),
        (
            {"data__tasks": CONFIG["data"]["tasks"][::-1]},
            ["data.tasks[0].name: one -> two", "data.tasks[1].name: two -> one"],
        ),
    ],
)
def test_what_alters_a_run_is_listed(change, lines):
    held, asked = run_settings(CONFIG), run_settings(changed(**change))
    assert differences(held, asked) == lines


@pytest.mark.parametrize(
    "change",
    [
        {"model__init_args__micro_batch_size": 2},
        {"data__eval_batch_size": 1},
        {"data__tasks__0__path": "moved/one"},  # its rows are compared instead
        {"trainer__devices": [1]},
        {"model__init_args__an_option_of_a_later_version": 3},
    ],
)
def test_what_leaves_a_run_as_it_is_passes(change):
    assert differences(run_settings(CONFIG), run_settings(changed(**change))) == []


@pytest.mark.parametrize(
    ("held", "asked", "lines"),
    [
        ({"teacher": {"kind": "ema"}}, {"teacher": {"rate": 0.01, "update_every": 1}}, []),
        (
            {"teacher": {"kind": "ema"}},
            {"teacher": {"kind": "ema", "rate": 0.02}},
            ["model.teacher.rate: 0.01 -> 0.02"],
        ),
        ({"teacher": {"kind": "base"}}, {"teacher": {"kind": "base"}}, []),
        (
            {"divergence": "jsd", "divergence_options": None},
            {"divergence": "jsd", "divergence_options": {"beta": 0.5, "clip": None}},
            [],
        ),
        (
            {"rollout_engine": "in_place", "rollout_engine_options": None},
            {"rollout_engine": "in_place", "rollout_engine_options": {"dtype": "bfloat16"}},
            ["model.rollout_engine_options.dtype: float32 -> bfloat16"],
        ),
        ({"divergence": "of_a_later_version"}, {"divergence": "of_a_later_version"}, []),
    ],
)
def test_a_default_that_is_written_out_is_no_change(held, asked, lines):
    held, asked = ({f"model.{name}": each[name] for name in each} for each in (held, asked))
    assert differences(resolved(held), resolved(asked)) == lines
