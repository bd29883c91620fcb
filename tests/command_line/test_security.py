import ast
import inspect
import os
import re
import stat
import subprocess
import sys

import pytest
import torch

from lightning_modules.base import ContinualModule
from sdft.model.pretrained import load_model, save_model
from sdft.runs.files import write_text_atomically
from sdft.tasks.prompting import TeacherTemplate, shipped_templates
from tests.conftest import REPOSITORY
from tests.fuzzing import demonstration

SOURCES = [
    path
    for folder in ("sdft", "lightning_modules", "datamodules", "callbacks")
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


def test_the_lock_has_the_pinned_versions_and_a_hash_of_every_file():
    lock = (REPOSITORY / "requirements.lock").read_text("utf-8")
    locked = {(name.lower(), version) for name, version in PIN.findall(lock)}
    pins = PIN.findall((REPOSITORY / "requirements.txt").read_text("utf-8"))
    assert {(name.lower(), version) for name, version in pins if name != "torch"} <= locked
    torch = dict(pins)["torch"]
    assert f'version = "{torch}"' in (REPOSITORY / ".ci" / "lock.toml").read_text("utf-8")
    for entry in re.split(r"\n(?=[A-Za-z])", lock):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_every_requirement_is_pinned_and_names_no_host():
    for path in REPOSITORY.glob("requirements*"):
        for line in path.read_text("utf-8").splitlines():
            assert "://" not in line, path.name
            assert not line or line.startswith((" ", "#")) or "==" in line, (path.name, line)


def audit(*args):
    command = [sys.executable, str(REPOSITORY / ".ci" / "audit.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_no_locked_or_installed_version_has_a_listed_weakness():
    done = audit()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"\d+ locked and \d+ installed versions", done.stdout)


def test_the_audit_finds_a_weak_version_and_an_entry_without_a_hash(tmp_path):
    lock = (REPOSITORY / "requirements.lock").read_text("utf-8")
    weak = re.sub(r"^jinja2==\S+", "jinja2==3.1.5", lock, flags=re.MULTILINE)
    (tmp_path / "weak.lock").write_text(weak + "left-pad==1.0\n")
    done = audit(tmp_path / "weak.lock")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        "no version or no hash: left-pad==1.0",
        "weak.lock: jinja2 3.1.5 has CVE-2025-27516, mended in 3.1.6",
    ]


def test_importing_the_sandbox_brings_no_framework():
    code = "import sys, sdft.sandbox.sandbox; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
