"""Every experiment's configuration is read and dry-run: two rows a split on the tiny model."""

import json

import pytest
import yaml

from callbacks import CapabilityTracker, PassAtK
from sdft.tasks.sources import read_description
from tests.child_runs import run, run_ranks
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
PAPER = [
    *("science", "science_authors", "tool_use", "tool_use_authors"),
    *("pubmedqa", "medical", "knowledge", "three_tasks"),
]
SMALL = [
    "gsm8k",
    "science",
    "tool_use",
    "medical",
    "knowledge",
    "knowledge_generated",
    "three_tasks",
]
EXPERIMENTS = [
    (CONFIGS / "quickstart.yaml",),
    (CONFIGS / "smollm2" / "quickstart_sdft.yaml",),
    tuple(CONFIGS / "smollm2" / f"{name}.yaml" for name in ("quickstart_sdft", "quickstart_lora")),
    (CONFIGS / "smollm2" / "quickstart_longer.yaml",),
    (CONFIGS / "smollm2" / "three_public_tasks.yaml",),
    (CONFIGS / "smollm2" / "clinc_snips_banking.yaml",),
    tuple(
        CONFIGS / "smollm2" / f"{name}.yaml" for name in ("small", "short_knowledge", "biographies")
    ),
    *((CONFIGS / "paper" / "qwen7b.yaml", CONFIGS / "paper" / f"{name}.yaml") for name in PAPER),
    tuple(CONFIGS / "paper" / f"{name}.yaml" for name in ("qwen7b", "science", "one_h200")),
    *((CONFIGS / "smollm2" / "small.yaml", CONFIGS / "smollm2" / f"{name}.yaml") for name in SMALL),
    *((path,) for path in sorted((CONFIGS / "gpu").glob("*.yaml"))),
]
KNOWLEDGE = CONFIGS / "smollm2" / "knowledge.yaml"


def read(path):
    return yaml.safe_load(path.read_text("utf-8"))


def tasks_of(configs):
    """The tasks of the one configuration that names any."""
    (tasks,) = [
        data["tasks"] for path in configs if "tasks" in (data := read(path).get("data", {}))
    ]
    return tasks


def dry_run(tmp_path, data_server, *configs, command="fit"):
    """Run with two fetched rows a split and two tokens a completion; the run's folder.

    What is sharded over several GPUs runs on two processes.
    """
    tasks = tasks_of(configs)
    few = {"num_train": 2, "num_validation": 2, "num_test": 2}
    for task in tasks:
        task |= few
        if "judge" in task:
            task["judge"] |= {
                "url": f"http://127.0.0.1:{data_server.server_port}/v1",
                "cache": str(tmp_path / "verdicts.jsonl"),
            }
    overlay = {
        "model": {
            "class_path": "lightning_modules.SDFTModule",
            "init_args": {"pretrained": "tiny-random", "max_new_tokens": 2},
        },
        # A byte is a token here.
        "data": {
            "tasks": tasks,
            "batch_size": 2,
            "epochs_per_stage": 1,
            "examples_per_stage": None,
            "max_prompt_tokens": 30000,
        },
        "trainer": {"accelerator": "cpu"},
    }
    behind = tmp_path / "dry.yaml"
    behind.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    arguments = [command, *(f"--config={path}" for path in (*configs, behind))]
    arguments.append(f"--run_dir={tmp_path / 'run'}")
    log = tmp_path / "log"
    if any("strategy" in read(path).get("trainer", {}) for path in configs):
        size = "--trainer.strategy.init_args.data_parallel_size=2"
        code = run_ranks(*arguments, size, log=log, num_ranks=2)
    else:
        code = run(*arguments, log=log)
    assert code == 0, log.read_text()
    return tmp_path / "run"


def num_steps(task, data):
    """Optimizer steps of a task's stage; of a source with a filter, those of all its rows."""
    rows = task.get("num_train")
    if rows is None:
        described = read_description(task["source"]).splits
        rows = described["train"].rows if described else 4000  # the others are larger
    examples = data.get("examples_per_stage") or rows * data.get("epochs_per_stage", 1)
    return -(-examples // data.get("batch_size", 32))


@pytest.mark.parametrize(
    "configs", EXPERIMENTS, ids=[f"{path.parent.name}-{path.stem}" for *_, path in EXPERIMENTS]
)
def test_no_stage_of_an_experiment_is_all_warm_up(configs):
    data, options = {}, {}
    for path in configs:
        data |= read(path).get("data", {})
        options |= read(path).get("model", {}).get("init_args", {})
    steps = {task["name"]: num_steps(task, data) for task in data["tasks"]}
    assert min(steps.values()) > 2 * options.get("warmup_steps", 10), steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "configs", EXPERIMENTS, ids=[f"{path.parent.name}-{path.stem}" for *_, path in EXPERIMENTS]
)
def test_an_experiment_runs(configs, tmp_path, public_data):
    record = json.loads((dry_run(tmp_path, public_data, *configs) / "retention.json").read_text())
    names = [task["name"] for task in tasks_of(configs)]
    assert record["tasks"] == names
    assert len(record["rows"]) == len(names) + 1
    assert set(record["test"]["accuracy"]) == set(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["article_only", "answer_only", "oracle_rag"])
def test_a_teacher_context_is_put_behind_a_knowledge_experiment(name, tmp_path, public_data):
    overlay = CONFIGS / "knowledge" / f"{name}.yaml"
    command = "validate" if name == "oracle_rag" else "fit"
    configs = (CONFIGS / "smollm2" / "small.yaml", KNOWLEDGE, overlay)
    dry_run(tmp_path, public_data, *configs, command=command)
    printed = (tmp_path / "log").read_text()
    assert "accuracy" in printed


def test_every_configuration_of_the_experiments_is_tried():
    tried = {path for configs in EXPERIMENTS for path in configs}
    folders = ("paper", "smollm2", "gpu")
    assert {path for name in folders for path in (CONFIGS / name).glob("*.yaml")} <= tried


def test_the_papers_model_on_one_h200_trains_all_weights():
    options = read(CONFIGS / "paper" / "one_h200.yaml")["model"]["init_args"]
    assert options == {"memory": "lean"}
    assert "lora" not in read(CONFIGS / "gpu" / "qwen2.5-7b_one_h200.yaml")["model"]["init_args"]


def test_capabilities_from_fetched_rows_are_an_option_away(public_data):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: requirements-evaluation.txt")
    for name in ("local", "hub", "two_suites"):
        (callback,) = read(CONFIGS / "capabilities" / f"{name}.yaml")["trainer"]["callbacks+"]
        options = {**callback["init_args"], "num_rows": 1}
        if name == "hub":  # of these, the harness has rows on the hub alone
            options |= {"folder": "fetched", "suites": ["hellaswag", "mmlu"]}
        assert CapabilityTracker(**options).suites


def test_pass_at_k_goes_to_128():
    (callback,) = read(CONFIGS / "pass_at_k.yaml")["trainer"]["callbacks+"]
    tracker = PassAtK(**callback.get("init_args", {}))
    assert (tracker.num_samples, tracker.temperature, tracker.top_p) == (128, 1.0, 0.95)


@pytest.mark.slow
def test_the_smoke_run_learns_each_task_and_forgets_the_one_before(tmp_path):
    log = tmp_path / "log"
    config = REPOSITORY / "configs" / "smoke.yaml"
    assert run("fit", f"--config={config}", f"--run_dir={tmp_path / 'run'}", log=log) == 0
    rows = json.loads((tmp_path / "run" / "retention.json").read_text())["rows"]
    tasks = [row["after"] for row in rows[1:]]
    for stage, row in enumerate(rows[1:]):
        assert row["accuracy"][tasks[stage]] > 0.6
        for earlier in tasks[:stage]:
            assert row["accuracy"][earlier] < 0.5
    text = log.read_text()
    for noise in ("deprecated", "max_epochs", "7B", "eval mode"):
        assert noise not in text
