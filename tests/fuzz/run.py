"""Every target one after the other, and a table: `python tests/fuzz/run.py --minutes 20`.

Minutes of computing each, whatever else the machine does. Inputs with a fault are kept below --out,
made small, each beside its traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
TARGETS = (
    *("overrides", "sweep_file", "facts", "config", "result", "tokens", "law", "checkpoint"),
    *("manifest", "status"),
)


def main() -> int:
    """Fuzz the targets that were asked for; 1 where any has a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="of computing, for each target")
    parser.add_argument("--only", nargs="*", default=TARGETS, choices=TARGETS)
    parser.add_argument("--out", type=Path, default=Path("fuzz-faults"), help="inputs with faults")
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(prefix="pml-fuzz-") as place:
        from fuzz import folders

        base = Path(place)
        folders.make(base)
        results = {name: _fuzz(name, options.minutes, base, out) for name in options.only}
    return _show(results)


def _fuzz(name: str, minutes: float, base: Path, out: Path) -> dict[str, Any]:
    # Modules that Python compiles on the way would count as files written elsewhere.
    command = [sys.executable, "-B", "-m", "fuzz.worker", name, f"--seconds={60 * minutes}"]
    command += [f"--base={base}", f"--out={out}"]
    report = out / f"{name}.json"
    report.unlink(missing_ok=True)
    with (out / f"{name}.log").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if not report.exists():
        return {"faults": [f"the process itself ended with {code}; see {log.name}"]}
    return json.loads(report.read_text())


def _show(results: dict[str, dict[str, Any]]) -> int:
    print(f"{'target':<12} {'minutes':>8} {'executions':>11} {'refused':>9} {'accepted':>9} faults")
    for name, figures in results.items():
        counts = [figures.get(key, 0) for key in ("executions", "refused", "accepted")]
        row = f"{name:<12} {figures.get('minutes', 0):>8.1f} {counts[0]:>11,} {counts[1]:>9,}"
        print(f"{row} {counts[2]:>9,} {len(figures['faults'])}")
        for fault in figures["faults"]:
            print(f"    {fault}")
    return int(any(figures["faults"] for figures in results.values()))


if __name__ == "__main__":
    sys.exit(main())
