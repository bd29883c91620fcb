"""The notebook is run cell by cell, on the tiny model."""

import json

import pytest
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"
SMALL = {
    "MODEL": "tiny-random",
    "NUM_TRAIN": 40,
    "NUM_VALIDATION": 4,
    "MAX_NEW_TOKENS": 4,
}


def code_cells():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_trains_two_stages_and_asks_before_and_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, cell in enumerate(code_cells()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert names.keys() >= SMALL.keys()
            names.update(SMALL)
    assert [row["stage"] for row in names["tracker"].rows] == [0, 1, 2]
    assert names["before"].keys() == names["after"].keys() == {"tool_call", "routing"}
    assert isinstance(names["figure"], Figure)
    saved = AutoModelForCausalLM.from_pretrained("runs/notebook/model").state_dict()
    for name, weight in names["module"].student.state_dict().items():
        assert torch.equal(saved[name], weight), name


def test_the_notebook_holds_no_output():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells())
