"""How often the band of the rank for exact recall covers the truth, when texts differ.

Cells are recalled by a known law, P = 1 / (1 + exp(-(a + g log r - h log l + u))), where u is the
text's own: normal with a standard deviation on the logit. `pml fit`'s law of exact recall is fitted
to them, and its 95 % band of the rank at even chance, which `pml predict` gives, is compared with
the rank of the law without u, at the shortest, a middle and the longest length. a is drawn anew for
each grid, so that the threshold lies anywhere between the ranks tried.

    python benchmarks/recall_coverage.py --replicates 200

200 replicates take two minutes on one core. Writes recall_coverage.csv; the same seed gives
the same table.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from pml_cli.law.findings import OK
from pml_cli.law.observations import Observations
from pml_cli.law.recall_law import fit_recall

RANKS = (1, 2, 3, 4, 6, 8, 12)
LENGTHS = (24, 32, 48, 64, 96, 128)
DOUBLED = (1, 2, 4, 8, 16)

# Of the planted law, unless a case has its own.
SLOPE = 6.0
LENGTH_SLOPE = 5.5

DRAWS = 300


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of grid."""

    name: str
    texts: int
    text_sd: float
    """Of u, on the logit."""
    ranks: tuple[int, ...] = RANKS
    lengths: tuple[int, ...] = LENGTHS
    g: float = SLOPE
    h: float = LENGTH_SLOPE


CASES = (
    Case(name="texts alike", texts=5, text_sd=0.0),
    Case(name="texts alike", texts=10, text_sd=0.0),
    Case(name="texts differ", texts=5, text_sd=1.0),
    Case(name="texts differ", texts=10, text_sd=1.0),
    Case(name="texts differ much", texts=5, text_sd=2.0),
    Case(name="texts differ much", texts=10, text_sd=2.0),
    Case(name="three lengths", texts=5, text_sd=1.0, lengths=(24, 48, 96)),
    Case(name="sharp, steps fit", texts=5, text_sd=0.0, ranks=DOUBLED, lengths=DOUBLED, g=30, h=30),
    Case(name="two texts", texts=2, text_sd=1.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rows = []
    for case in CASES:
        row = measure(case, options.replicates, options.seed)
        print(row, flush=True)
        rows.append(row)
    target = Path(__file__).with_suffix(".csv")
    pd.DataFrame(rows).to_csv(target, index=False)


def measure(case: Case, replicates: int, seed: int) -> dict[str, object]:
    """Coverage of the band at each of three lengths together, and half its width as a factor."""
    covered = []
    log_half_widths = []
    for replicate in range(replicates):
        rng = np.random.default_rng([seed, replicate])
        offset = _offset(case, rng)
        cells, recalled = plant(case, offset, rng)
        found = fit_recall(cells, recalled, draws=DRAWS, seed=replicate)
        if found.status != OK:
            continue

        middle = len(case.lengths) // 2
        for length in (case.lengths[0], case.lengths[middle], case.lengths[-1]):
            truth = (case.h * np.log(length) - offset) / case.g
            low, high = np.quantile(found.log_ranks(length, 0.5)[1:], [0.025, 0.975])
            covered.append(low <= truth <= high)
            log_half_widths.append((high - low) / 2)

    return {
        "case": case.name,
        "texts": case.texts,
        "text_sd": case.text_sd,
        "grids": replicates,
        "coverage": round(float(np.mean(covered)), 3),
        "half_width": round(float(np.exp(np.median(log_half_widths))), 3),
    }


def _offset(case: Case, rng: np.random.Generator) -> float:
    """An a that puts the thresholds into the grid, anywhere between two ranks."""
    centre_rank = np.log(case.ranks).mean()
    centre_length = np.log(case.lengths).mean()
    shift = rng.uniform(-0.35, 0.35)
    return float(case.h * centre_length - case.g * (centre_rank + shift))


def plant(
    case: Case,
    offset: float,
    rng: np.random.Generator,
) -> tuple[Observations, np.ndarray]:
    """The cells of one grid, and whether each is recalled."""
    axes = np.meshgrid(case.ranks, case.lengths, range(case.texts), indexing="ij")
    rank, length, text = (axis.ravel() for axis in axes)
    of_text = rng.normal(0, case.text_sd, case.texts)

    logit = offset + case.g * np.log(rank) - case.h * np.log(length) + of_text[text]
    recalled = rng.random(len(rank)) < special.expit(logit)
    gain = np.ones(len(rank))
    return Observations.of(rank, length, gain, 8 * gain, text=text), recalled.astype(float)


if __name__ == "__main__":
    main()
