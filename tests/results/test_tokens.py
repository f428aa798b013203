"""tokens.parquet is read through one door, and only as a table of (steps x tokens)."""

import numpy as np
import pytest
from support.token_tables import token_table

from pml_cli.results.tokens import IrregularError, read_frame, read_grid


def write(folder, rows):
    path = folder / "tokens.parquet"
    rows.to_parquet(path, index=False)
    return path


def test_a_grid_has_a_row_a_step_and_a_column_a_token(tmp_path):
    rows = token_table()
    grid = read_grid(write(tmp_path, rows), ["nll"])
    assert list(grid) == ["step", "sample", "position", "nll"]
    assert grid["nll"].shape == (4, 6)
    assert grid["nll"].ravel().tolist() == rows["nll"].tolist()


def test_a_frame_is_the_file(tmp_path):
    rows = token_table()
    assert read_frame(write(tmp_path, rows)).equals(rows)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.assign(nll=np.nan), "column nll has empty values"),
        (lambda rows: rows.assign(margin=np.inf), "column margin has values that are no number"),
        (lambda rows: rows.assign(nll="word"), "column nll is of"),
        (lambda rows: rows.assign(sample=0, position=0), "a token is there twice at one step"),
        (lambda rows: rows.drop(columns="position"), "no column position"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, spoil, message):
    with pytest.raises(IrregularError, match=message):
        read_frame(write(tmp_path, spoil(token_table())))
