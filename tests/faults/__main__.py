"""Faults at every call, or some: `PYTHONPATH=tests python -m faults [--only REGEX] [--every N]`.

Prints each round that did not go well, and the figures by kind.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from faults.commands import COMMANDS
from faults.shim import Fault, build, compiler, loaded

ONCE = ("ENOSPC", "EIO", "EACCES", "EINTR", "EDQUOT")
FOR_GOOD = ("ENOSPC", "ESTALE", "EROFS")


def main() -> int:
    """Play the rounds that were asked for; 1 where any did not go well."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", default="", help="regular expression for the command")
    parser.add_argument("--kind", default="", help="regular expression for the fault")
    parser.add_argument("--every", type=int, default=1, help="every Nth call")
    parser.add_argument("--first", type=int, default=1, help="from this call")
    parser.add_argument("--last", type=int, default=10**6, help="to this call")
    options = parser.parse_args()
    if compiler() is None:
        sys.exit("no C compiler here (cc), or not Linux")

    with tempfile.TemporaryDirectory(prefix="pml-faults-") as name:
        place = Path(name)
        if not loaded():
            return _again_with_library(place)
        return _play(options, place)


def _again_with_library(place: Path) -> int:
    """The library has to be there when a process starts."""
    environment = {**os.environ, "LD_PRELOAD": str(build(place))}
    command = [sys.executable, "-m", "faults", *sys.argv[1:]]
    return subprocess.run(command, env=environment, check=False).returncode


def _play(options: argparse.Namespace, place: Path) -> int:
    os.environ["PML_CACHE"] = str(place)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    from faults.rounds import Rounds, import_everything

    import_everything()
    tried: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for command in COMMANDS:
        if not re.search(options.only, command.name):
            continue
        rounds = Rounds(command, place)
        print(f"{command.name}: {len(rounds.calls)} calls", flush=True)
        for fault in _faults(len(rounds.calls), options):
            kind = f"{command.name}, {fault.name}{' for good' if fault.for_good else ''}"
            begin = time.monotonic()
            tried[kind] += 1
            faults = rounds.play(fault)
            if faults:
                bad[kind] += 1
                call = rounds.calls[fault.at - 1].replace(str(place), "")
                took = time.monotonic() - begin
                print(f"{command.name}: {fault} ({call}) [{took:.1f} s]", flush=True)
                print("".join(f"    {line}\n" for line in faults), end="", flush=True)

    for kind, count in tried.items():
        print(f"{kind}: {count - bad[kind]} of {count}")
    print(f"{time.strftime('%Y-%m-%d')}: tried {tried.total()}, found {bad.total()}")
    return int(bad.total() > 0)


def _faults(calls: int, options: argparse.Namespace) -> Iterator[Fault]:
    kinds = [(name, False) for name in (*ONCE, "killed")] + [(name, True) for name in FOR_GOOD]
    for at in range(options.first, min(calls, options.last) + 1, options.every):
        for name, for_good in kinds:
            fault = Fault(name=name, at=at, for_good=for_good)
            if re.search(options.kind, f"{name}{' for good' if for_good else ''}"):
                yield fault


if __name__ == "__main__":
    sys.exit(main())
