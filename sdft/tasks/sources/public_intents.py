"""Rows of three data sets of short requests: CLINC150, SNIPS and Banking77."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator

from sdft.tasks.sources.records import Files, Record, one_turn

DOMAIN_PROMPT = (
    "Which domain does the request belong to? Choose one from the option.\n"
    "Option: {labels}\nRequest: {text}\nAnswer:"
)
JSON_PROMPT = (
    'Turn the request into one JSON object with the keys "intent" and "slots".\n'
    "Request: {text}\nJSON:"
)
INTENT_PROMPT = (
    "Give the intent label of this online-banking request, in snake_case.\nRequest: {text}\nIntent:"
)


def clinc_domain(files: Files) -> Iterator[Record]:
    """CLINC150's requests with the domain of their intent; those out of scope are left out.

    Larson et al., EMNLP-IJCNLP 2019.
    """
    domains = json.loads(files["domains"].read_text("utf-8"))
    domain_of = {
        intent: domain.replace("_", " ")
        for domain, intents in domains.items()
        for intent in intents
    }
    labels = sorted(set(domain_of.values()))
    for split, rows in json.loads(files["requests"].read_text("utf-8")).items():
        if split.startswith("oos"):
            continue
        for index, (text, intent) in enumerate(rows):
            yield {
                "id": f"clinc_domain-{split}-{index}",
                "prompt": one_turn(DOMAIN_PROMPT.format(labels=", ".join(labels), text=text)),
                "demonstration": domain_of[intent],
                "answer": domain_of[intent],
                "meta": {"intent": intent, "labels": labels, "scoring": "exact_label"},
            }


def snips_json(files: Files) -> Iterator[Record]:
    """SNIPS requests, each with its intent and slots as one JSON object.

    Files are named ``train-INTENT`` and ``test-INTENT``. A slot that occurs twice becomes a list.
    """
    for name, path in files.items():
        split, intent = name.split("-")
        ((_, rows),) = json.loads(_text(path.read_bytes())).items()
        for index, row in enumerate(rows):
            text = " ".join("".join(part["text"] for part in row["data"]).split())
            call = {"intent": intent, "slots": _slots(row["data"])}
            yield {
                "id": f"snips_json-{split}-{intent}-{index}",
                "prompt": one_turn(JSON_PROMPT.format(text=text)),
                "demonstration": json.dumps(call, ensure_ascii=False),
                "answer": call,
                "meta": {"intent": intent, "scoring": "json_equal"},
            }


def _text(content: bytes) -> str:
    """A file's text. One file mixes encodings; the published results read it as Latin-1."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _slots(parts: list[Record]) -> dict[str, str | list[str]]:
    values: dict[str, list[str]] = {}
    for part in parts:
        if "entity" in part:
            values.setdefault(part["entity"], []).append(" ".join(part["text"].split()))
    return {name: found if len(found) > 1 else found[0] for name, found in values.items()}


def banking77(files: Files) -> Iterator[Record]:
    """Banking77's requests with their intents, whose 77 names are not in the prompt.

    Casanueva et al., NLP4ConvAI 2020.
    """
    for split, path in files.items():
        with path.open(encoding="utf-8", newline="") as stream:
            for index, row in enumerate(csv.DictReader(stream)):
                text = " ".join(row["text"].split())
                yield {
                    "id": f"banking77-{split}-{index}",
                    "prompt": one_turn(INTENT_PROMPT.format(text=text)),
                    "demonstration": row["category"],
                    "answer": row["category"],
                    "meta": {"scoring": "exact_label"},
                }
