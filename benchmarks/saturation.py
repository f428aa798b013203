"""What saturation does to a fitted memory law: a law with known exponents, seen through ceilings.

On the paper's own grid (16 ranks x 13 lengths), with 2 % noise on what an adapter can hold and a
gain that cannot exceed the base loss of 12 nats per token: the bias of the paper's estimator and of
censored maximum likelihood, and how often their 95 % intervals cover the truth. Prints a table in
Markdown.

    python benchmarks/saturation.py --replicates 40

40 replicates take about 15 s on one core, 1000 about 6 min. The same seed gives the same table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pml_cli.law import power_law
from pml_cli.law.forms import Form
from pml_cli.law.mle import fit_saturating
from pml_cli.law.observations import Observations

RANKS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 48, 64, 128, 256, 512)
LENGTHS = (50, 100, 200, 500, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 10000)

# The planted law: gain = SCALE r^ALPHA l^-BETA below the ceiling, in nats per token.
ALPHA = 0.6
BETA = 0.5
SCALE = 100.0

BASE_LOSS = 12.0
NOISE = 0.02


@dataclass(frozen=True)
class Ceiling:
    """How the planted gain saturates."""

    name: str
    link: str
    k: float = 1.0

    def saturated(self, ratio: np.ndarray) -> np.ndarray:
        """Gain as a share of the base loss, of what it would be without a ceiling."""
        if self.link == "hard":
            return np.minimum(ratio, 1)
        if self.link == "exp":
            return 1 - np.exp(-ratio)
        return ratio * (1 + ratio**self.k) ** (-1 / self.k)


CEILINGS = (
    Ceiling("hard min(L0, f)", "hard"),
    Ceiling("Hill k = 8", "hill", 8),
    Ceiling("Hill k = 4", "hill", 4),
    Ceiling("Hill k = 2", "hill", 2),
    Ceiling("1 - exp", "exp"),
)


def plant(ceiling: Ceiling, rng: np.random.Generator) -> Observations:
    """One noisy grid of a saturating law."""
    rank_grid, length_grid = np.meshgrid(RANKS, LENGTHS, indexing="ij")
    rank = rank_grid.ravel().astype(float)
    length = length_grid.ravel().astype(float)

    ratio = SCALE * rank**ALPHA * length**-BETA / BASE_LOSS
    ratio *= 1 + NOISE * rng.standard_normal(len(rank))
    gain = BASE_LOSS * ceiling.saturated(ratio)
    return Observations.of(rank, length, gain, np.full(len(rank), BASE_LOSS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    truth = f"Truth: alpha {ALPHA}, beta {BETA}, b 0; {options.replicates} replicates."
    print(f"{truth} Bias of alpha / beta (95 % coverage).\n")
    print(
        "| how the gain saturates | paper's fit: R2, MAPE | its bias (coverage) | its b "
        "| censored ML bias (coverage) |"
    )
    print("|---|---|---|---|---|")
    for ceiling in CEILINGS:
        print(row(ceiling, options.replicates, options.seed), flush=True)


def row(ceiling: Ceiling, replicates: int, seed: int) -> str:
    """One line of the table."""
    rng = np.random.default_rng(seed)
    paper_fits = []
    our_fits = []
    for _ in range(replicates):
        cells = plant(ceiling, rng)
        paper_fits.append(power_law.fit_paper(cells))
        our_fits.append(fit_saturating(cells, Form(link=ceiling.link)))

    r2 = np.mean([fit.r2 for fit in paper_fits])
    mape = np.mean([fit.mape for fit in paper_fits])
    offset = np.mean([fit.b for fit in paper_fits])
    paper_values = [{"alpha": fit.alpha, "beta": fit.beta} for fit in paper_fits]
    paper_bias = bias(paper_values, [fit.intervals for fit in paper_fits])
    our_bias = bias([fit.parameters for fit in our_fits], [fit.intervals for fit in our_fits])
    quality = f"{r2:.3f}, {mape:.1f} %"
    return f"| {ceiling.name} | {quality} | {paper_bias} | {offset:.2f} | {our_bias} |"


def bias(
    values: Sequence[dict[str, float]], intervals: Sequence[dict[str, tuple[float, float]]]
) -> str:
    """Bias of alpha and beta, and how often their intervals cover the truth."""
    biases = []
    coverages = []
    for name, truth in (("alpha", ALPHA), ("beta", BETA)):
        mean = np.mean([parameters[name] for parameters in values])
        biases.append(f"{mean - truth:+.3f}")

        low, high = np.array([interval[name] for interval in intervals]).T
        coverages.append(f"{np.mean((low <= truth) & (truth <= high)):.2f}")
    return f"{' / '.join(biases)} ({' / '.join(coverages)})"


if __name__ == "__main__":
    main()
