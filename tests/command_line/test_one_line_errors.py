import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import command_line
from command_line.plan_memory import plan_main
from command_line.probe_method import probe_main
from tests.child_runs import run, write_config
from tests.conftest import write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("mistakes"))


def errors(tmp_path, config, *args, command="fit"):
    """What a run that is refused says, without progress bars."""
    log = tmp_path / "log"
    run_dir = f"--run_dir={tmp_path / 'run'}"
    assert run(command, f"--config={config}", run_dir, *args, log=log) in (1, 2)
    lines = log.read_text().splitlines()
    assert not any("Traceback" in line for line in lines), log.read_text()
    said = [line for line in lines if line.startswith("error: ")]
    rest = lines[lines.index(said[0]) + 1 :]
    assert [line for line in rest if line not in ("1", "2", "None")] == []
    [error] = said
    return error


MISTAKES = {
    "adapters by true": (["--model.init_args.lora=true"], "lora: expected a mapping, got true"),
    "half a class": (["--model=SDFT"], "there is no class SDFT; did you mean SDFTModule?"),
    "a class of no package": (["--model=lightning_modules.SFT"], "did you mean SFTModule?"),
    "no such callback": (["--trainer.callbacks+=RetentionTrack"], "mean RetentionTracker?"),
    "a typo in an option": (["--model.init_args.lerning_rate=1"], "did you mean learning_rate?"),
    "a typo in a flag": (["--data.batchsize=3"], "did you mean --data.batch_size"),
    "a typo in a configuration": (
        ["--config=data: {batchsize: 3}"],
        "did you mean data.batch_size",
    ),
    "a typo in a group": (["--config=modle: {lora: null}"], "did you mean model?\n"),
    "a flag of another group": (["--trainer.keep_stage=1"], "mean --checkpoint.keep_stages"),
    "a flag like no other": (["--data.scorer=contains"], "arguments: --data.scorer=contains\n"),
    "a text as a number": (["--model.init_args.learning_rate=fast"], "expected float, got fast"),
    "a bad value": (["--model.init_args.learning_rate=-1"], "model.learning_rate is -1.0; it must"),
    "no such divergence": (["--model.init_args.divergence=kl"], "divergence is kl; it must be one"),
    "no such engine": (["--model.init_args.rollout_engine=vlm"], "rollout_engine is vlm; it must"),
    "no such model": (["--model.init_args.pretrained=./nowhere"], "'./nowhere' does not exist"),
    "a hub model offline": (
        ["--model.init_args.pretrained=no/such"],
        "no/such is no directory in /",
    ),
    "a text as a device": (["--trainer.devices=two"], "trainer: `devices` selected with"),
    "a text as a seed": (["--seed_everything=abc"], "seed_everything: expected int\n"),
    "no such accelerator": (["--trainer.accelerator=abacus"], "accelerator"),
    "no such template": (["--data.teacher_template=nope"], "teacher_template 'nope'"),
    "a file as run directory": (["--run_dir=/dev/null"], "the run directory /dev/null is a file"),
    "a module that is missing": (["--trainer.logger=MLFlowLogger"], "mlflow"),
}


@pytest.mark.parametrize(("args", "complaint"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_what_to_write_instead(args, complaint, config, tmp_path):
    assert complaint in f"{errors(tmp_path, config, *args)}\n"


TASKS = {
    "no such folder": ({"path": "no/such"}, "task 'x': path 'no/such' is not a folder"),
    "no such scorer": ({"generator": "routing", "scorer": "exact"}, "unknown scorer 'exact'"),
    "a typo in a task": ({"generator": "routing", "scoer": "contains"}, "did you mean scorer?"),
    "the hub offline": ({"hub_id": "no/such", "scorer": "contains"}, "data set 'no/such'"),
    "no source": ({"scorer": "contains"}, "task 'x' has no rows: give it one of"),
    "too many rows": ({"path": "FOLDER", "num_train": 99}, "num_train asks for 99 rows, but there"),
    "an unknown split": (
        {"hub_id": "FOLDER", "splits": {"train": "train", "validation": "dev"}},
        'Unknown split "dev"',
    ),
}


@pytest.mark.parametrize(("task", "complaint"), TASKS.values(), ids=TASKS)
def test_a_mistake_in_a_task_is_one_line(task, complaint, config, tmp_path):
    folder = str(config.parent / "one")
    own = {name: folder if value == "FOLDER" else value for name, value in task.items()}
    changed = yaml.safe_load(config.read_text())
    changed["data"]["tasks"] = [{"name": "x", "scorer": "exact_label", **own}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(changed))
    assert complaint in errors(tmp_path, tmp_path / "own.yaml")


def test_what_is_wrong_with_the_data_is_said_before_the_model_is_loaded(config, tmp_path):
    changed = yaml.safe_load(config.read_text())
    changed["model"]["init_args"]["pretrained"] = "no/such"
    write_rows(tmp_path / "half" / "train.jsonl", [{"prompt": "a"}])
    changed["data"]["tasks"] = [{"name": "x", "scorer": "contains", "path": str(tmp_path / "half")}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(changed))
    assert "has no validation rows" in errors(tmp_path, tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("data.batch_size=0", "data.batch_size is 0; it must be at least 1"),
        ("checkpoint.max_checkpoints=0", "checkpoint.max_checkpoints is 0; it must be at least 1"),
        ("drift.num_prompts=-1", "drift.num_prompts is -1; it must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_said_before_the_model_is_loaded(option, said, config, tmp_path):
    wrong = ("--model.init_args.pretrained=no/such", f"--{option}")
    assert said in errors(tmp_path, config, *wrong)


@pytest.mark.parametrize(
    ("number", "said"), [(0, "there are no tasks"), (2, "task names given twice: one")]
)
def test_names_of_tasks_are_checked_before_the_model_is_loaded(number, said, config, tmp_path):
    changed = yaml.safe_load(config.read_text())
    changed["model"]["init_args"]["pretrained"] = "no/such"
    changed["data"]["tasks"] = number * changed["data"]["tasks"][:1]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(changed))
    assert said in errors(tmp_path, tmp_path / "own.yaml")


def test_broken_yaml_is_named_with_file_and_line(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1, 2\ndata: 3\n")
    error = errors(tmp_path, broken)
    assert str(broken) in error
    assert "line 2" in error


def test_a_jinja_template_with_a_typo_is_named(config, tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text("{% call user() %}{{ queston }}{% endcall %}")
    error = errors(tmp_path, config, f"--data.teacher_template={template}")
    assert f"{template}: unknown field(s) queston" in error


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), ("- a\n- b\n", "holds ['a', 'b']")])
def test_a_configuration_that_is_no_mapping_is_named(text, said, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    assert f"own.yaml {said}; a configuration is a mapping" in errors(
        tmp_path, tmp_path / "own.yaml"
    )


@pytest.mark.parametrize(
    ("command", "said"), [(["fti"], "there is no command 'fti'"), ([], "a command is missing")]
)
def test_an_unknown_command_lists_the_commands(command, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sdft", *command])
    with pytest.raises(SystemExit) as end:
        command_line.run()
    assert end.value.code == 2
    names = "fit, validate, test, fetch, knowledge, plan, probe"
    assert capsys.readouterr().err == f"error: {said}; use one of {names}\n"


def test_help_lists_the_commands_that_are_not_lightnings(tmp_path):
    log = tmp_path / "log"
    assert run("--help", log=log) == 0
    text = log.read_text()
    for name in command_line.OWN:
        assert f"{name} (" in text


def test_a_run_without_a_configuration_is_told_how_to_give_one(tmp_path):
    log = tmp_path / "log"
    assert run("fit", log=log) == 2
    assert "--config quickstart" in log.read_text()


def test_the_help_of_ckpt_path_has_the_values_it_takes(config, tmp_path):
    log = tmp_path / "log"
    assert run("fit", "--help", log=log) == 0
    text = " ".join(log.read_text().split())
    assert "last or previous (in the run's folder), auto (last, or a new run" in text
    assert "hpc" not in text


@pytest.mark.parametrize("command", [plan_main, probe_main])
def test_help_of_our_commands_names_the_configuration(command, capsys):
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0
    assert "--config CONFIG" in capsys.readouterr().out


def child(*command):
    """Output and CPU-seconds of a Python process that imports this repository."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], capture_output=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    return done.stdout.decode(), seconds


def test_help_imports_nothing_heavy_that_lightning_does_not():
    program = (
        "import sys, command_line\n"
        "sys.argv[1:] = ['fit', '--help']\n"
        "try: command_line.run()\n"
        "except SystemExit: pass\n"
        "print(sorted({'peft', 'datasets', 'lm_eval', 'pyarrow', 'pandas'} & {*sys.modules}))"
    )
    assert child("-c", program)[0].splitlines()[-1] == "[]"


def test_commands_that_train_nothing_do_not_import_lightning():
    program = (
        "import sys, command_line.fetch_data, command_line.build_knowledge\n"
        "print('lightning' in sys.modules)"
    )
    assert child("-c", program)[0] == "False\n"


@pytest.mark.slow
def test_help_takes_less_than_importing_lightning_does_by_itself():
    pairs = [
        (child("train.py", "fit", "--help")[1], child("-c", "import torch, lightning")[1])
        for _ in range(3)
    ]
    ours, lightnings = map(min, zip(*pairs, strict=True))
    assert ours < 0.9 * lightnings
