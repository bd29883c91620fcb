"""Old names of options are refused with the new ones; new ones are left alone."""

import re

import pytest

from command_line.renamed_keys import RENAMED, refuse_renamed
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("inner", ["", "init_args."])
def test_an_old_flag_is_refused_in_one_line_with_the_new_name(old, inner):
    group, _, name = old.partition(".")
    flag = f"--{group}.{inner}{name or 'option'}"
    for arguments in (["fit", f"{flag}=1"], ["fit", flag, "1"]):
        with pytest.raises(SystemExit) as refused:
            refuse_renamed(arguments)
        assert str(refused.value) == f"error: {flag}: {old} is now {RENAMED[old]}"


@pytest.mark.parametrize("given", ["--config={}", "-c={}", "--config {}"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: {init_args: {teacher_rate: 0.1}}", "model.teacher_rate is now model.teacher.rate"),
        ("model: {teacher: base}", "model.teacher is now model.teacher.kind: base"),
        ("fit: {openings: {teacher_samples_every: 4}}", "openings is now preambles"),
    ],
)
def test_an_old_key_in_a_config_is_refused_with_the_file(given, text, complaint, tmp_path):
    config = tmp_path / "old.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit, match=rf"^error: {re.escape(str(config))}: {complaint}$"):
        refuse_renamed(["fit", *given.format(config).split()])


def test_a_teacher_named_by_a_word_is_refused_and_a_mapping_is_not():
    with pytest.raises(SystemExit, match=r"model\.teacher is now model\.teacher\.kind: base"):
        refuse_renamed(["fit", "--model.teacher", "base"])
    refuse_renamed(["fit", "--model.teacher", "{kind: base}", "--model.teacher.kind=base"])


def test_no_shipped_config_has_an_old_name():
    configs = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    assert len(configs) > 30
    for config in configs:
        refuse_renamed(["fit", f"--config={config}"])


@pytest.mark.parametrize("config", ["nowhere.yaml", "{not yaml", "model: [1, 2]"])
def test_what_is_no_config_is_left_to_the_parser(config):
    refuse_renamed(["fit", f"--config={config}"])


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    config = tmp_path / "twice.yaml"
    config.write_text("model: {lora: null}\ndata:\n  batch_size: 4\n  batch_size: 8\n")
    place = f"error: {config}, line 4, column 3: not valid YAML: 'batch_size' is given twice"
    with pytest.raises(SystemExit, match=rf"^{re.escape(place)}$"):
        refuse_renamed(["fit", f"--config={config}"])


def test_a_merged_key_may_be_overridden():
    merged = "{a: &a {x: 1, y: 2}, b: &b {<<: *a, x: 3}, c: {<<: *b, x: 4}}"
    refuse_renamed(["fit", f"--config={merged}"])
