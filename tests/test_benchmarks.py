import json
import os
import subprocess
import sys

import pytest

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


@pytest.mark.slow
def test_chaos_ends_as_a_run_that_was_never_killed():
    outcome = last_line("benchmarks/chaos.py", "--quick")
    assert outcome == {"kills": 3, "identical": True, "differences": []}


def write_run(folder, method, matrix, test):
    tasks = ["one", "two"]
    rows = [
        {
            "stage": k,
            "after": None if k == 0 else tasks[k - 1],
            "accuracy": dict(zip(tasks, row, strict=True)),
        }
        for k, row in enumerate(matrix)
    ]
    forgetting = {"one": matrix[1][0] - matrix[2][0], "two": None}
    record = {
        "method": method, "tasks": tasks, "rows": rows, "forgetting": forgetting,
        "average_accuracy": sum(matrix[2]) / 2,
        "test": {"accuracy": dict(zip(tasks, test, strict=True))},
    }  # fmt: skip
    folder.mkdir()
    (folder / "retention.json").write_text(json.dumps(record))
    return str(folder)


def test_compared_runs_are_averaged_by_method(tmp_path):
    runs = [
        write_run(tmp_path / "a", "SDFT", [[0.0, 0.1], [0.8, 0.1], [0.6, 0.9]], [0.5, 0.7]),
        write_run(tmp_path / "b", "SDFT", [[0.0, 0.1], [0.6, 0.1], [0.6, 0.7]], [0.5, 0.7]),
        write_run(tmp_path / "c", "SFT", [[0.0, 0.1], [0.9, 0.1], [0.1, 0.9]], [0.1, 0.9]),
    ]
    figures = last_line("benchmarks/compare_runs.py", *runs)
    assert figures["SDFT"]["average forgetting"] == pytest.approx([0.2, 0.0])
    assert figures["SDFT"]["smallest gain by own stage"] == pytest.approx([0.8, 0.6])
    assert figures["SDFT"]["mean gain by own stage"] == pytest.approx([0.8, 0.6])
    assert figures["SFT"]["average forgetting"] == pytest.approx([0.8])
    assert figures["SFT"]["average test accuracy"] == pytest.approx([0.5])


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


@pytest.mark.slow
def test_linear_cost_draws_both_series(tmp_path):
    image = tmp_path / "cost.png"
    figures = last_line("benchmarks/linear_cost.py", "--quick", "--image", str(image))
    assert set(figures) == {"length_slope", "batch_slope"}
    assert image.read_bytes().startswith(b"\x89PNG")
