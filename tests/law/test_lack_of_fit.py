"""What a law leaves over, freed from the effects of texts group by group, as by one regression."""

import numpy as np
import pytest

from pml_cli.law.lack_of_fit import RANK_TOLERANCE, Effects, _partial_out

CELLS, TEXTS = 120, 9


def as_columns(effects):
    """The effects as columns of a design, (N, K)."""
    columns = [np.eye(effects.group.max() + 1)[effects.group]]
    if effects.x is not None:
        columns.append(np.eye(effects.text.max() + 1)[effects.text] * effects.x[:, None])
    return np.concatenate(columns, axis=1)


def by_one_regression(columns, values):
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    basis = left[:, singular > RANK_TOLERANCE * singular[0]]
    return values - basis @ (basis.T @ values), basis.shape[1]


@pytest.fixture(params=["levels", "levels and slopes", "some without a slope"])
def effects(request):
    rng = np.random.default_rng(3)
    text = rng.integers(0, TEXTS, CELLS)
    if request.param == "levels":
        return Effects(group=text)
    group = 3 * text + rng.integers(0, 3, CELLS)
    x = rng.normal(size=CELLS)
    if request.param == "some without a slope":
        # Nothing varies within the groups of these texts.
        x = np.where(text < 4, group.astype(float), x)
    return Effects(group=group, x=x, text=text)


@pytest.mark.parametrize("explained", [False, True], ids=["free", "explained by the effects"])
def test_the_rest_is_that_of_one_regression_on_everything(effects, explained):
    rng = np.random.default_rng(4)
    columns = rng.normal(size=(CELLS, 5)) * [1, 1e3, 1e-3, 1, 1]
    values = rng.normal(size=CELLS)
    if explained:
        columns[:, 0] = as_columns(effects) @ rng.normal(size=as_columns(effects).shape[1])

    rest, rank = _partial_out(columns, values, effects)
    expected, expected_rank = by_one_regression(
        np.concatenate([as_columns(effects), columns / np.linalg.norm(columns, axis=0)], axis=1),
        values,
    )
    assert rank == expected_rank
    np.testing.assert_allclose(rest, expected, atol=1e-9)
