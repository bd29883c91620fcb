"""Measures how well the untrained model follows a demonstration, by prompt template.

    python benchmarks/teacher_shapes.py --rows 24 [--config configs/smollm2/three_public_tasks.yaml]

Prints greedy accuracy in percent on validation rows of the generated tasks, or of a
configuration's, with the mean number of prompt tokens in brackets: for the student, which reads the
prompt alone, and for the teacher with every shipped prompt template. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import yaml

from sdft.model.pretrained import LoadedModel, load_model
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.tasks.prompting import TeacherTemplate, shipped_templates, student_messages
from sdft.tasks.task_spec import TaskSpec
from sdft.tasks.tasks import Task, load_task
from sdft.types import Demonstration, Message

TASKS = ("routing", "tool_call", "new_facts")
SETTINGS = SamplingSettings(max_new_tokens=32, temperature=0.0)
Shape = Callable[[Demonstration], list[Message]]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--system_prompt", default="")
    parser.add_argument("--config", type=Path, help="whose tasks to read")
    parser.add_argument("--quick", action="store_true", help="the tiny random model, two rows")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.rows = "tiny-random", 2
    loaded = load_model(arguments.model)
    specs = [TaskSpec(name=name, generator=name) for name in TASKS]
    if arguments.config is not None:
        content = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
        specs = [TaskSpec(**each) for each in content["data"]["tasks"]]
    tasks = [load_task(spec) for spec in specs]
    figures = {}
    for name, shape in shapes(arguments.system_prompt).items():
        found = figures[name] = {
            task.name: measure(loaded, task, shape, arguments.rows) for task in tasks
        }
        cells = [f"{100 * each['accuracy']:.0f} ({each['tokens']:.0f})" for each in found.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    print(json.dumps(figures))


def shapes(system_prompt: str) -> dict[str, Shape]:
    """The prompts for the model, by name."""
    found: dict[str, Shape] = {"student alone": lambda row: student_messages(row, system_prompt)}
    for name in shipped_templates():
        template = TeacherTemplate.load(name)
        found[name] = lambda row, template=template: template.messages(row, system_prompt)
    return found


def measure(loaded: LoadedModel, task: Task, shape: Shape, num_rows: int) -> dict[str, float]:
    """Mean score over the first validation rows of a task, and mean tokens of their prompts."""
    rows = task.validation[:num_rows]
    prompts = [
        loaded.tokenizer.apply_chat_template(
            shape(row), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for row in rows
    ]
    rollout = sample(loaded.model, RolloutRequest(prompts, SETTINGS, end_ids=loaded.end_ids))
    answers = loaded.tokenizer.batch_decode(rollout.completions, skip_special_tokens=True)
    scores = [task.scorer(answer, row) for answer, row in zip(answers, rows, strict=True)]
    return {
        "accuracy": round(statistics.mean(scores), 3),
        "tokens": round(statistics.mean(map(len, prompts)), 1),
    }


if __name__ == "__main__":
    main()
