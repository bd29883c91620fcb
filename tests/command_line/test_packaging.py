"""What `pip install .` gives: the packages, their templates and configurations, and `sdft`."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from command_line.shipped_configs import config_names, with_shipped_configs
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of commands of an environment that holds our wheel and sees what we need."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-cache-dir"]
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [*pip, "wheel", *options, "--wheel-dir", folder, copy_of_sources(folder)], check=True
    )
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True
    )
    (site,) = (folder / "env" / "lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin"


def copy_of_sources(folder: Path) -> Path:
    """A copy of the project's files: a build leaves some beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        source, target = REPOSITORY / name, folder / "sources" / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(os.readlink(source))
            else:
                target.write_bytes(source.read_bytes())
    return folder / "sources"


def call(installed, *arguments, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [installed / "sdft", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_installed_command_trains_from_any_folder(installed, tmp_path):
    done = call(installed, "fit", "--config", "smoke", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "smoke" / "retention.json").is_file()
    assert "Files: runs/smoke" in done.stdout
    assert "args parameter" not in done.stderr  # Lightning's, where a command line is given twice


@pytest.mark.slow
def test_the_installed_package_holds_every_file_of_the_source_packages(installed):
    (site,) = (installed.parent / "lib").glob("python3*/site-packages")
    for package in ("command_line", "lightning_modules", "datamodules", "callbacks", "sdft"):
        ours, theirs = (
            {
                path.relative_to(root)
                for path in root.glob(f"{package}/**/*")
                if path.is_file() and "__pycache__" not in path.parts
            }
            for root in (REPOSITORY, site)
        )
        assert ours <= theirs
    shipped = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert shipped
    assert all((site / "command_line" / path).is_file() for path in shipped)


def test_a_shipped_configuration_is_found_by_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("{}")
    (tmp_path / "smoke.yaml").write_text("{}")
    given = ["fit", "--config=quickstart", "--config", "paper/science.yaml", "-c", "mine.yaml"]
    fit, first, _, second, *own = with_shipped_configs([*given, "--config=smoke.yaml", "--seed=1"])
    assert fit == "fit"
    assert Path(first.removeprefix("--config=")).read_text().startswith("# Three generated tasks")
    assert Path(second).samefile(REPOSITORY / "configs" / "paper" / "science.yaml")
    assert own == ["-c", "mine.yaml", "--config=smoke.yaml", "--seed=1"]


def test_an_unknown_configuration_is_refused_with_names_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"--config quikstart: .*did you mean quickstart"):
        with_shipped_configs(["fit", "--config", "quikstart"])
    assert {"defaults", "quickstart", "smollm2/science"} <= set(config_names())
