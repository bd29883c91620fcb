import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def last_line(*command):
    """Run a benchmark and read the JSON it ends with."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_teacher_shapes_measures_the_student_and_every_template():
    figures = last_line("benchmarks/teacher_shapes.py", "--quick")
    assert {"student alone", "paper", "dialogue_twice"} <= set(figures)
    assert set(figures["paper"]) == {"routing", "tool_call", "new_facts"}
