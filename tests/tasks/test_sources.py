import hashlib
import json

import pytest
import yaml

from command_line.fetch_data import fetch_main, tasks_of
from sdft.evaluation.capabilities.suites import FETCHED, get_suite
from sdft.scorers.scorer_registry import get_scorer
from sdft.tasks.sources import (
    CONVERTERS,
    MIRROR_VARIABLE,
    FetchError,
    description_names,
    fetched,
    read_description,
)
from sdft.tasks.sources.description import DESCRIPTIONS, RawFile
from sdft.tasks.sources.download import download
from sdft.tasks.task_spec import TaskSpec
from sdft.tasks.tasks import load_task
from tests.conftest import REPOSITORY, SHARED_DATA

SHARED = {
    "banking77": "small_banking77",
    "bfcl": "tooluse_bfcl",
    "biographies": "knowledge_wiki2023bio",
    "chemistry": "science_chemistry",
    "clinc_domain": "small_clinc_domain",
    "pubmedqa": "medical_pubmedqa",
    "snips_json": "small_snips_json",
    "toolalpaca": "tooluse_toolalpaca",
}
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


SUITES = [name for name in description_names() if name.startswith("suite_")]


@pytest.mark.parametrize("name", sorted({*description_names()} - {*SUITES}))
def test_a_public_data_set_becomes_rows_whose_demonstrations_score(name, public_data):
    named = {"huatuo": {"scorer": "contains"}, "gsm8k": {"scorer": "final_number"}}
    task = load_task(TaskSpec(name=name, source=name, **named.get(name, {})))
    assert task.train
    assert task.validation
    assert task.test
    scorer = get_scorer(task.scorer_name)
    scores = [scorer(row.demonstration, row) for row in task.train]
    assert scores == [1.0] * len(scores)


@pytest.mark.parametrize("name", SUITES)
def test_a_public_benchmark_becomes_rows_with_a_right_choice(name, public_data):
    for row in get_suite(name.removeprefix("suite_")).read(FETCHED):
        assert 0 <= row["gold"] < len(row.get("choices", row.get("contexts")))


def test_rows_are_fetched_once_and_read_offline_afterwards(public_data, monkeypatch, capsys):
    folder = fetched("banking77")
    assert len(public_data.asked) == 2
    assert "CC BY 4.0" in capsys.readouterr().err
    monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:1")
    assert fetched("banking77") == folder
    record = json.loads((folder / "source.json").read_text())
    assert record["licence"].startswith("CC BY 4.0")
    assert set(record["rows"]) == {"train", "validation", "test"}
    assert not (folder / "raw").exists()


def test_a_file_that_changed_is_refused_and_the_next_try_starts_anew(public_data, tmp_path):
    (file,) = (public_data.web / "raw.githubusercontent.com").rglob("ori_pqal.json")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(FetchError, match=r"ori_pqal.json: its checksum is [0-9a-f]{64}, and it"):
        fetched("pubmedqa")
    file.write_bytes(content)
    assert (fetched("pubmedqa") / "train.jsonl").is_file()


def test_a_missing_file_and_an_absent_server_are_one_line(public_data, monkeypatch):
    (file,) = (public_data.web / "raw.githubusercontent.com").rglob("ori_pqal.json")
    file.unlink()
    with pytest.raises(FetchError, match=r"ori_pqal.json: the server says 404"):
        fetched("pubmedqa")
    monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"task 'qa': .*refused; fetch where there is a network"):
        load_task(TaskSpec(name="qa", source="pubmedqa"))


def test_a_file_is_known_by_its_name_in_git(public_data, tmp_path):
    content = b"some rows\n"
    (public_data.web / "host").mkdir()
    (public_data.web / "host" / "rows.txt").write_bytes(content)
    name = hashlib.sha1(b"blob 10\0" + content).hexdigest()
    file = RawFile("https://host/rows.txt", git_blob=name)
    download(file, tmp_path / "rows.txt")
    assert (tmp_path / "rows.txt").read_bytes() == content
    with pytest.raises(FetchError, match=f"must be {name[::-1]}"):
        download(RawFile("https://host/rows.txt", git_blob=name[::-1]), tmp_path / "other.txt")
    assert not (tmp_path / "other.txt").exists()


def test_files_that_the_converter_cannot_read_are_one_line(public_data):
    description = public_data.descriptions / "pubmedqa.yaml"
    values = yaml.safe_load(description.read_text())
    values["converter"] = "clinc_domain"
    description.write_text(yaml.safe_dump(values))
    with pytest.raises(FetchError, match=r"source 'pubmedqa': the files are not as its converter"):
        fetched("pubmedqa")


def test_rows_that_are_not_the_described_ones_are_refused(public_data):
    description = public_data.descriptions / "pubmedqa.yaml"
    values = yaml.safe_load(description.read_text())
    values["splits"] = {"train": {"rows": 3, "sha256": "0" * 64}}
    description.write_text(yaml.safe_dump(values))
    with pytest.raises(FetchError, match=r"'pubmedqa': train has \d+ rows with digest"):
        fetched("pubmedqa")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"files": {"a": {"url": "ftp://x", "sha256": "0"}}}, "is not one of http or https"),
        ({"files": {"a": {"url": "http://x"}}}, "give one checksum"),
        ({"files": {}}, "missing"),
        ({"rows": 3}, "unexpected keyword argument 'rows'"),
    ],
)
def test_a_description_of_ones_own_is_checked_with_its_place(values, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=f"mine.yaml: .*{message}"):
        TaskSpec(name="mine", source=str(path))


@pytest.mark.parametrize("text", ["title: {a", "title: a\ntitle: b"])
def test_a_description_that_is_not_valid_yaml_is_named_with_its_line(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml, line [12], column \d+: not valid YAML"):
        read_description(str(tmp_path / "mine.yaml"))


def test_an_unknown_source_is_refused_with_names_like_it():
    with pytest.raises(ValueError, match=r"task 'x': source 'banking7': .*use banking77"):
        TaskSpec(name="x", source="banking7")


@pytest.mark.parametrize("name", description_names())
def test_a_description_pins_its_files_and_says_under_which_licence(name):
    description = read_description(name)
    assert description.converter in CONVERTERS
    assert description.licence
    assert description.cite
    for file in description.files.values():
        assert any(len(part) == 40 for part in file.url.split("/")), f"{file.url} names no commit"
    assert description.splits or description.not_checked


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_configuration_needs_rows_from_outside_the_repository(path):
    for task in tasks_of(path):
        if "path" in task:
            assert (REPOSITORY / task["path"]).resolve().is_relative_to(REPOSITORY), task["path"]
        assert {"path", "source", "hub_id", "generator"} & task.keys()
    assert ".." not in path.read_text("utf-8"), "a path out of the repository"


def test_the_fetch_command_brings_what_configurations_name(public_data, capsys):
    fetch_main(["paper/three_tasks", "quickstart"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("tool_use", "science", "medical"),
        *("tool_call", "new_facts", "routing"),
    ]
    assert lines[-1].endswith("nothing to fetch")
    fetch_main(["capabilities/two_suites"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["hellaswag", "arc_easy"]
    fetch_main([])
    assert f"banking77: Banking77. {read_description('banking77').licence}" in (
        capsys.readouterr().out
    )


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="there is no mirror of the rows to compare")
@pytest.mark.parametrize("name", SHARED)
def test_the_mirror_has_the_rows_that_the_description_selects(name):
    description = read_description(name)
    for split, ids in (description.selected() or {}).items():
        lines = (SHARED_DATA / SHARED[name] / f"{split}.jsonl").read_bytes().splitlines()
        assert len(lines) == len(ids) == description.splits[split].rows
        if name != "biographies":  # its ids count questions here, and rows there
            assert [json.loads(line)["id"] for line in lines] == ids
    assert description.folder.is_relative_to(DESCRIPTIONS)
