"""Noise that is no share of the gain: seen, weighed, and not seen where there is none."""

import numpy as np
import pytest

from pml_cli.law.forms import Form
from pml_cli.law.mle import fit_saturating
from pml_cli.law.noise import noise_power, with_noise
from pml_cli.law.observations import Observations

BASE = 6.0
FORM = Form(link="exp")


def planted(power, seed):
    """Noise of 0.25 nats at a gain of 3, which grows as this power of the gain."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid((2, 4, 8, 16, 32), (64, 128, 256, 512), range(6), indexing="ij")
    rank, length, text = (axis.ravel().astype(float) for axis in axes)
    gain = BASE * -np.expm1(-15 * rank**0.6 * length**-0.5 / BASE)
    noise = 0.25 * (gain / 3) ** power * rng.standard_normal(len(rank))
    measured = np.clip(gain + noise, 0.05, 5.9)
    return Observations.of(rank, length, measured, np.full(len(rank), BASE), text=text)


def test_noise_of_the_same_nats_is_weighed_as_such():
    powers = []
    for seed in range(3):
        cells = planted(0.0, seed)
        plain = fit_saturating(cells, FORM)
        weighed = with_noise(cells, [plain])
        assert weighed is not cells
        # Where less is gained, the same noise is a larger share.
        assert weighed.sd[np.argmin(cells.delta)] > 2 * weighed.sd[np.argmax(cells.delta)]

        fit = fit_saturating(weighed, FORM)
        assert fit.parameters["alpha"] == pytest.approx(0.6, abs=0.05)
        powers.append(noise_power(weighed, fit))
    assert np.median(powers) == pytest.approx(0, abs=0.25)


def test_noise_that_is_a_share_of_the_gain_stays():
    for seed in range(3):
        cells = planted(1.0, seed)
        assert with_noise(cells, [fit_saturating(cells, FORM)]) is cells
