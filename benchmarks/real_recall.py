"""Is what pml calls recalled what a user's own script prints? Twelve facts on a real model.

    python benchmarks/real_recall.py MODEL [--out FOLDER] [--steps N]

MODEL is a folder with a chat template. The cells: four losses, with and without the chat template,
both placements, ranks 2 and 8. Of every fact in every cell, three answers are compared:
    whole       what samples.jsonl says: the target and its end token
    script      what the script in adapter/README.md prints, with this fact's question
    generate    what `plain.py` generates, which knows neither pml nor that script
recall.csv in FOLDER has a row for each. Exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
FACTS = TESTS / "real" / "facts.jsonl"

LOSSES = "sft,memft_ot,memft_margin,memft_margin_facts"
# An adapter beside a whole MLP needs a larger one.
RATES = {"linear": "1e-2", "mlp_block": "3e-2"}
COLUMNS = ("run", "chat", "adapter", "loss", "rank", "sample", "whole", "script", "generate")


def main() -> int:
    """Train, ask, compare; 1 where two of the three differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("--out", type=Path, default=Path("outputs/real_recall"))
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()

    train(options.model, options.out, options.steps)
    rows = list(compared(options.model, options.out))
    with (options.out / "recall.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return report(rows)


def train(model: Path, out: Path, steps: int) -> None:
    """The cells, those that are not there yet."""
    for adapter, rate in RATES.items():
        command = [sys.executable, "-m", "pml_cli", "sweep", "model=hf", f"model.path={model}"]
        command += ["model.device=cpu", "data=jsonl", f"data.path={FACTS}", "data.chat=true,false"]
        command += ["seqlen=all", f"adapter={adapter}", "rank=2,8", f"loss={LOSSES}"]
        command += [f"train.lr={rate}", f"train.steps={steps}", "train.stop=recalled"]
        subprocess.run([*command, f"out={out}"], check=True)


def compared(model: Path, out: Path) -> Iterator[dict[str, Any]]:
    """A row for each fact of each cell."""
    sys.path.insert(0, str(TESTS))
    from real import plain
    from support.adapter_script import run_script_for

    from pml_cli.config.load import read_run

    tokenizer = plain.tokenizer_of(model)
    for path in sorted(out.glob("*/samples.jsonl")):
        run_folder = path.parent
        run = read_run(run_folder / "config.yaml")
        cell = {
            "run": run_folder.name,
            "chat": run.data.chat,
            "adapter": run.adapter.kind,
            "loss": loss_name(run.loss),
            "rank": run.rank,
        }
        samples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        questions = [sample["turns"][-1][1] for sample in samples]
        printed = run_script_for(run_folder, questions)

        adapted = plain.load_adapted(model, run_folder / "adapter")
        for sample, question, text in zip(samples, questions, printed, strict=True):
            answer = plain.answer(adapted, tokenizer, question, run.data.chat)
            yield {
                **cell,
                "sample": sample["sample"],
                "whole": sample["whole"],
                "script": text == sample["target"],
                "generate": answer == sample["target"],
            }


def loss_name(loss: Any) -> str:
    """The name of its file in conf/loss."""
    without_hinge = getattr(loss, "switch", None) == 1
    return "memft_margin_facts" if without_hinge else str(loss.kind)


def report(rows: list[dict[str, Any]]) -> int:
    """Print the counts; 1 where two of the three differ."""
    counts: dict[tuple[Any, ...], Counter[str]] = {}
    for row in rows:
        cell = (row["chat"], row["adapter"], row["loss"], row["rank"])
        count = counts.setdefault(cell, Counter())
        count["facts"] += 1
        for name in ("whole", "script", "generate"):
            count[name] += bool(row[name])

    for cell, count in sorted(counts.items(), key=str):
        print(*cell, dict(count))
    differing = [row for row in rows if not row["whole"] == row["script"] == row["generate"]]
    for row in differing:
        print("differs:", row)
    print(f"{len(counts)} cells, {len(rows)} facts, {len(differing)} differ")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
