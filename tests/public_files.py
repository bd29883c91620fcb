"""Files as the public data sets have them, with made-up rows, served from this machine."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import yaml

from sdft.tasks.sources import CONVERTERS, description_names, read_description
from sdft.tasks.sources.description import DESCRIPTIONS, Description

NUM_ROWS = 12  # of each label, or of each file without labels
DOMAINS = {
    "auto_and_commute": ["gas"],
    "banking": ["balance"],
    "credit_cards": ["apr"],
    "home": ["calendar"],
    "kitchen_and_dining": ["recipe"],
    "travel": ["timezone"],
    "utility": ["alarm"],
    "work": ["payday"],
}
INTENTS = [
    *("activate_my_card", "age_limit", "atm_support", "card_arrival", "change_pin"),
    *("exchange_rate", "lost_or_stolen_card", "passcode_forgotten", "terminate_account"),
    "top_up_failed",
]
TOOLS = "find: Finds it.\nParameters: {}"


class Server(SimpleHTTPRequestHandler):
    """Serves a folder, counts what is asked for, and grades as a judge that likes everything."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        answer = {"choices": [{"message": {"content": "CORRECT"}}]}
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """A server of a folder; ``server_port`` and ``asked`` are its attributes."""

    class Handler(Server):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def write_public_files(web: Path, descriptions: Path) -> None:
    """Write every description's files below ``web``, and descriptions of these files.

    They name the same addresses, converters and licences; checksums are those of the made-up
    files, and a selection takes every third row for each split.
    """
    descriptions.mkdir(parents=True)
    shutil.copytree(DESCRIPTIONS / "general_prompts", descriptions / "general_prompts")
    for name in description_names():
        description = read_description(name)
        files = {}
        for key, file in description.files.items():
            place = urlsplit(file.url)
            path = web / place.netloc / place.path.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(name, key, path)
            files[key] = path
        _describe(description, files, descriptions)


def _describe(description: Description, files: dict[str, Path], folder: Path) -> None:
    values: dict[str, Any] = {
        "title": description.title,
        "licence": description.licence,
        "cite": description.cite,
        "converter": description.converter,
        "files": {
            key: {
                "url": description.files[key].url,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for key, path in files.items()
        },
    }
    if description.selection:
        ids = [row["id"] for row in CONVERTERS[description.converter](files)]
        chosen = {"train": ids[::3], "validation": ids[1::3], "test": ids[2::3]}
        if description.name.startswith("suite_"):
            chosen = {"test": ids}
        lines = [line for split, each in chosen.items() for line in (f"[{split} ]", " ".join(each))]
        (folder / description.selection).parent.mkdir(exist_ok=True)
        (folder / description.selection).write_text("\n".join(lines), encoding="utf-8")
        values["selection"] = description.selection
    text = yaml.safe_dump(values, sort_keys=False)
    (folder / f"{description.name}.yaml").write_text(text, encoding="utf-8")


def _write(name: str, key: str, path: Path) -> None:
    if path.suffix == ".arrow":
        table = pa.Table.from_pylist(_arrow_rows(name, key))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif name == "suite_mmlu":
        choices = ",".join(f"choice{n}" for n in range(4))
        path.write_text(f"question,{choices},answer\nHow many?,0,1,2,3,2\n", encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "category"])
            writer.writerows((f"ask {n}", label) for n in range(NUM_ROWS) for label in INTENTS)
    else:
        path.write_text(_text(name, key), encoding="utf-8")


def _text(name: str, key: str) -> str:
    lines = {
        "bfcl": _function_calls,
        "gsm8k": _problems,
        "suite_arc_easy": _choices,
        "suite_winogrande": _blanks,
    }
    if name in lines:
        return "".join(json.dumps(row) + "\n" for row in lines[name](key))
    makers = {
        "clinc_domain": _requests,
        "snips_json": _slots,
        "pubmedqa": _abstracts,
        "huatuo": _questions,
        "biographies": _pages,
        "suite_hellaswag": _continuations,
        "suite_truthfulqa_mc1": _truths,
        "toolalpaca": _apis,
        "toolalpaca_authors": _apis,
    }
    return json.dumps(makers[name](key), ensure_ascii=False)


def _requests(key: str) -> Any:
    if key == "domains":
        return DOMAINS
    intents = [intent for (intent,) in DOMAINS.values()]
    rows = [[f"please {intent} {n}", intent] for n in range(NUM_ROWS) for intent in intents]
    return {"train": rows, "val": rows[:8], "test": rows[:8], "oos_train": [["what", "oos"]]}


def _slots(key: str) -> Any:
    intent = key.split("-")[1]
    parts = [{"text": "add "}, {"text": "Réveil", "entity": "item"}, {"text": " now "}]
    return {intent: [{"data": [*parts, {"text": str(n)}]} for n in range(NUM_ROWS)]}


def _abstracts(_: str) -> Any:
    return {
        str(n): {
            "QUESTION": f"Does {n} help?",
            "CONTEXTS": ["It was tried.", f"In {n} people."],
            "LONG_ANSWER": "It helped.",
            "final_decision": ("yes", "no", "maybe")[n % 3],
            "YEAR": "2001",
        }
        for n in range(NUM_ROWS)
    }


def _questions(_: str) -> Any:
    made = {"Complex_CoT": "Let me think.", "Response": "Rest."}
    return [{"Question": f"What helps against {n}?", **made} for n in range(1000 + NUM_ROWS)]


def _pages(key: str) -> Any:
    return [
        {
            "id": f"{key}_{n}",
            "evidence_text": f"<Ann {n} - Wikipedia {key}_{n}> Ann {n} is a painter of {n} works.",
            "qa_pairs": [
                {"text": f"{ask} Ann {n}?", "output": f"A painter.\nRef: <Ann {n} - Wikipedia x>"}
                for ask in ("Who is", "What does", "What is")
            ],
        }
        for n in range(NUM_ROWS)
    ]


def _apis(key: str) -> Any:
    calls = [{"Action": "find", "Action_Input": '{"what": "it"}'}]
    if key != "real":
        prompts = [{"prompt": f"Find {n}.", "instruction": f"{n}"} for n in range(4)]
        return [{**each, "golden_answer": calls} for each in prompts]
    shared = {"Description": "Finds.", "NLDocumentation": TOOLS}
    asked = {"Instructions": ["Find it.", "Find more."], "Golden_Answers": [calls, calls]}
    return [{"Name": f"Finder {n}", **shared, **asked} for n in range(NUM_ROWS)]


def _choices(_: str) -> Any:
    return [{"query": "Question: What?", "choices": ["this", "that"], "gold": 1}] * NUM_ROWS


def _problems(key: str) -> Any:
    number = 200 + NUM_ROWS if key == "train" else NUM_ROWS
    return [{"question": f"{n} and {n}?", "answer": f"Add.\n#### {2 * n}"} for n in range(number)]


def _blanks(_: str) -> Any:
    filled = ["He saw her and he", "He saw her and she"]
    return [{"context_options": filled, "continuation": "left.", "gold": 0}] * NUM_ROWS


def _continuations(_: str) -> Any:
    row = {"question": "He sits", "choices": {"A": "down.", "B": "up."}, "answer": "B"}
    return {"test": [{**row, "id": n} for n in range(NUM_ROWS)]}


def _truths(_: str) -> Any:
    return [{"question": "Is it so?", "mc1_targets": {"No": 1, "Yes": 0, "Yes, always": 0}}] * 3


def _function_calls(key: str) -> Iterator[Any]:
    category = key.removesuffix("-answers")
    kinds = {"what": {"type": "string", "description": "Thing."}, "far": {"type": "boolean"}}
    for n in range(NUM_ROWS):
        if key != category:
            accepted = {f"find_{n}": {"what": ["it", "this"], "far": ["", True]}}
            yield {"id": f"{category}_{n}", "ground_truth": [accepted]}
            continue
        parameters = {"type": "dict", "required": ["what"], "properties": kinds}
        function = {"name": f"find_{n}", "description": "Finds.", "parameters": parameters}
        question = [[{"role": "user", "content": f"Find {n}."}]]
        yield {"id": f"{category}_{n}", "question": question, "function": [function]}


def _arrow_rows(name: str, key: str) -> list[dict[str, Any]]:
    if name.startswith("toolalpaca"):
        calls = [{"Action": "find", "Action_Input": "{}"}]
        thoughts = {"golden_response": ["I should look.", "Action: find\nAction Input: {}"]}
        made = [{"prompt": f"Find {n}.", "instruction": f"{n}"} for n in range(NUM_ROWS)]
        return [{**row, "golden_answer": calls, **thoughts} for row in made]
    numbers = range({"validation": 6, "test": 4}.get(key, NUM_ROWS))
    if name == "chemistry_authors" or key == "authors_test":
        rows = []
        for n in range(100 + NUM_ROWS if key == "train" else 3):
            turns = [{"role": "user", "content": f"How heavy is {n}?\n\nA: 1\nB: 2"}]
            text = "<reasoning>Heavy.</reasoning>\n<answer>\nB\n</answer>"
            rows.append({"prompt": turns, "messages": turns, "output_text": text, "answer": "B"})
        return rows
    return [
        {
            "prompt": [{"role": "user", "content": f"Question: How heavy is {n}?\nA. 1\nB. 2"}],
            "messages": [{"role": "assistant", "content": "The correct answer is B."}],
            "_answer": "B" if n else "",
        }
        for n in numbers
    ]
