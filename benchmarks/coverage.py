"""Do the 95 % intervals of `pml fit` cover? Planted truths, simulated and fitted.

    python benchmarks/coverage.py [--repeats 200] [--first-seed 0] [--processes 2] [--only NAME ...]

Every case plants alpha = 0.6 and beta = 0.5 in a grid of cells with a noise, a difference between
texts, or a bend of its own, and fits it as `pml fit` does, with three differences that spare time:
no held-out checks, no bootstrap (the intervals of alpha and beta need neither), and a search that
starts nearer to the truth. Written to coverage.csv, a row a case: the share of intervals that cover
each exponent, their median half width, and the share of fits that say that the exponents are not to
be trusted ("flagged"): no form of pml describes the cells, or the gain bends in nearly all of them;
the coverage of those that do not say so; and the share of fits with any warning. A case is kept if
its intervals cover in 88 to 98 %, or if nearly all of its fits are flagged. A case marked good has
nothing to warn of.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from pml_cli.law import mle
from pml_cli.law.forms import FORMS
from pml_cli.law.mle import LikelihoodFit
from pml_cli.law.model_selection import choose
from pml_cli.law.noise import with_noise
from pml_cli.law.observations import Observations
from pml_cli.law.quality import quality_of
from pml_cli.stats import Array

ALPHA = 0.6
BETA = 0.5
# Nats per token at rank 1 and length 1.
SCALE = 15.0
BASE = 6.0
NOISE = 0.02

# Values of alpha and of beta where the search starts, and how many of these nodes are polished;
# `pml fit` starts from eight values, 0.05 to 2.5, and polishes five.
STARTS = np.array([0.3, 0.6, 1.1])
POLISHED = 3

RANKS = (2, 4, 8, 16, 32, 64)
LENGTHS = (64, 128, 256, 512, 1024)
PAPER_RANKS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
PAPER_LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
SMALL_RANKS = (1, 2, 4, 8, 16, 24, 32, 64, 80)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """N cells before their noise."""

    rank: Array
    """(N,)."""
    length: Array
    """(N,) tokens."""
    text: Array
    """(N,) number of the text."""
    base: float
    """Loss of the base model, nats per token."""

    def power(self, alpha: Array | float = ALPHA, beta: Array | float = BETA) -> Array:
        """The power law, (N,); its scale is that of the case."""
        return np.asarray(self.rank**alpha * self.length**-beta)


Gain = Callable[[Cells, np.random.Generator, float], Array]
"""The gains of the cells, (N,) nats per token, noise included; the last is the scale."""
Bend = Callable[[Array], Array]
"""S(x)."""


def exponential(x: Array) -> Array:
    return np.asarray(-np.expm1(-x))


def hard(x: Array) -> Array:
    return np.minimum(x, 1.0)


def hill(x: Array) -> Array:
    return np.asarray(x / (1 + x**4) ** 0.25)


def arctan(x: Array) -> Array:
    return np.asarray(2 / math.pi * np.arctan(math.pi * x / 2))


def erf(x: Array) -> Array:
    """Sharper than exponential; no link of pml."""
    return np.asarray(special.erf(math.sqrt(math.pi) / 2 * x))


def lomax(x: Array) -> Array:
    """Tokens of gamma-distributed difficulty; no link of pml."""
    return np.asarray(1 - (1 + x / 2) ** -2)


def lognormal(x: Array) -> Array:
    """Tokens of log-normally distributed difficulty, of spread 1; no link of pml."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    rates = np.exp(nodes - 0.5)
    gained = -np.expm1(-x[:, None] * rates)
    return np.asarray(gained @ weights / weights.sum())


def gudermannian(x: Array) -> Array:
    """Sharper than exponential; no link of pml."""
    return np.asarray(4 / math.pi * np.arctan(np.tanh(math.pi * x / 4)))


def mixture(x: Array) -> Array:
    """Half of the tokens three times as easy, half three times as hard."""
    easy = exponential(3 * x)
    difficult = exponential(x / 3)
    return (easy + difficult) / 2


def bent(cells: Cells, scale: float, bend: Bend = exponential) -> Array:
    """Gains without noise, (N,)."""
    return cells.base * bend(scale * cells.power() / cells.base)


def relative(spread: float | Callable[[Cells], Array], bend: Bend = exponential) -> Gain:
    """Independent noise, as a share of the gain."""

    def gain(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
        sd = spread(cells) if callable(spread) else spread
        noise = sd * rng.standard_normal(len(cells.rank))
        return bent(cells, scale, bend) * (1 + noise)

    return gain


def _between(values: Array, first: float, last: float) -> Array:
    """From first at the least value to last at the largest, geometrically, (N,)."""
    logs = np.log(values)
    share = (logs - logs.min()) / np.ptp(logs)
    return np.asarray(first * (last / first) ** share)


def noisier_when_long(cells: Cells) -> Array:
    return _between(cells.length, 0.01, 0.08)


def noisier_when_small(cells: Cells) -> Array:
    return _between(cells.rank, 0.08, 0.01)


def absolute(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    return bent(cells, scale) + 0.3 * rng.standard_normal(len(cells.rank))


def heavy_tails(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    noise = NOISE * rng.standard_t(2, len(cells.rank))
    return bent(cells, scale) * np.maximum(0.05, 1 + noise)


def by_length(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    """What is hard about a text at a length is shared by its ranks and seeds: 4 %."""
    gain = relative(NOISE)(cells, rng, scale)
    pairs = np.stack([cells.text // 100, cells.length])
    _, group = np.unique(pairs, axis=1, return_inverse=True)
    effects = 0.04 * rng.standard_normal(group.max() + 1)
    return gain * (1 + effects[group.ravel()])


def text_level(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    effects = 0.05 * rng.standard_normal(int(cells.text.max()) + 1)
    return relative(NOISE)(cells, rng, scale) * (1 + effects[cells.text.astype(int)])


def prefixes(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    """Blocks of 32 tokens are harder or easier; a length has the mean of its blocks."""
    gain = relative(NOISE)(cells, rng, scale)
    texts = int(cells.text.max()) + 1
    blocks = 0.15 * rng.standard_normal((texts, int(cells.length.max()) // 32))
    count = (cells.length // 32).astype(int)
    mean = np.cumsum(blocks, axis=1)[cells.text.astype(int), count - 1] / count
    return gain * (1 + mean)


def own_exponents(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    """Every text has exponents of its own, around the same point of the grid."""
    texts = int(cells.text.max()) + 1
    text = cells.text.astype(int)
    x = np.log(cells.rank) - np.log(cells.rank).mean()
    y = np.log(cells.length) - np.log(cells.length).mean()
    tilt = 0.08 * rng.standard_normal(texts)[text] * x - 0.05 * rng.standard_normal(texts)[text] * y
    gain = cells.base * exponential(scale * cells.power() * np.exp(tilt) / cells.base)
    return gain * (1 + NOISE * rng.standard_normal(len(gain)))


def one_text_off(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    gain = relative(NOISE)(cells, rng, scale)
    return gain * np.where(cells.text == 1, 0.7, 1.0)


def two_cells_halved(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    gain = relative(NOISE)(cells, rng, scale)
    gain[rng.choice(len(gain), 2, replace=False)] *= 0.5
    return gain


def interaction(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    """alpha grows with length, from 0.45 to 0.75: no law of this family."""
    y = np.log(cells.length)
    alpha = ALPHA + 0.3 * ((y - y.min()) / np.ptp(y) - 0.5)
    x = np.log(cells.rank)
    power = cells.power(alpha) * np.exp(-(alpha - ALPHA) * x.mean())
    gain = cells.base * exponential(scale * power / cells.base)
    return gain * (1 + NOISE * rng.standard_normal(len(gain)))


def level(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    """The base model loses 9 nats, memory starts from 8."""
    start = 8.0
    memory = start * exponential(scale * cells.power() / start)
    return (cells.base - start + memory) * (1 + NOISE * rng.standard_normal(len(memory)))


def floor(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
    ceiling = cells.base - 0.3
    gain = ceiling * exponential(scale * cells.power() / ceiling)
    return gain * (1 + NOISE * rng.standard_normal(len(gain)))


def unconverged(largest: float) -> Gain:
    """Gains of which long texts miss a share, from 0 to `largest`."""

    def gain(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
        y = np.log(cells.length)
        missing = largest * (y - y.min()) / np.ptp(y)
        return relative(NOISE)(cells, rng, scale) * (1 - missing)

    return gain


def promised(largest: float) -> Gain:
    """What the optimiser expects of these cells: 2.4 times what they miss, at the median.

    As in docs/optimizers.md, where it is 1.1 to 9 times.
    """

    def expected(cells: Cells, rng: np.random.Generator, scale: float) -> Array:
        y = np.log(cells.length)
        missing = largest * (y - y.min()) / np.ptp(y) * bent(cells, scale)
        factor = 2.4 * np.exp(0.5 * rng.standard_normal(len(missing)))
        promise = missing * np.maximum(1.1, factor)
        # Up to train.tolerance a cell has converged.
        return np.where(promise > 0.05, promise, 0.0)

    return expected


@dataclass(frozen=True, kw_only=True)
class Case:
    """A planted truth."""

    name: str
    gain: Gain
    ranks: tuple[int, ...] = RANKS
    lengths: tuple[int, ...] = LENGTHS
    texts: int = 3
    seeds: int = 1
    base: float = BASE
    scale: float = SCALE
    diagonal: bool = False
    """Only cells near the diagonal of the grid."""
    expected: Gain | None = None
    """What cells still expect to gain; None where nothing says whether they had converged."""
    good: bool = False
    """Nothing is wrong: a warning would be a false alarm."""

    def simulate(self, seed: int) -> Observations:
        """One grid of cells."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        axes = (self.ranks, self.lengths, range(self.texts), range(self.seeds))
        grids = np.meshgrid(*(np.asarray(axis, float) for axis in axes), indexing="ij")
        rank, length, text, _ = (grid.ravel() for grid in grids)
        if self.diagonal:
            near = np.abs(np.log2(rank / rank.min()) - np.log2(length / length.min())) <= 1
            rank, length, text = rank[near], length[near], text[near]

        cells = Cells(rank=rank, length=length, text=text, base=self.base)
        # A loss stays above 0, and a cell without a gain is excluded by `pml fit`.
        gain = np.minimum(self.gain(cells, rng, self.scale), 0.999 * self.base)
        kept = gain > 0
        expected = np.zeros(len(gain))
        if self.expected is not None:
            expected = self.expected(cells, rng, self.scale)
        return Observations.of(
            rank[kept],
            length[kept],
            gain[kept],
            np.full(kept.sum(), self.base),
            text=text[kept],
            expected=expected[kept],
        )


PAPER = {"ranks": PAPER_RANKS, "lengths": PAPER_LENGTHS, "texts": 1, "base": 12.0, "scale": 25.0}

CASES = (
    Case(name="exp, 2 % noise", gain=relative(NOISE), good=True),
    Case(name="exp, 2 % noise, 5 texts", gain=relative(NOISE), texts=5, good=True),
    Case(name="noise 1 to 8 % with length", gain=relative(noisier_when_long)),
    Case(name="noise 8 to 1 % with rank", gain=relative(noisier_when_small)),
    Case(name="noise of 0.3 nats", gain=absolute),
    Case(name="Student's t, 2 degrees", gain=heavy_tails),
    Case(name="one text, lengths differ", gain=by_length, texts=1),
    Case(
        name="one text, 9 lengths differ",
        gain=by_length,
        texts=1,
        lengths=(64, 91, 128, 181, 256, 362, 512, 724, 1024),
    ),
    Case(name="one text, 5 seeds", gain=by_length, texts=1, seeds=5),
    Case(name="texts differ by 5 %", gain=text_level),
    Case(name="texts differ by 5 %, 5 texts", gain=text_level, texts=5),
    Case(name="prefixes", gain=prefixes),
    Case(name="own exponents, 3 texts", gain=own_exponents),
    Case(name="own exponents, 5 texts", gain=own_exponents, texts=5),
    Case(name="one text of three 30 % lower", gain=one_text_off),
    Case(name="two cells halved", gain=two_cells_halved),
    Case(name="tanh", gain=relative(NOISE, np.tanh)),
    Case(name="arctan", gain=relative(NOISE, arctan)),
    Case(name="erf", gain=relative(NOISE, erf)),
    Case(name="1 - (1 + x/2)^-2", gain=relative(NOISE, lomax)),
    Case(name="log-normal difficulty", gain=relative(NOISE, lognormal)),
    Case(name="Gudermannian", gain=relative(NOISE, gudermannian)),
    Case(name="mixture", gain=relative(NOISE, mixture)),
    Case(name="alpha grows with length", gain=interaction),
    Case(name="level of 8 nats", gain=level, base=9.0, good=True),
    Case(name="floor of 0.3", gain=floor),
    Case(name="long texts miss 15 %, nobody says so", gain=unconverged(0.15)),
    Case(
        name="long texts miss 5 %, converged=false",
        gain=unconverged(0.05),
        expected=promised(0.05),
    ),
    Case(
        name="long texts miss 15 %, converged=false",
        gain=unconverged(0.15),
        expected=promised(0.15),
    ),
    Case(name="near the diagonal", gain=relative(NOISE), diagonal=True),
    Case(name="3 x 3, 3 texts", gain=relative(NOISE), ranks=(4, 6, 8), lengths=(100, 150, 200)),
    Case(
        name="3 x 3, one text",
        gain=relative(NOISE),
        ranks=(4, 6, 8),
        lengths=(100, 150, 200),
        texts=1,
    ),
    Case(
        name="lengths 50 to 200, 8 ranks",
        gain=relative(NOISE),
        ranks=(1, 2, 4, 8, 12, 16, 24, 32),
        lengths=(50, 75, 100, 150, 200),
    ),
    Case(
        name="lengths 100 to 200, 5 ranks",
        gain=relative(NOISE),
        ranks=(2, 4, 8, 16, 32),
        lengths=(100, 150, 200),
    ),
    Case(name="paper's grid, exp", gain=relative(NOISE), **PAPER),
    Case(name="paper's grid, hard", gain=relative(NOISE, hard), **PAPER),
    Case(name="paper's grid, Hill 4", gain=relative(NOISE, hill), **PAPER),
    Case(name="paper's grid, mixture", gain=relative(NOISE, mixture), **PAPER),
    Case(
        name="paper's small grid",
        gain=relative(NOISE),
        ranks=SMALL_RANKS,
        lengths=PAPER_LENGTHS,
        texts=1,
        base=3.0,
        scale=30.0,
    ),
)

OUT = Path(__file__).parent / "coverage.csv"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one fit says."""

    name: str
    form: str
    """The chosen form; empty where no law is identified."""
    alpha: tuple[float, float]
    """95 % interval."""
    beta: tuple[float, float]
    rejected: bool
    """Whether the fit says that no form of pml describes the cells."""
    bends: bool
    """Whether it says that the gain bends in nearly all cells."""
    short: bool
    """Whether it says that long texts gain less than where they bend tells."""
    warned: bool

    @property
    def flagged(self) -> bool:
        """Whether it says that its exponents are not to be trusted."""
        return self.rejected or self.bends or self.short


def fit_forms(cells: Observations) -> list[LikelihoodFit]:
    """Every form with a ceiling."""
    # A form with k at its bound is another one, which is fitted, too.
    by_name = {}
    for form in FORMS:
        if form.kind.has_ceiling:
            fitted = mle.fit_saturating(cells, form)
            by_name[fitted.name] = fitted
    return list(by_name.values())


def fit(position: int, seed: int) -> Outcome:
    """Simulate and fit one grid of a case, by its position in CASES."""
    case = CASES[position]
    cells = case.simulate(seed)
    mle.EXPONENT_GRID = STARTS
    mle.POLISHED_NODES = POLISHED
    fits = fit_forms(cells)
    weighted = with_noise(cells, fits)
    if weighted is not cells:
        cells = weighted
        fits = fit_forms(cells)
    chosen = choose(fits)
    if chosen is None:
        unknown = (-math.inf, math.inf)
        return Outcome(
            name=case.name,
            form="",
            alpha=unknown,
            beta=unknown,
            rejected=True,
            bends=False,
            short=False,
            warned=True,
        )

    law = fits[chosen]
    quality = quality_of(cells, fits, law)
    return Outcome(
        name=case.name,
        form=law.name,
        alpha=quality.interval("alpha"),
        beta=quality.interval("beta"),
        rejected=quality.lack_of_fit.rejected,
        bends=quality.bends_everywhere,
        short=quality.lack_of_fit.long_texts_short,
        warned=bool(quality.warnings),
    )


def summary(case: Case, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The row of a case."""
    unflagged = [outcome for outcome in outcomes if not outcome.flagged]
    row: dict[str, object] = {"case": case.name, "good": case.good, "repeats": len(outcomes)}
    for name, truth in (("alpha", ALPHA), ("beta", BETA)):
        spans = [getattr(outcome, name) for outcome in outcomes]
        trusted = [getattr(outcome, name) for outcome in unflagged]
        row[f"{name}_covered"] = _share([low <= truth <= high for low, high in spans])
        row[f"{name}_covered_unless_flagged"] = _share(
            [low <= truth <= high for low, high in trusted]
        )
        row[f"{name}_half_width"] = round(
            float(np.median([(high - low) / 2 for low, high in spans])), 4
        )
    row["flagged"] = _share([outcome.flagged for outcome in outcomes])
    row["form_rejected"] = _share([outcome.rejected for outcome in outcomes])
    row["bends_everywhere"] = _share([outcome.bends for outcome in outcomes])
    row["long_texts_short"] = _share([outcome.short for outcome in outcomes])
    row["warned"] = _share([outcome.warned for outcome in outcomes])
    forms = Counter(outcome.form for outcome in outcomes).most_common(3)
    row["chosen"] = "; ".join(f"{form or 'none'} {count}" for form, count in forms)
    return row


def _share(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 3) if hits else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of the intervals of `pml fit`")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    cases = [case for case in CASES if not options.only or case.name in options.only]
    positions = [CASES.index(case) for case in cases]
    outcomes: dict[str, list[Outcome]] = {case.name: [] for case in cases}
    with ProcessPoolExecutor(options.processes) as pool:
        # A repeat of every case at a time, so that a run that is stopped early has all cases.
        for seed in range(options.first_seed, options.first_seed + options.repeats):
            for outcome in pool.map(fit, positions, [seed] * len(cases)):
                outcomes[outcome.name].append(outcome)
            rows = [summary(case, outcomes[case.name]) for case in cases]
            pd.DataFrame(rows).to_csv(options.out, index=False)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
