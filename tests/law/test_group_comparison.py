"""Groups compared: shared exponents are found shared, others different."""

import numpy as np
import pytest
from support.planted_laws import exponential_cells

from pml_cli.law.forms import Form
from pml_cli.law.group_comparison import compare


@pytest.mark.slow
def test_groups_that_share_their_exponents_and_groups_that_do_not():
    forms = (Form(link="exp"), Form(link="hard"))
    same = {
        name: exponential_cells(C=c, noise=0.02, seed=k)
        for k, (name, c) in enumerate({"a": 9.0, "b": 14.0, "c": 11.0}.items())
    }
    found = compare(same, forms, ("model",))
    assert found.form == Form(link="exp") and len(found.groups) == 3
    ties = {tie.what: tie for tie in found.ties}
    assert ties["alpha and beta"].freedom == 4 and all(tie.p > 0.01 for tie in found.ties)
    assert ties["alpha and beta"].shared == pytest.approx({"alpha": 0.6, "beta": 0.5}, abs=0.02)
    other = compare(
        {**same, "c": exponential_cells(alpha=0.7, noise=0.02, seed=5)},
        forms,
        ("model",),
    )
    ties = {tie.what: tie for tie in other.ties}
    assert all(group.cost < 5 for group in found.groups)
    assert (
        ties["alpha"].p < 1e-6
        and ties["alpha"].p_clustered < 1e-3
        and ties["alpha and beta"].p < 1e-6
    )
    assert ties["alpha and beta"].statistic >= ties["alpha"].statistic - 1e-3


@pytest.mark.slow
def test_the_share_of_false_alarms_is_the_nominal_one():
    rejected = []
    for seed in range(12):
        pair = {
            str(k): exponential_cells(
                (1, 2, 4, 8), (48, 96, 192), 4, noise=0.02, seed=100 + 2 * seed + k
            )
            for k in (0, 1)
        }
        ties = compare(pair, (Form(link="exp"),), ("model",)).ties
        rejected.append([tie.p < 0.05 for tie in ties])
    assert np.mean(rejected) <= 0.2, np.mean(rejected, axis=0)
