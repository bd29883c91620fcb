import json
import os
import subprocess
import sys

import pytest
import yaml

from benchmarks.partial_study import partial_study
from tests.child_runs import write_config
from tests.conftest import REPOSITORY


def run_benchmark(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


def last_line(*command):
    """Run a benchmark and read the JSON it ends with."""
    done = run_benchmark(*command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_teacher_shapes_measures_the_student_and_every_template():
    figures = last_line("benchmarks/teacher_shapes.py", "--quick")
    assert {"student alone", "paper", "dialogue_twice"} <= set(figures)
    assert set(figures["paper"]) == {"routing", "tool_call", "new_facts"}
    for shown, alone in zip(
        figures["dialogue_twice"].values(), figures["student alone"].values(), strict=True
    ):
        assert 0 <= shown["accuracy"] <= 1
        assert shown["tokens"] > alone["tokens"] > 0


@pytest.mark.slow
def test_chaos_ends_as_a_run_that_was_never_killed():
    outcome = last_line("benchmarks/chaos.py", "--quick")
    assert outcome == {"kills": 3, "identical": True, "differences": []}


@pytest.mark.slow
def test_step_measures_every_case_without_a_peer():
    figures = last_line("benchmarks/step.py", "--quick", "--threads", "1")
    nothing = {"cpu_ratio": None, "wall_ratio": None, "rss_ratio": None}
    assert figures["trl"]["a"] == figures["trl"]["b"] == figures["trl"]["c"] == nothing
    assert figures["sft_wall_ratio"] > 0
    assert figures["decode_vs_generate"] > 0


def test_step_names_the_cases_it_knows():
    done = run_benchmark("benchmarks/step.py", "--quick", "--cases", "a,speed")
    assert done.returncode != 0
    assert "speed" in done.stderr
    assert "decode" in done.stderr


def test_peak_measures_products_and_reading():
    figures = last_line("benchmarks/peak.py", "--quick", "--threads", "1")
    names = {"scoring_gflops", "decoding_gflops", "decoding_gb_per_s", "read_gb_per_s"}
    assert set(figures) == names
    assert all(value > 0 for value in figures.values())


@pytest.mark.slow
def test_linear_cost_draws_both_series(tmp_path):
    image = tmp_path / "cost.png"
    figures = last_line("benchmarks/linear_cost.py", "--quick", "--image", str(image))
    assert set(figures) == {"length_slope", "batch_slope"}
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_and_ends_with_one_line(tmp_path):
    shape = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 512}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    options = ["--device=cpu", "--tiny", "--minutes=20", f"--shape={tmp_path / 'shape.json'}"]
    options += [f"--study={write_study(tmp_path)}", f"--folder={tmp_path / 'study'}"]
    found = last_line("-m", "benchmarks.gpu", *options)
    assert found["device"] == "CPU"
    assert found["ceilings"].keys() == {"tflops", "gb_per_s"}
    assert {"in_place", "generate"} <= found["small"].keys()
    phases = {"rollout", "teacher", "student", "backward", "optimizer", "teacher_update"}
    for each in (found["small"]["in_place"], found["lean"]["phases"]):
        assert all(each[phase] > 0 for phase in phases)
    assert found["lean"]["planned_peak_gib"] > 0
    assert found["study"]["runs"] == found["study"]["finished"] == 1
    (last,) = found["study"]["last_rows"].values()
    assert last["global_step"] == 5
    assert last["accuracy"].keys() == {"one", "two"}
    assert last["general_drift"] > 0


def write_study(folder, num_runs=1):
    """A study of two small tasks on the tiny model."""
    config = write_config(folder)
    options = {"trajectory.every_n_steps": 1, "trajectory.num_prompts": 2}
    options |= {"trajectory.num_rows": 2, "trajectory.max_new_tokens": 4}
    arms = {"sdft": {"options": options}}
    runs = [{"arms": ["sdft"], "seeds": list(range(num_runs))}]
    file = folder / "study.yaml"
    study = {"config": [str(config)], "arms": arms, "runs": runs}
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_study_ends_when_its_time_is_up_and_the_next_call_continues_it(tmp_path):
    study = write_study(tmp_path)
    stopped = partial_study(study, tmp_path / "study", seconds=0.1)
    assert stopped == {"runs": 1, "finished": 0, "last_rows": {}}
    assert partial_study(study, tmp_path / "study", seconds=300)["finished"] == 1
