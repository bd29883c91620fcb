import ast
import inspect
import os
import re
import stat
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lightning_modules.base import ContinualModule
from sdft.model.pretrained import load_model, save_model
from sdft.runs.files import write_text_atomically
from sdft.tasks.prompting import TeacherTemplate, shipped_templates
from tests.conftest import REPOSITORY
from tests.fuzzing import demonstration

SOURCES = [
    path
    for folder in ("sdft", "lightning_modules", "datamodules", "callbacks", "command_line")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
] + [REPOSITORY / "train.py"]


def calls(path):
    """Every call of a file: its name, its keywords and its line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield ast.unparse(node.func), keywords, f"{path.name}:{node.lineno}"


def test_no_source_unpickles_or_runs_what_it_reads():
    forbidden = {"pickle.load", "pickle.loads", "eval", "marshal.loads", "os.system"}
    unsafe = re.compile(r"yaml\.(Loader|UnsafeLoader|FullLoader|unsafe_load|full_load)\b")
    for path in SOURCES:
        assert not unsafe.search(path.read_text("utf-8")), path.name
        for name, keywords, where in calls(path):
            assert name not in forbidden, where
            assert name != "exec" or path.name == "jail.py", where
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", where
            assert keywords.get("shell", "False") == "False", where
            assert keywords.get("trust_remote_code", "") != "True", where


def test_every_template_is_rendered_in_a_sandbox():
    for path in SOURCES:
        for name, _, where in calls(path):
            assert name.split(".")[-1] not in {"Environment", "Template", "NativeEnvironment"}, (
                where
            )


def test_code_of_a_models_repository_is_not_run_unless_the_user_says_so():
    for function in (load_model, ContinualModule):
        assert inspect.signature(function).parameters["trust_remote_code"].default is False


def test_weights_in_a_pickle_are_refused(tiny, tmp_path):
    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(tiny.model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load the model"):
        load_model(str(tmp_path / "model"))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755)]
)
def test_what_a_run_writes_has_the_permissions_the_user_set(tiny, tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        write_text_atomically(tmp_path / "run" / "retention.json", "{}")
        save_model(tiny.model, tiny.tokenizer, tmp_path / "run" / "export")
    finally:
        os.umask(before)
    assert mode(tmp_path / "run" / "retention.json") == file
    assert mode(tmp_path / "run" / "export") == folder
    assert mode(tmp_path / "run" / "export" / "config.json") == file


def test_the_cache_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "cache"))
    load_model("tiny-random")
    assert mode(tmp_path / "cache") == 0o700
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ValueError, match=r"anybody may write to the model cache .*chmod o-w"):
        load_model("tiny-random")


def test_a_data_sets_row_cannot_read_a_file_through_a_template():
    """Nothing of a row is parsed as a template, so a request for a file stays text."""
    attack = "{{ cycler.__init__.__globals__.os.popen('id').read() }}{% include '/etc/passwd' %}"
    for name in shipped_templates():
        turns = TeacherTemplate.load(name).messages(demonstration("x", text=attack))
        assert any(attack in turn["content"] for turn in turns)
    with pytest.raises(ValueError, match="teacher template mine: "):
        TeacherTemplate(attack + "{% call user() %}{{ question }}{% endcall %}", "mine")


PIN = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)
LOCKS = {
    "requirements.lock": ("requirements.txt",),
    "requirements-dev.lock": (
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-evaluation.txt",
    ),
}


def pins(name):
    """The versions a lock has of each distribution: several where they depend on the Python."""
    found = {}
    for distribution, version in PIN.findall((REPOSITORY / name).read_text("utf-8")):
        found.setdefault(canonicalize_name(distribution), set()).add(version)
    return found


def requirements(*names):
    """The direct requirements of some files."""
    lines = [line for name in names for line in (REPOSITORY / name).read_text("utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def torch_version():
    """The version of torch that installations take: it is in no lock."""
    return re.search(r"^TORCH = torch==(\S+)$", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)[
        1
    ]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_a_version_in_every_range_and_a_hash_of_every_file(lock):
    locked = pins(lock) | {"torch": {torch_version()}}
    for requirement in requirements(*LOCKS[lock]):
        versions = locked[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), requirement
    for entry in re.split(r"\n(?=[A-Za-z])", (REPOSITORY / lock).read_text("utf-8")):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_developers_and_users_have_the_same_versions():
    developers = pins("requirements-dev.lock")
    assert all(versions <= developers[name] for name, versions in pins("requirements.lock").items())


def test_every_place_that_names_a_version_of_torch_names_one():
    lock = (REPOSITORY / ".ci" / "lock.toml").read_text("utf-8")
    images = (REPOSITORY / "Dockerfile").read_text("utf-8")
    assert f'version = "{torch_version()}"' in lock
    assert set(re.findall(r"torch==(\S+)", images)) == {torch_version()}


def test_every_direct_requirement_has_two_tested_ends_and_names_no_host():
    for requirement in requirements("requirements.txt"):
        assert {each.operator for each in requirement.specifier} == {">=", "<"}, requirement
    for path in REPOSITORY.glob("requirements*"):
        assert "://" not in path.read_text("utf-8"), path.name


def test_importing_the_sandbox_brings_no_framework():
    code = "import sys, sdft.sandbox.sandbox; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
