"""The command ``sdft``. A command's code is imported when it is called: Lightning takes long."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType

__all__ = ["OWN", "run"]

OWN = {
    "fetch": "fetch_data",
    "knowledge": "build_knowledge",
    "plan": "plan_memory",
    "probe": "probe_method",
}
"""Command -> the module whose ``<command>_main`` runs it."""


def run() -> None:
    """Run the console command: fetch, knowledge, plan, probe, or a subcommand of LightningCLI."""
    command, *rest = sys.argv[1:] or [""]
    if command in OWN:
        getattr(_imported(OWN[command]), f"{command}_main")(rest)
        return
    cli = _imported("continual_cli")
    known = [*cli.ContinualCLI.subcommands(), *OWN]
    if command not in known and not command.startswith("-"):
        said = f"there is no command {command!r}" if command else "a command is missing"
        sys.stderr.write(f"error: {said}; use one of {', '.join(known)}\n")
        sys.exit(2)
    cli.main()


def _imported(name: str) -> ModuleType:
    """A module of this package, and all that it imports.

    Imports make a million objects that stay. The garbage collector would look through them again
    and again for what it can free, now and while training; that is over a third of the CPU time of
    ``--help``.
    """
    gc.disable()
    module = import_module(f"command_line.{name}")
    gc.freeze()
    gc.enable()
    return module
