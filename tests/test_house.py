"""Sizes of files, functions, folders and pages, and unique file names."""

import ast
import subprocess
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MOST_FILES, FEWEST_LINES, MOST_LINES, MOST_FUNCTION_LINES, MOST_PAGE_LINES = 14, 40, 300, 40, 250

SHORT = {
    "train.py": "a command: the command line lies in command_line/",
    "report.py": "a command: the report lies in sdft/report/",
    "callbacks/export.py": "a callback is a file",
    "callbacks/stage_recorder.py": "what several callbacks share",
    "sdft/running_sum.py": "rollout and loss share it",
    "sdft/tasks/sources/public_biographies.py": "a data set is a file",
    "sdft/tasks/sources/records.py": "types that all data sets share",
    "tests/model/test_gradient_norm.py": "the tests of one function",
    "tests/rollout/test_mixing.py": "the tests of a short file",
    "tests/rollout/test_weight_names.py": "the tests of one function",
    "tests/test_public_names.py": "a claim about the whole package",
    "tests/test_running_sum.py": "the tests of a short file",
    "tests/processes.py": "shared by tests of several folders",
    "tests/sample_tasks.py": "shared by tests of several folders",
}
"""Files under 40 lines, and why they are files."""


def tracked(pattern):
    """Paths of the repository, relative to its root; what was deleted but not committed is not."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", pattern]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this copy of the code is no git repository")
    return [
        Path(name) for name in done.stdout.split("\0") if (REPOSITORY / name).is_file() and name
    ]


def num_lines(path):
    return len((REPOSITORY / path).read_text("utf-8").splitlines())


def is_package_file(path):
    return path.name == "__init__.py"


def test_no_folder_of_the_core_holds_too_many_files():
    sizes = Counter(path.parent for path in tracked("sdft/*") if path.name != "py.typed")
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_FILES} == {}


def test_short_files_are_few_and_have_a_reason():
    files = [path for path in tracked("*.py") if not is_package_file(path)]
    short = {str(path) for path in files if num_lines(path) < FEWEST_LINES}
    assert sorted(short - SHORT.keys()) == []
    assert sorted(SHORT.keys() - set(map(str, files))) == [], "no longer there"


def test_source_files_fit_a_few_screens():
    files = [path for path in tracked("*.py") if path.parts[0] != "tests"]
    assert {str(path): num_lines(path) for path in files if num_lines(path) > MOST_LINES} == {}


def test_file_names_are_unique():
    names = Counter(path.name for path in tracked("*.py") if not is_package_file(path))
    assert [name for name, count in names.items() if count > 1] == []


def test_functions_fit_a_screen():
    long = {}
    for path in tracked("*.py"):
        for node in ast.walk(ast.parse((REPOSITORY / path).read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
                if lines > MOST_FUNCTION_LINES:
                    long[f"{path}:{node.lineno} {node.name}"] = lines
    assert long == {}


def docstring_lines(function):
    first = function.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0


def test_pages_of_the_documentation_are_short():
    # Reports under docs/results/ are written by report.py.
    pages = [path for path in tracked("*.md") if path.parts[:2] != ("docs", "results")]
    long = {str(path): num_lines(path) for path in pages if num_lines(path) > MOST_PAGE_LINES}
    assert long == {}
