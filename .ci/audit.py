"""Compares the locked and the installed versions with known weaknesses, without a network.

    python .ci/audit.py [LOCK]

Fails where a version is older than the one that mends a weakness listed in `advisories.toml`, and
where an entry of the lock has no version or no hash. Prints every finding, then what was compared.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

ADVISORIES = Path(__file__).parent / "advisories.toml"
LOCK = Path(__file__).parent.parent / "requirements.lock"
ENTRY = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)")


def main() -> None:
    """Audit lock and environment."""
    lock = Path(sys.argv[1]) if len(sys.argv) > 1 else LOCK
    advisories = tomllib.loads(ADVISORIES.read_text(encoding="utf-8"))
    locked, problems = read_lock(lock.read_text(encoding="utf-8"))
    installed = [(each.name, each.version) for each in distributions()]
    for where, versions in ((lock.name, locked), ("the environment", installed)):
        problems += [f"{where}: {each}" for each in weaknesses(versions, advisories)]
    sys.stdout.write("\n".join([*problems, summary(locked, installed, advisories), ""]))
    sys.exit(bool(problems))


def read_lock(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Names and versions of the lock's entries, and what is wrong with entries."""
    found, problems = [], []
    for entry in re.split(r"\n(?=\S)", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE).strip()):
        match = ENTRY.match(entry)
        if match is None or "--hash=sha256:" not in entry:
            problems.append(f"no version or no hash: {entry.splitlines()[0]}")
        else:
            found.append((match["name"], match["version"]))
    return found, problems


def weaknesses(versions: list[tuple[str, str]], advisories: dict[str, dict[str, str]]) -> list[str]:
    """Those that a version still has."""
    return [
        f"{name} {version} has {weakness}, mended in {mended}"
        for name, version in versions
        for weakness, mended in advisories.get(canonicalize_name(name), {}).items()
        if Version(version) < Version(mended)
    ]


def summary(
    locked: list[tuple[str, str]],
    installed: list[tuple[str, str]],
    advisories: dict[str, dict[str, str]],
) -> str:
    """What was compared."""
    number = sum(map(len, advisories.values()))
    return (
        f"{len(locked)} locked and {len(installed)} installed versions compared with {number} "
        f"weaknesses of {len(advisories)} packages"
    )


if __name__ == "__main__":
    main()
