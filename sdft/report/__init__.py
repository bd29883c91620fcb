"""What several runs show, side by side: a page, Markdown and figures."""

from sdft.report.groups import compare
from sdft.report.page import write_report
from sdft.report.runs import read_run

__all__ = ["compare", "read_run", "write_report"]
