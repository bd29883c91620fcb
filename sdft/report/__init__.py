"""Compares several runs: an HTML page, Markdown and figures."""

from sdft.report.comparison import compare
from sdft.report.load_runs import read_run
from sdft.report.page import write_report

__all__ = ["compare", "read_run", "write_report"]
