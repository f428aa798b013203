"""One target under atheris, until its share of computing is spent: `python -m fuzz.worker NAME`.

Faults do not end it: the oracle keeps one of each kind. The figures go into OUT/NAME.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

MAX_MEMORY = 10 * 2**30
MAX_BYTES = 60_000

# Atheris never frees the result of a traced comparison, an array where arrays are compared:
# 2 MB for each law.json. So of the law those modules alone are traced that read the file.
LAW = Path(__file__).parents[2] / "pml_cli" / "law"
READERS = ("__init__", "law_fields", "law_json")
UNTRACED = [f"pml_cli.law.{file.stem}" for file in LAW.glob("*.py") if file.stem not in READERS]

# Of a hundred inputs so many are changed as trees; the others as bytes.
TREES = 75


def main() -> None:
    """Fuzz; never returns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, required=True, help="of computing")
    parser.add_argument("--base", type=Path, required=True, help="files to begin from")
    parser.add_argument("--out", type=Path, required=True, help="figures and faults")
    options = parser.parse_args()
    os.environ["PML_CACHE"] = str(options.base / "cache")
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))

    # Its first call writes a file.
    tempfile.gettempdir()
    place = options.base / "fuzzing" / options.name
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    # What is imported while it reads the seeds reports its coverage.
    with atheris.instrument_imports(include=["pml_cli"], exclude=UNTRACED):
        from fuzz.oracle import Oracle

        target = importlib.import_module(f"fuzz.targets.{options.name}")
        oracle = Oracle(target.read, place / "input", options.out / options.name)
        for number, seed in enumerate(target.seeds(options.base)):
            (corpus / f"seed-{number}").write_bytes(seed)
            oracle.run(seed)
    assert oracle.accepted, oracle.faults

    flags = [f"-max_len={MAX_BYTES}", "-rss_limit_mb=0", "-timeout=600", "-len_control=0"]
    atheris.Setup(
        [options.name, *flags, str(corpus)],
        _until_spent(oracle, options.seconds, options.out / f"{options.name}.json"),
        custom_mutator=_mutator(target.MUTATE),
    )
    atheris.Fuzz()


def _until_spent(oracle: Any, seconds: float, report: Path) -> Callable[[bytes], None]:
    begin = time.process_time()

    def read(data: bytes) -> None:
        oracle.run(data)
        spent = time.process_time() - begin
        if spent < seconds:
            return
        figures = {
            "executions": oracle.executions,
            "refused": oracle.refused,
            "accepted": oracle.accepted,
            "faults": sorted(oracle.faults),
            "minutes": spent / 60,
        }
        report.write_text(json.dumps(figures, indent=1))
        os._exit(0)

    return read


def _mutator(change: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, int, int], bytes]:
    from fuzz.mutate import some_bytes

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = data
        if rng.randrange(100) < TREES:
            try:
                changed = change(data, rng)
            # What is no tree any more is changed as bytes.
            except Exception:
                changed = data
        if changed == data:
            both = (some_bytes(data, rng), atheris.Mutate(data, max_size))
            changed = rng.choice(both)
        return changed[:max_size]

    return mutate


if __name__ == "__main__":
    main()
