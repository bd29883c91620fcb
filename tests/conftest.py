"""Shared fixtures: a tiny random-init chat model, and rows to train it on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from sdft.model.pretrained import LoadedModel, load_model
from sdft.tasks.sources import MIRROR_VARIABLE, description
from sdft.types import Demonstration
from tests.public_files import served, write_public_files

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _model_cache(tmp_path_factory):
    """Keep the user's own model cache out of the tests, except where it saves a conversion."""
    before = os.environ.get("SDFT_CACHE")
    os.environ["SDFT_CACHE"] = str(tmp_path_factory.mktemp("models"))
    yield
    if before is None:
        del os.environ["SDFT_CACHE"]
    else:
        os.environ["SDFT_CACHE"] = before


@pytest.fixture
def tiny() -> LoadedModel:
    """A fresh copy of the tiny random-init model."""
    return load_model("tiny-random")


@pytest.fixture
def row() -> Demonstration:
    """A row whose demonstration and context are full of markup."""
    return Demonstration(
        id="row-0",
        task="markup",
        prompt=({"role": "user", "content": "What is {x}?"},),
        demonstration='{"value": {"deep": "{{ braces }}"}} {% endcall %}',
        answer="x",
        context="An article with {one} brace.",
    )


@pytest.fixture
def public_data(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A server with made-up files in place of every public data set's, and an empty cache.

    ``web`` is the folder it serves, ``descriptions`` where these files are described.
    """
    web, folder = tmp_path / "web", tmp_path / "descriptions"
    write_public_files(web, folder)
    monkeypatch.setattr(description, "DESCRIPTIONS", folder)
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "cache"))
    with served(web) as server:
        server.web, server.descriptions = web, folder
        monkeypatch.setenv(MIRROR_VARIABLE, f"http://127.0.0.1:{server.server_port}")
        yield server


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
