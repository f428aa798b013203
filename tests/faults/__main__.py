"""Faults at every call, or some: `PYTHONPATH=tests python -m faults [--only REGEX] [--every N]`.

Prints each round that did not go well, and the figures by kind.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from faults.commands import COMMANDS
from faults.shim import Fault, build, compiler, loaded

if TYPE_CHECKING:
    from faults.rounds import Rounds

ONCE = ("ENOSPC", "EIO", "EACCES", "EINTR", "EDQUOT")
FOR_GOOD = ("ENOSPC", "ESTALE", "EROFS")
READING = ("EIO", "ESTALE", "EACCES")


def main() -> int:
    """Play the rounds that were asked for; 1 where any did not go well."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", default="", help="regular expression for the command")
    parser.add_argument("--kind", default="", help="regular expression for the fault")
    parser.add_argument("--every", type=int, default=1, help="every Nth call")
    parser.add_argument("--first", type=int, default=1, help="from this call")
    parser.add_argument("--last", type=int, default=10**6, help="to this call")
    parser.add_argument("--minutes", type=float, default=0, help="rounds at random, so long")
    parser.add_argument("--seed", type=int, default=0, help="of that order")
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

    chosen = [command for command in COMMANDS if re.search(options.only, command.name)]
    import_everything(light=all(command.light for command in chosen))
    games = {}
    for command in chosen:
        games[command.name] = Rounds(command, place / command.name)
        game = games[command.name]
        counts = f"{len(game.calls)} calls, {len(game.all_calls)} with those that read"
        print(f"{command.name}: {counts}", flush=True)
    rounds = [(name, fault) for name, game in games.items() for fault in _faults(game, options)]
    # Of a time that does not suffice every command and every kind has its part.
    if options.minutes:
        random.Random(options.seed).shuffle(rounds)

    tried: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    begin = time.monotonic()
    for name, fault in rounds:
        if options.minutes and time.monotonic() - begin > 60 * options.minutes:
            break
        kind = f"{name}, {fault.kind}"
        tried[kind] += 1
        faults = games[name].play(fault)
        if faults:
            bad[kind] += 1
            call = games[name].call(fault).replace(str(place), "")
            print(f"{name}: {fault} ({call})", flush=True)
            print("".join(f"    {line}\n" for line in faults), end="", flush=True)

    for kind, count in sorted(tried.items()):
        print(f"{kind}: {count - bad[kind]} of {count}")
    print(f"{time.strftime('%Y-%m-%d')}: tried {tried.total()}, found {bad.total()}")
    return int(bad.total() > 0)


def _faults(game: Rounds, options: argparse.Namespace) -> Iterator[Fault]:
    once = [Fault(name=name, at=1) for name in (*ONCE, "killed")]
    for_good = [Fault(name=name, at=1, for_good=True) for name in FOR_GOOD]
    reading = [Fault(name=name, at=1, reads=True) for name in READING]
    for fault in (*once, *for_good, *reading):
        calls = len(game.all_calls if fault.reads else game.calls)
        for at in range(options.first, min(calls, options.last) + 1, options.every):
            if re.search(options.kind, fault.kind):
                yield replace(fault, at=at)


if __name__ == "__main__":
    sys.exit(main())
