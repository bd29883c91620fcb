"""HumanEval: a function that the model wrote must pass its tests, run in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdft.sandbox.sandbox import SandboxUnavailable, run_python

SECONDS = 3.0  # for one function's tests, as the benchmark has it
_FENCED = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)

TASK: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "Complete this Python function. Give the whole function in one Python code "
    "block.\n\n{{ code_prompt }}",
    "doc_to_target": "test",
    "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 1024},
    "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
}


def program(completion: str, doc: Mapping[str, str]) -> str:
    """The model's code with the problem's preamble before it and its tests behind.

    The code is the first fenced block, or the whole completion. The preamble is what the problem
    has above the function: imports, and helpers that answers often leave out.

    Args:
        completion: What the model wrote.
        doc: ``code_prompt``, ``test`` and ``entry_point`` of the problem.
    """
    block = _FENCED.search(completion)
    code = completion if block is None else block[1]
    preamble, _, _ = doc["code_prompt"].rpartition(f"def {doc['entry_point']}(")
    return "\n\n".join([preamble, code, doc["test"], f"check({doc['entry_point']})\n"])


def pass_at_1(doc: Mapping[str, str], completions: Sequence[str]) -> dict[str, float]:
    """1 if the program runs to its end."""
    return {"pass@1": float(run_python(program(completions[0], doc), seconds=SECONDS).ok)}


def check_sandbox() -> None:
    """Refuse where code cannot be isolated, before hours of training.

    Raises:
        ValueError: The system lacks what the sandbox needs.
    """
    try:
        run_python("")
    except SandboxUnavailable as error:
        raise ValueError(str(error)) from error
