"""A data set of the hub, from a server on this machine that answers as the hub does."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tests.conftest import REPOSITORY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BLOB = "b" * 40
ROWS = [{"q": f"Which {index}", "a": f"team{index}"} for index in range(8)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TASK = {
    "name": "mine",
    "hub_id": "some/rows",
    "revision": COMMIT,
    "splits": {"train": "train[:4]", "validation": "train[4:6]"},
    "columns": {"prompt": "{{ q }}?", "demonstration": "a", "answer": "a"},
    "scorer": "exact_label",
}
LOAD = """
import json, sys
from sdft.tasks.task_spec import TaskSpec
from sdft.tasks.tasks import load_task
task = load_task(TaskSpec(**json.loads(sys.argv[1])))
print([[row.prompt[0]["content"], row.answer] for row in (*task.train, *task.validation)])
"""


class Hub(BaseHTTPRequestHandler):
    """One data set at one commit, as a file of JSON lines."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/some/rows/tree/"):
            self.answer([{"type": "file", "path": "train.jsonl", "size": 1, "oid": BLOB}])
        elif path.startswith("/api/datasets/some/rows"):
            files = [{"rfilename": "train.jsonl"}]
            self.answer({"id": "some/rows", "sha": COMMIT, "siblings": files})
        elif path == f"/datasets/some/rows/resolve/{COMMIT}/train.jsonl":
            self.send(200, CONTENT, {"ETag": f'"{BLOB}"', "X-Repo-Commit": COMMIT})
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def call(tmp_path, *arguments, **variables):
    """Run Python in an environment with an empty hub cache: the library reads it at import."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment | variables,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_hub_data_set_is_fetched_once_and_read_offline_afterwards(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"data": {"tasks": [TASK]}}), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        done = call(tmp_path, REPOSITORY / "train.py", "fetch", config, **online)
        assert done.stdout == "mine: the hub data set some/rows, in the hub's own cache\n", done
        server.shutdown()
    done = call(tmp_path, "-c", LOAD, json.dumps(TASK), HF_HUB_OFFLINE="1")
    expected = [[f"Which {index}?", f"team{index}"] for index in range(6)]
    assert done.stdout == f"{expected}\n", done.stderr


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"data": {"tasks": [TASK]}}), encoding="utf-8")
    done = call(tmp_path, REPOSITORY / "train.py", "fetch", config, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    error = done.stderr[done.stderr.index("error: ") :]
    assert error.startswith("error: task 'mine': could not load the split 'train[:4]' of the")
    assert "Traceback" not in error
