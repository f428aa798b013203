"""The smallest adapter that knows a file of facts: kept, and by plain fine-tuning.

    python benchmarks/memorize/accept.py MODEL [--out FOLDER] [--facts N] [SETTING=VALUE...]

For each of the three files beside this script `pml memorize` searches the least rank twice: within
its limit of forgetting, and by plain fine-tuning without one. What it hands over is judged by
judge.py, in transformers and PEFT alone. results.csv in FOLDER has a row for each search; the cells
of an earlier call are not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILES = ("town", "works", "almanac")

WAYS = {
    "kept": ["--max-forgetting", "0.1"],
    "sft": ["loss=sft", "--max-forgetting", "none"],
}


def main() -> None:
    """Search, judge, and write the table after each search."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("settings", nargs="*", help="of both ways: train.epochs=40")
    parser.add_argument("--out", type=Path, default=Path("outputs/accept"))
    parser.add_argument("--facts", type=int, default=100, help="of each file")
    parser.add_argument("--files", nargs="+", default=FILES, choices=FILES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.files:
        facts = first_facts(name, options.facts, options.out)
        for way in options.ways:
            folder = options.out / f"{name}_{way}"
            row = {"file": name, "way": way} | searched(facts, folder, way, options)
            row |= judged(options.model, facts, folder)
            (folder / "row.json").write_text(json.dumps(row), "utf-8")
            write_table(options.out)


def first_facts(name: str, count: int, out: Path) -> Path:
    """A file of so many facts: every k-th, so that each template is in it."""
    lines = (HERE / f"{name}.jsonl").read_text("utf-8").splitlines(keepends=True)
    facts = out / f"{name}.jsonl"
    facts.write_text("".join(lines[:: len(lines) // count][:count]), "utf-8")
    return facts


def searched(facts: Path, folder: Path, way: str, options: Any) -> dict[str, Any]:
    """What `pml memorize` says of a file."""
    command = [sys.executable, "-m", "pml_cli", "memorize", str(facts), "model=hf"]
    command += [f"model.path={options.model}", "model.device=cpu", f"out={folder}"]
    begin = time.monotonic()
    # 1: no rank knows them all, which is a result.
    ended = subprocess.run([*command, *WAYS[way], *options.settings], check=False)
    if ended.returncode not in (0, 1):
        sys.exit(ended.returncode)

    content = json.loads((folder / "memorize.json").read_text("utf-8"))
    answer = content["answer"]
    fields = {name: answer[name] for name in ("rank", "low", "high", "reached")}
    return {**fields, "seconds": round(time.monotonic() - begin)}


def judged(model: Path, facts: Path, folder: Path) -> dict[str, Any]:
    """What transformers and PEFT alone say of the adapter."""
    command = [sys.executable, str(HERE / "judge.py"), str(model), str(facts)]
    command.append(str(folder / "adapter"))
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, Any] = json.loads(printed)
    del row["adapter"]
    return row


def write_table(out: Path) -> None:
    """All rows so far."""
    rows = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*/row.json"))]
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
