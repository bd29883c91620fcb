"""Rows that ask for calls of tools: ToolAlpaca, and the Berkeley Function-Calling Leaderboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sdft.tasks.sources.records import Files, Record, arrow_rows, json_lines, one_turn

TOOL_PROMPT = (
    "Your task is to answer the user's question using available tools. \n"
    "You have access to the following tools:\n{tools}\n\n"
    "Use the following format:\n"
    "Thought: you should always think about what to do\n"
    "Action: the action to take, should be one of the tool names.\n"
    "Action Input: the input to the action, must be in JSON format. All of the action input must "
    "be realistic and from the user.\n\n"
    "Begin!\nQuestion: {question}"
)


def tool_alpaca(files: Files) -> Iterator[Record]:
    """ToolAlpaca's real APIs to train on, the paper's 68 questions to test on.

    Validation has the questions of the authors' later test set that are not among the 68; they
    ask about the same simulated APIs as the test. The demonstration has only the calls.
    """
    for api in json.loads(files["real"].read_text("utf-8")):
        name = re.sub(r"\W+", "_", api["Name"].lower()).strip("_")
        tools = (
            f"Name: {api['Name']}\nDescription: {api['Description']}\n"
            f"Documentation:\n{api['NLDocumentation'].strip()}"
        )
        pairs = zip(api["Instructions"], api["Golden_Answers"], strict=True)
        for index, (question, calls) in enumerate(pairs):
            prompt = TOOL_PROMPT.format(tools=tools, question=question)
            yield _calls_row(f"toolalpaca-train-{name}-{index}", prompt, calls)
    for _, made in _tests(files):
        yield made


def tool_alpaca_authors(files: Files) -> Iterator[Record]:
    """The SDFT authors' training rows, whose demonstrations have thoughts, and the same tests."""
    for index, row in enumerate(arrow_rows(files["train"])):
        made = _calls_row(f"toolalpaca-authors-{index}", row["prompt"], row["golden_answer"])
        yield {**made, "split": "train", "demonstration": "\n".join(row["golden_response"])}
    for split, made in _tests(files):
        yield {**made, "split": split}


def _tests(files: Files) -> Iterator[tuple[str, Record]]:
    paper = json.loads(files["paper_test"].read_text("utf-8"))
    asked = {row["instruction"] for row in paper}
    later = [row for row in arrow_rows(files["later_test"]) if row["instruction"] not in asked]
    for split, rows in (("test", paper), ("validation", later)):
        for index, row in enumerate(rows):
            name = f"toolalpaca-{split}-{index}"
            yield split, _calls_row(name, row["prompt"], row["golden_answer"])


def bfcl(files: Files) -> Iterator[Record]:
    """Single-turn questions of BFCL v4, written in ToolAlpaca's form.

    A file ``CATEGORY`` holds questions and functions, ``CATEGORY-answers`` the accepted values of
    each argument. The demonstration takes the first value of each, and leaves out arguments that
    may be missing.
    """
    for category, path in files.items():
        if category.endswith("-answers"):
            continue
        rows = json_lines(files[f"{category}-answers"])
        answers = {row["id"]: row["ground_truth"] for row in rows}
        for row in json_lines(path):
            tools = "\n".join(map(_function, row["function"]))
            question = row["question"][0][-1]["content"].strip()
            accepted = answers[row["id"]]
            calls = [
                {"Action": name, "Action_Input": json.dumps(_first(values), ensure_ascii=False)}
                for call in accepted
                for name, values in call.items()
            ]
            prompt = TOOL_PROMPT.format(tools=tools, question=question)
            made = _calls_row(f"bfcl-{row['id']}", prompt, calls)
            made["meta"] = {
                "category": category,
                "accepted": accepted,
                "scoring": "tool_actions_accepted",
            }
            yield made


def _calls_row(name: str, prompt: str, calls: list[Record]) -> Record:
    lines = [f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in calls]
    return {
        "id": name,
        "prompt": one_turn(prompt),
        "demonstration": "\n".join(lines),
        "answer": calls,
        "meta": {"scoring": "tool_actions"},
    }


def _function(function: Record) -> str:
    required = function["parameters"].get("required", [])
    described = {
        name: _parameter(value, name in required)
        for name, value in function["parameters"]["properties"].items()
    }
    parameters = json.dumps(described, ensure_ascii=False)
    return f"{function['name']}: {function['description'].strip()}\nParameters: {parameters}"


def _parameter(value: Record, required: bool) -> str:
    parts = ["Required."] if required else []
    parts.append(f"{value['type']}.")
    if "enum" in value:
        parts.append(f"One of: [{', '.join(map(str, value['enum']))}].")
    return " ".join([*parts, value.get("description", "").strip()])


def _first(values: dict[str, list[Any]]) -> Record:
    needed = {name: options for name, options in values.items() if options and "" not in options}
    return {name: _value(options[0]) for name, options in needed.items()}


def _value(option: Any) -> Any:
    if isinstance(option, dict) and all(isinstance(each, list) for each in option.values()):
        return {name: _value(values[0]) for name, values in option.items() if values[0] != ""}
    return [_value(each) for each in option] if isinstance(option, list) else option
