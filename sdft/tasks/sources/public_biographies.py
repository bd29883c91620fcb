"""Questions about people whose Wikipedia page was new in autumn 2023, with its first lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from sdft.tasks.sources.records import Files, Record, one_turn

_PAGE = re.compile(r"<(?P<title>.*) - Wikipedia \S+> (?P<text>.*)", re.DOTALL)


def biographies(files: Files) -> Iterator[Record]:
    """Every question of every page; the page is ``meta.document``.

    Zhang et al., "Self-Tuning: Instructing LLMs to Effectively Acquire New Knowledge", ACL 2025.
    The texts are Wikipedia's; questions and answers appear to be machine-generated.
    """
    for path in files.values():
        for page in json.loads(path.read_text("utf-8")):
            match = _PAGE.fullmatch(page["evidence_text"])
            if match is None:
                raise ValueError(f"{path.name}: page {page['id']}: no tag '<TITLE - Wikipedia …>'")
            document = f"{match['title']}\n{match['text'].strip()}"
            for index, pair in enumerate(page["qa_pairs"]):
                answer = pair["output"].split("\nRef: ")[0].strip()
                yield {
                    "id": f"wiki2023bio-{page['id']}-{index}",
                    "prompt": one_turn(pair["text"].strip()),
                    "demonstration": answer,
                    "answer": answer,
                    "meta": {
                        "doc_id": page["id"],
                        "title": match["title"],
                        "document": document,
                        "scoring": "qa_em_f1",
                    },
                }
