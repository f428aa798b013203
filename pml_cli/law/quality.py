"""How far a law can be trusted: intervals over all forms, lack of fit, texts that are off.

The exponents are those of a power law that the gain follows far below its ceiling. Where even the
cells farthest below bend, exponents come from the form of the bend, and another form has others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pml_cli.law.exponents import POSITIONS, ExponentMixture, exponent_mixture
from pml_cli.law.findings import Finding, finding
from pml_cli.law.forms import link_slopes
from pml_cli.law.lack_of_fit import LackOfFit, lack_of_fit
from pml_cli.law.mle import LikelihoodFit, design_of
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import Interval
from pml_cli.law.text_deviations import TextDeviation, text_deviations

# A tenth of the unsaturated cells must rise at least as this power of what they would gain without
# a ceiling. Simulated grids whose form is fitted have 0.79 and more (benchmarks/coverage.py), those
# of tokens of two kinds, whose exponents no form finds, 0.5 to 0.75.
LEAST_SLOPE = 0.75
TENTH = 0.9


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What the cells say about the chosen law."""

    exponents: dict[str, ExponentMixture]
    """alpha and beta by all forms; without those that the chosen form fixes."""
    lack_of_fit: LackOfFit
    texts: list[TextDeviation]
    slope: float
    """d log S / d log x of the link, which a tenth of the unsaturated cells exceed; 1: no bend."""

    @property
    def bends_everywhere(self) -> bool:
        """Whether there are too few cells on which the gain is nearly a power."""
        return self.slope < LEAST_SLOPE

    def interval(self, name: str) -> Interval:
        """95 % interval of alpha or beta; infinite where there is none."""
        mixture = self.exponents.get(name)
        return mixture.interval if mixture else (-math.inf, math.inf)

    @property
    def warnings(self) -> list[Finding]:
        """The gravest first; each with the number it changes."""
        warnings = []
        test = self.lack_of_fit
        if test.rejected:
            warnings.append(finding("form_rejected", p=test.p, percent=100 * test.pattern))
        if test.long_texts_short:
            missing = 100 * test.missing
            warnings.append(finding("long_texts_short", p=test.shortfall, percent=missing))
        if self.bends_everywhere:
            warnings.append(finding("bends_everywhere", slope=self.slope))
        for text in self.texts:
            if text.off:
                warnings.append(finding("text_off", text=text.text, percent=100 * text.deviation))
        if len(self.texts) == 1:
            warnings.append(finding("single_text"))
        return warnings


def quality_of(
    cells: Observations,
    fits: Sequence[LikelihoodFit],
    chosen: LikelihoodFit,
) -> Quality:
    """The quality of the chosen law.

    Args:
        fits: of every form, to the same cells.
        chosen: one of them.
    """
    exponents = {}
    for name in POSITIONS:
        mixture = exponent_mixture(fits, chosen, name)
        if mixture is not None:
            exponents[name] = mixture

    design = design_of(cells, chosen.centre)
    slopes = link_slopes(chosen.theta[None], design.x, design.y, design.base, chosen.form.link)
    predicted = chosen.predict(cells.rank, cells.length, cells.base)
    return Quality(
        exponents=exponents,
        lack_of_fit=lack_of_fit(cells, chosen),
        texts=text_deviations(cells, predicted),
        slope=float(np.quantile(slopes[0][~cells.saturated], TENTH)),
    )
