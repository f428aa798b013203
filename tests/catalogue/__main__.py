"""All cases, or some: `PYTHONPATH=tests python -m catalogue [--only REGEX] [--every N]`.

Prints each case that is not handled well, and the figures by door.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Run the cases that were asked for; 1 where any is not handled well."""
    parser = argparse.ArgumentParser(prog="python -m catalogue", description=__doc__)
    parser.add_argument("--only", default="", help="regular expression for DOOR: NAME")
    parser.add_argument("--every", type=int, default=1, help="every Nth case")
    parser.add_argument("--list", action="store_true", help="print the names alone")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="pml-catalogue-") as place:
        os.environ["PML_CACHE"] = place
        from catalogue.doors import all_cases
        from catalogue.run import failures

        cases = [
            case for case in all_cases() if re.search(options.only, f"{case.door}: {case.name}")
        ]
        cases = cases[:: options.every]
        tried: Counter[str] = Counter()
        bad: Counter[str] = Counter()
        for number, case in enumerate(cases):
            tried[case.door] += 1
            if options.list:
                print(f"{case.door}: {case.name}")
                continue
            begin = time.monotonic()
            for line in failures([case], Path(place, f"{number:05d}")):
                bad[case.door] += 1
                print(f"{line}  [{time.monotonic() - begin:.1f} s]", flush=True)

    for door, count in tried.items():
        print(f"{door}: {count - bad[door]} of {count}")
    print(f"{tried.total() - bad.total()} of {tried.total()} handled well")
    return int(bad.total() > 0)


sys.exit(main())
