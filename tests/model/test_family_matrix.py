"""Small random models of every supported family; docs/families.md says what works on each."""

import pytest
import transformers
from support.family_matrix import (
    DOCS,
    REFUSED,
    REPRESENTATIVE,
    SUPPORTED,
    document,
    linear_adapter,
    measured,
    small_fields,
    table_row,
)
from support.models import random_bank

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.loading import load_model


def documented_rows():
    """Rows of the table, by family."""
    lines = DOCS.read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and "`model_type`" not in line]
    return {row.split()[1]: row for row in rows}


def test_the_document_has_every_family_and_no_other():
    rows = documented_rows()
    assert list(rows) == SUPPORTED
    assert set(REPRESENTATIVE) <= set(SUPPORTED)

    # The versions of the measurement, not of this installation.
    said = DOCS.read_text("utf-8").splitlines()
    expected = document(list(rows.values())).splitlines()
    assert [line for line in said if " with transformers " not in line] == [
        line for line in expected if " with transformers " not in line
    ]


def cases():
    """Families; those that are not representative are slow."""
    return [
        pytest.param(family, marks=[] if family in REPRESENTATIVE else [pytest.mark.slow])
        for family in SUPPORTED
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", cases())
def test_what_works_is_what_the_document_says(tmp_path, family):
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    assert table_row(family, measured(family, tmp_path)) == documented_rows()[family]


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_not_supported_is_refused_in_one_line(family):
    architecture = {"model_type": family, **small_fields(family)}
    settings = Model(
        name="small", path="x", weights="random", architecture=architecture, layer=1, device="cpu"
    )
    with pytest.raises(UserError) as caught:
        model = load_model(settings)
        model.check_split(random_bank(model, linear_adapter(model)))
    assert "\n" not in str(caught.value)
