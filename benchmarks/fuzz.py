"""Feeds a given number of arbitrary texts to every reader, parser and scorer.

    python -m benchmarks.fuzz --cases 2000 [--only rows call]

The inputs and what must hold are in ``tests/fuzzing.py``. Prints every failing input; the last line
is JSON, and the exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback

from tests.fuzzing import TARGETS


def main() -> None:
    """Run the targets one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="of each target")
    parser.add_argument("--only", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    arguments = parser.parse_args()
    failed = []
    start = time.process_time()
    for name in arguments.only:
        began = time.process_time()
        try:
            TARGETS[name].run(arguments.cases)
        except Exception:
            failed.append(name)
            traceback.print_exc()
        print(f"{name}: {time.process_time() - began:.1f} s", flush=True)
    cases = sum(max(1, round(arguments.cases * TARGETS[name].share)) for name in arguments.only)
    figures = {"targets": len(arguments.only), "cases": cases, "failed": failed}
    print(json.dumps({**figures, "cpu_seconds": round(time.process_time() - start, 1)}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
