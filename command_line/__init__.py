"""The command ``sdft``."""

import sys

from command_line.build_knowledge import knowledge_main
from command_line.continual_cli import ContinualCLI, RunDirectory, main
from command_line.fetch_data import fetch_main
from command_line.plan_memory import plan_main

__all__ = ["ContinualCLI", "RunDirectory", "main", "run"]


def run() -> None:
    """The console command: makes data, plans memory, or does what LightningCLI can."""
    own = {"fetch": fetch_main, "knowledge": knowledge_main, "plan": plan_main}
    command, *rest = sys.argv[1:] or [""]
    if command in own:
        own[command](rest)
    else:
        main()
