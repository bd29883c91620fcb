"""How well the untrained model follows a demonstration, by the shape of the teacher's prompt.

    python benchmarks/teacher_shapes.py --rows 24

Greedy accuracy on validation rows of the generated tasks: of the student, who sees the prompt
alone, and of the teacher with every shipped template. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from sdft.models import LoadedModel, load_model
from sdft.prompting import TeacherTemplate, shipped_templates, student_messages
from sdft.rollout import RolloutRequest, SamplingSettings, sample
from sdft.task_spec import TaskSpec
from sdft.tasks import Task, load_task
from sdft.types import Demonstration, Message

TASKS = ("routing", "tool_call", "new_facts")
SETTINGS = SamplingSettings(max_new_tokens=20, temperature=0.0)
Shape = Callable[[Demonstration], list[Message]]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--system_prompt", default="")
    parser.add_argument("--quick", action="store_true", help="the tiny random model, two rows")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.rows = "tiny-random", 2
    loaded = load_model(arguments.model)
    tasks = [load_task(TaskSpec(name=name, generator=name)) for name in TASKS]
    accuracies = {}
    for name, shape in shapes(arguments.system_prompt).items():
        accuracies[name] = {
            task.name: round(accuracy(loaded, task, shape, arguments.rows), 3) for task in tasks
        }
        print(
            f"| {name} | " + " | ".join(f"{100 * x:.0f}" for x in accuracies[name].values()) + " |"
        )
    print(json.dumps(accuracies))


def shapes(system_prompt: str) -> dict[str, Shape]:
    """What is put to the model, by name."""
    found: dict[str, Shape] = {"student alone": lambda row: student_messages(row, system_prompt)}
    for name in shipped_templates():
        template = TeacherTemplate.load(name)
        found[name] = lambda row, template=template: template.messages(row, system_prompt)
    return found


def accuracy(loaded: LoadedModel, task: Task, shape: Shape, num_rows: int) -> float:
    """Mean score over the first validation rows of a task."""
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
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
