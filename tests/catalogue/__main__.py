"""All cases, or some: `PYTHONPATH=tests python -m catalogue [--only REGEX] [--every N]`.

Prints each case that is not handled well, and the figures by door; with --show what pml said, too.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Run the cases that were asked for; 1 where any is not handled well."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="pml-catalogue-") as place:
        # Read when pml is imported.
        os.environ["PML_CACHE"] = place
        from catalogue.doors import all_cases

        matching = [case for case in all_cases() if re.search(options.only, str(case))]
        cases = matching[:: options.every]
        if options.list:
            print("\n".join(map(str, cases)))
            return 0
        return _run(cases, Path(place), show=options.show)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m catalogue", description=__doc__)
    parser.add_argument("--only", default="", help="regular expression for DOOR: NAME")
    parser.add_argument("--every", type=int, default=1, help="every Nth case")
    parser.add_argument("--list", action="store_true", help="print the names alone")
    parser.add_argument("--show", action="store_true", help="print what pml said to each")
    return parser


def _run(cases: list, place: Path, *, show: bool) -> int:
    from catalogue.run import examine

    tried = Counter(case.door for case in cases)
    bad: Counter[str] = Counter()
    for number, case in enumerate(cases):
        faults, output = examine(case, place / f"{number:05d}")
        bad[case.door] += bool(faults)
        if faults:
            print(f"{case}: {'; '.join(faults)}  $ {case.command}", flush=True)
        if show:
            print(f"-- {case}\n{output}", flush=True)

    for door, count in tried.items():
        print(f"{door}: {count - bad[door]} of {count}")
    print(f"{tried.total() - bad.total()} of {tried.total()} handled well")
    return int(bad.total() > 0)


sys.exit(main())
