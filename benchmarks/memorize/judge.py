"""What an adapter knows and what it harms, computed with transformers and PEFT alone.

    python benchmarks/memorize/judge.py MODEL FACTS ADAPTER... [--dtype bfloat16] [--skip harm]

Of each adapter folder one JSON line: how many of the facts `generate` answers word for word, by the
model's own chat template, and the nats per token that the adapter adds to the held-out texts of
each kind. No line of pml runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from real import plain

TEXTS = ROOT / "pml_cli" / "data" / "generic"
KINDS = ("prose", "docs", "code", "chat")
WINDOW = 256


def main() -> None:
    """Judge each adapter."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("facts", type=Path, help="JSON lines with question and answer")
    parser.add_argument("adapters", type=Path, nargs="+", help="adapter folders")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--skip", choices=("recall", "harm"), help="what is not judged")
    options = parser.parse_args()

    dtype = getattr(torch, options.dtype)
    tokenizer = plain.tokenizer_of(options.model)
    facts = [json.loads(line) for line in options.facts.read_text("utf-8").splitlines()]
    windows = {kind: windows_of(tokenizer, kind) for kind in KINDS}

    base_nats = {}
    if options.skip != "harm":
        base = plain.load_base(options.model, dtype)
        base_nats = {kind: nats(base, ids) for kind, ids in windows.items()}
    for adapter in options.adapters:
        model = plain.load_adapted(options.model, adapter, dtype)
        row: dict[str, Any] = {"adapter": str(adapter), "dtype": options.dtype}
        if options.skip != "recall":
            row["facts"] = len(facts)
            row["whole"] = sum(is_whole(model, tokenizer, fact) for fact in facts)
        if options.skip != "harm":
            row |= harm(base_nats, {kind: nats(model, ids) for kind, ids in windows.items()})
        print(json.dumps(row), flush=True)


def windows_of(tokenizer: Any, kind: str) -> torch.Tensor:
    """The held-out text of a kind, (windows, WINDOW); what is left at its end is not used."""
    text = (TEXTS / f"{kind}.held_out.txt").read_text("utf-8")
    ids = tokenizer(text).input_ids
    count = len(ids) // WINDOW
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


@torch.no_grad()
def nats(model: Any, windows: torch.Tensor) -> list[float]:
    """Mean loss of each window."""
    means = []
    for ids in windows:
        row = ids.tolist()
        means.append(plain.losses(model, row[:1], row[1:]).mean().item())
    return means


def is_whole(model: Any, tokenizer: Any, fact: dict[str, str]) -> bool:
    """Whether the model answers a question exactly, and ends there."""
    answer = plain.answer(model, tokenizer, fact["question"], chat=True)
    return answer == fact["answer"]


def harm(base: dict[str, list[float]], adapted: dict[str, list[float]]) -> dict[str, float]:
    """Added nats per token of each kind, and `harm`, their mean, with its standard error."""
    fields = {}
    variance = 0.0
    for kind in KINDS:
        added = [b - a for a, b in zip(base[kind], adapted[kind], strict=True)]
        fields[f"harm_{kind}"] = statistics.mean(added)
        variance += statistics.variance(added) / len(added) / len(KINDS) ** 2
    fields["harm"] = statistics.mean(fields.values())
    fields["harm_se"] = variance**0.5
    return fields


if __name__ == "__main__":
    main()
