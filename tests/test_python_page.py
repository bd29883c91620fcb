"""The scripts of docs/python.md, run as they stand."""

import json
import re

import pytest

from sdft.model.pretrained import load_model
from tests.conftest import REPOSITORY, write_rows

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.DOTALL)
CAPITALS = [("Peru", "Lima"), ("Chile", "Santiago"), ("Cuba", "Havana"), ("Kenya", "Nairobi")]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with a model and a task of one's own."""
    loaded = load_model("tiny-random")
    loaded.model.save_pretrained(tmp_path / "my-model")
    loaded.tokenizer.save_pretrained(tmp_path / "my-model")
    rows = [
        {"prompt": f"What is the capital of {land}?", "demonstration": f"{city}.", "answer": city}
        for land, city in CAPITALS * 3
    ]
    for split in ("train", "validation"):
        numbered = [{"id": f"{split}-{number}", **row} for number, row in enumerate(rows)]
        write_rows(tmp_path / "capitals" / f"{split}.jsonl", numbered)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs_from_top_to_bottom_and_its_script_resumes(desk, capsys):
    names = {}
    for block in BLOCKS:
        exec(block, names)
    record = json.loads((desk / "run" / "retention.json").read_text())
    assert [row["after"] for row in record["rows"]] == [None, "capitals", "routing"]
    steps = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\d+ \w+ ", line)]
    assert [line.split()[:2] for line in steps] == [
        ["1", "capitals"], ["2", "capitals"], ["3", "routing"], ["4", "routing"],
    ]  # fmt: skip
    assert (desk / "exported" / "model.safetensors").exists()
    assert json.loads((desk / "own" / "retention.json").read_text())["method"] == "plain SFT"

    exec(BLOCKS[0], {})  # finished: it resumes behind the last step and trains nothing
    assert not re.search(r"^\d+ (capitals|routing) ", capsys.readouterr().out, re.MULTILINE)
    assert json.loads((desk / "run" / "retention.json").read_text()) == record


def test_the_first_script_has_about_twenty_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 21
