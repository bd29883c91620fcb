"""Command line: ``python report.py runs/sdft-1 runs/sdft-2 runs/sft-1 --output report``.

A thin shim over :mod:`sdft.report`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sdft.report import compare, read_run, write_report


def main(args: list[str] | None = None) -> None:
    """Read the runs, write the report, say where it is."""
    parser = argparse.ArgumentParser(
        description="A page, Markdown and figures that compare runs by method over seeds."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "--output", type=Path, required=True, help="directory for report.html and the rest"
    )
    parser.add_argument(
        "--no_rows", action="store_true", help="leave out prompts, which are rows of the data"
    )
    options = parser.parse_args(args)
    try:
        comparisons = compare(map(read_run, options.runs))
        page, *others = write_report(comparisons, options.output, show_rows=not options.no_rows)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write(f"{page}\n" + "".join(f"  {path.name}\n" for path in others))


if __name__ == "__main__":
    main()
