"""HumanEval: a function that the model wrote must pass its tests, run in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdft.sandbox.sandbox import SandboxUnavailable, run_python

SECONDS = 3.0  # time limit for one function's tests, as in the benchmark
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
    """Build the program to run: the problem's header, the model's code, and the tests.

    The code is the first fenced block, or the whole completion. The header is the part of the
    problem before the function: imports, and helpers that answers often leave out.

    Args:
        completion: The model's completion.
        doc: ``code_prompt``, ``test`` and ``entry_point`` of the problem.
    """
    block = _FENCED.search(completion)
    code = completion if block is None else block[1]
    header, _, _ = doc["code_prompt"].rpartition(f"def {doc['entry_point']}(")
    return "\n\n".join([header, code, doc["test"], f"check({doc['entry_point']})\n"])


def pass_at_1(doc: Mapping[str, str], completions: Sequence[str]) -> dict[str, float]:
    """1 if the program with its tests runs to its end, else 0."""
    return {"pass@1": float(run_python(program(completions[0], doc), seconds=SECONDS).ok)}


def check_sandbox() -> None:
    """Check that code can be isolated here, before training starts.

    Raises:
        ValueError: The system lacks what the sandbox needs.
    """
    try:
        run_python("")
    except SandboxUnavailable as error:
        raise ValueError(str(error)) from error
