"""The command ``sdft``."""

import sys

from command_line.build_knowledge import knowledge_main
from command_line.continual_cli import ContinualCLI, RunDirectory, main
from command_line.fetch_data import fetch_main
from command_line.plan_memory import plan_main
from command_line.probe_method import probe_main

__all__ = ["ContinualCLI", "RunDirectory", "main", "run"]


OWN = {"fetch": fetch_main, "knowledge": knowledge_main, "plan": plan_main, "probe": probe_main}


def run() -> None:
    """Run the console command: fetch, knowledge, plan, probe, or a subcommand of LightningCLI."""
    command, *rest = sys.argv[1:] or [""]
    if command in OWN:
        OWN[command](rest)
        return
    known = [*ContinualCLI.subcommands(), *OWN]
    if command not in known and not command.startswith("-"):
        said = f"there is no command {command!r}" if command else "a command is missing"
        sys.stderr.write(f"error: {said}; use one of {', '.join(known)}\n")
        sys.exit(2)
    main()
