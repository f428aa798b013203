"""What saturation does to a fitted memory law: a law with known exponents, seen through several ceilings.

On the paper's own grid (16 ranks x 13 lengths), with 2 % noise on what an adapter can hold and a gain that cannot exceed
the base loss of 12 nats per token: the bias of the paper's estimator and of censored maximum likelihood, and how often
their 95 % intervals cover the truth. Prints a table in Markdown.

    python benchmarks/saturation.py --replicates 40

40 replicates take about 15 s on one core, 1000 about 6 min. The same seed gives the same table.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from pml_cli.law import power_law
from pml_cli.law.forms import Form
from pml_cli.law.mle import fit_saturating
from pml_cli.law.observations import Observations

RANKS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 48, 64, 128, 256, 512)
LENGTHS = (50, 100, 200, 500, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 10000)
ALPHA, BETA, SCALE, BASE, NOISE = 0.6, 0.5, 100.0, 12.0, 0.02


@dataclass(frozen=True)
class Ceiling:
    """How the planted gain saturates."""

    name: str
    link: str
    k: float = 1.0


CEILINGS = (
    Ceiling("hard min(L0, f)", "hard"),
    Ceiling("Hill k = 8", "hill", 8),
    Ceiling("Hill k = 4", "hill", 4),
    Ceiling("Hill k = 2", "hill", 2),
    Ceiling("1 - exp", "exp"),
)


def plant(ceiling: Ceiling, rng: np.random.Generator) -> Observations:
    """One noisy grid of a saturating law."""
    rank, length = (
        axis.ravel().astype(float) for axis in np.meshgrid(RANKS, LENGTHS, indexing="ij")
    )
    ratio = SCALE * rank**ALPHA * length**-BETA / BASE
    ratio *= 1 + NOISE * rng.standard_normal(len(rank))
    share = {
        "hard": np.minimum(ratio, 1),
        "exp": 1 - np.exp(-ratio),
        "hill": ratio * (1 + ratio**ceiling.k) ** (-1 / ceiling.k),
    }[ceiling.link]
    return Observations.of(rank, length, BASE * share, np.full(len(rank), BASE))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--replicates", type=int, default=40)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    print(
        f"Truth: alpha {ALPHA}, beta {BETA}, b 0; {chosen.replicates} replicates. Bias of alpha / beta (95 % coverage).\n"
    )
    print(
        "| how the gain saturates | paper's fit: R2, MAPE | its bias (coverage) | its b | censored ML bias (coverage) |"
    )
    print("|---|---|---|---|---|")
    for ceiling in CEILINGS:
        print(row(ceiling, chosen.replicates, chosen.seed), flush=True)


def row(ceiling: Ceiling, replicates: int, seed: int) -> str:
    """One line of the table."""
    rng = np.random.default_rng(seed)
    papers, ours = [], []
    for _ in range(replicates):
        cells = plant(ceiling, rng)
        papers.append(power_law.fit_paper(cells))
        ours.append(fit_saturating(cells, Form(link=ceiling.link)))
    quality = f"{np.mean([f.r2 for f in papers]):.3f}, {np.mean([f.mape for f in papers]):.1f} %"
    offset = f"{np.mean([f.b for f in papers]):.2f}"
    our = bias([f.parameters for f in ours], [f.intervals for f in ours])
    their = bias(
        [{"alpha": f.alpha, "beta": f.beta} for f in papers], [f.intervals for f in papers]
    )
    return f"| {ceiling.name} | {quality} | {their} | {offset} | {our} |"


def bias(found: list[dict[str, float]], intervals: list[dict[str, tuple[float, float]]]) -> str:
    """Bias of alpha and beta, and how often their intervals cover the truth."""
    truths = {"alpha": ALPHA, "beta": BETA}
    means = " / ".join(
        f"{np.mean([f[name] for f in found]) - truth:+.3f}" for name, truth in truths.items()
    )
    shares = []
    for name, truth in truths.items():
        ends = np.array([interval[name] for interval in intervals])
        shares.append(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))
    return f"{means} ({shares[0]:.2f} / {shares[1]:.2f})"


if __name__ == "__main__":
    main()
