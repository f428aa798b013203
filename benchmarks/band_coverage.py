"""Do the bands of `pml predict` hold cells of new texts? Planted truths, simulated and fitted.

    python benchmarks/band_coverage.py [--grids 100]

Grids of 6 ranks x 5 lengths x 3 or 5 texts are fitted by the form that made them, as `pml fit`
does, and predicted as `pml predict` does: a cell inside the grid, at its corner, at its edge and
beyond it, of 100 new texts each. Texts are alike, differ in what they gain, or have exponents of
their own. Written to band_coverage.csv: the share of the new cells inside the 95 % band.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd

from pml_cli.law import inverse
from pml_cli.law.bootstrap import bootstrap
from pml_cli.law.fitted_law import BaseLoss, FittedLaw, LengthCurve, bootstrap_theta, text_theta
from pml_cli.law.forms import Form
from pml_cli.law.mle import LikelihoodFit, fit_saturating
from pml_cli.law.observations import RANK, Observations
from pml_cli.law.parameters import NATURAL_NAMES
from pml_cli.law.text_deviations import text_deviations
from pml_cli.stats import MIN_CLUSTERS, Array

RANKS = (2, 4, 8, 16, 32, 64)
LENGTHS = (64, 128, 256, 512, 1024)
# Rank and length: inside the grid, at its corner, at its edge, beyond it.
ASKED = ((6, 100), (64, 100), (6, 1024), (64, 2048))
FORM = Form(link="exp")
BASE = 6.0
NOISE = 0.02
NEW_TEXTS = 100
DRAWS = 500

# Standard deviations of what a text gains, and of its alpha and beta.
DIFFERENCES = {
    "texts alike": (0.0, 0.0, 0.0),
    "texts differ by 6 %": (0.06, 0.0, 0.0),
    "own exponents": (0.0, 0.08, 0.05),
}
OUT = Path(__file__).parent / "band_coverage.csv"


def gains(
    rank: Array,
    length: Array,
    text: Array,
    effects: Array,
    rng: np.random.Generator,
) -> Array:
    """Gains of N cells, (N,) nats per token.

    Args:
        text: (N,) number of the text.
        effects: (3, texts) of the gain, of alpha and of beta.
    """
    level, alpha, beta = effects[:, text]
    x = np.log(rank) - np.log(RANKS).mean()
    y = np.log(length) - np.log(LENGTHS).mean()
    power = 15 * rank**0.6 * length**-0.5 * np.exp(alpha * x - beta * y)
    noise = 1 + NOISE * rng.standard_normal(len(rank))
    gain = BASE * -np.expm1(-power / BASE) * (1 + level) * noise
    return np.minimum(gain, 0.999 * BASE)


def fitted(cells: Observations) -> FittedLaw:
    """The law of the cells as law.json gives it back."""
    fit = fit_saturating(cells, FORM)
    predicted = fit.predict(cells.rank, cells.length, cells.base)
    deviations = [text.deviation for text in text_deviations(cells, predicted)]
    curve = LengthCurve(log_length=np.log(LENGTHS), nats=np.full(len(LENGTHS), BASE))
    return FittedLaw(
        name="simulated",
        axis=RANK,
        form=FORM,
        form_reason="",
        theta=np.concatenate([fit.theta[None], draws_of(cells, fit)]),
        centre=fit.centre,
        ranks=(min(RANKS), max(RANKS)),
        lengths=(min(LENGTHS), max(LENGTHS)),
        base=BaseLoss(mean=curve, texts=[curve]),
        recall=None,
        recall_reason="",
        all_recall=None,
        tokens_per_fact=math.nan,
        status=fit.status,
        texts=fit.texts,
        text_spread=float(np.std(deviations, ddof=1)),
    )


def draws_of(cells: Observations, fit: LikelihoodFit) -> Array:
    """Draws of theta, (D, P)."""
    if fit.texts < MIN_CLUSTERS:
        return text_theta(fit.theta, fit.by_text, fit.texts, FORM)
    sample = bootstrap(cells, fit, DRAWS)
    columns = {NATURAL_NAMES[p]: sample.draws[:, p].tolist() for p in FORM.free}
    return bootstrap_theta(fit.theta, fit.centre, columns, sample.clusters)


def shares_inside(differences: tuple[float, ...], texts: int, seed: int) -> list[float]:
    """The share of new cells inside the band, for each of ASKED."""
    rng = np.random.default_rng([texts, seed])
    spreads = np.array(differences)[:, None]
    axes = np.meshgrid(RANKS, LENGTHS, range(texts), indexing="ij")
    rank, length, text = (axis.ravel() for axis in axes)
    effects = spreads * rng.standard_normal((3, texts))
    gain = gains(rank.astype(float), length.astype(float), text, effects, rng)
    law = fitted(Observations.of(rank, length, gain, np.full(len(rank), BASE), text=text))

    shares = []
    for asked_rank, asked_length in ASKED:
        of_new = spreads * rng.standard_normal((3, NEW_TEXTS))
        new = gains(
            np.full(NEW_TEXTS, float(asked_rank)),
            np.full(NEW_TEXTS, float(asked_length)),
            np.arange(NEW_TEXTS),
            of_new,
            rng,
        )
        band = inverse.with_band(law.gain(asked_rank, asked_length, BASE))
        shares.append(float(((band.low <= new) & (new <= band.high)).mean()))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of the bands of `pml predict`")
    parser.add_argument("--grids", type=int, default=100)
    options = parser.parse_args()

    rows = []
    for case, differences in DIFFERENCES.items():
        for texts in (3, 5):
            shares = [shares_inside(differences, texts, seed) for seed in range(options.grids)]
            names = [f"rank {rank}, {length} tokens" for rank, length in ASKED]
            mean = np.mean(shares, axis=0).round(3).tolist()
            rows.append(
                {"case": case, "texts": texts, "grids": options.grids}
                | dict(zip(names, mean, strict=True))
            )
    table = pd.DataFrame(rows)
    table.to_csv(OUT, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
