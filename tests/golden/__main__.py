"""How far this machine is from the pinned numbers: `PYTHONPATH=tests python -m golden [--pin]`.

Prints the largest relative deviation by column. `--pin` takes what was measured as the new truth:
say in CHANGELOG.md why the numbers moved.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from golden import numbers


def pml(*words: str) -> None:
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "pml_cli", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m golden", description=__doc__)
    parser.add_argument("--pin", action="store_true", help="take these numbers as the pinned ones")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        cells = numbers.train(pml, Path(folder))
    law = numbers.fit()

    if options.pin:
        cells.to_csv(numbers.CELLS, index=False, float_format="%.10g")
        law.to_csv(numbers.LAW, index=False, float_format="%.10g")

    pinned = pd.read_csv(numbers.CELLS)
    off = {name: numbers.deviation(cells[name], pinned[name]) for name in numbers.CLOSE}

    pinned = pd.read_csv(numbers.LAW)
    both = pinned.merge(law, on=["form", "parameter"], suffixes=("_pinned", ""))
    off["law"] = numbers.deviation(both["value"], both["value_pinned"])

    for name, share in off.items():
        print(f"{name}: {share:.1e}")
    print(f"allowed: {numbers.tolerance():.0e}")
    return int(max(off.values()) > numbers.tolerance())


sys.exit(main())
