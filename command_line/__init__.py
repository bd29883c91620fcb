"""The command ``sdft``."""

from command_line.continual_cli import ContinualCLI, RunDirectory, main, run

__all__ = ["ContinualCLI", "RunDirectory", "main", "run"]
