"""The command ``sdft``."""

import sys

from command_line.build_knowledge import knowledge_main
from command_line.continual_cli import ContinualCLI, RunDirectory, main
from command_line.fetch_data import fetch_main
from command_line.plan_memory import plan_main
from command_line.probe_method import probe_main

__all__ = ["ContinualCLI", "RunDirectory", "main", "run"]


def run() -> None:
    """The console command: data, memory plans and probes, or what LightningCLI can."""
    own = {"fetch": fetch_main, "knowledge": knowledge_main, "plan": plan_main, "probe": probe_main}
    command, *rest = sys.argv[1:] or [""]
    if command in own:
        own[command](rest)
    else:
        main()
