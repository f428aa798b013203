"""The tokens of a run, tokens.parquet: the one door through which the file is read.

One row a logged step and target token. Others may have written it, or a disk has damaged it: what
is read is checked before anything is computed from it.

Shapes: T logged steps, S target tokens of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pml_cli.errors import first_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

# Which token a row is of, and when.
KEYS = ("step", "sample", "position")

# Of the columns that are no integers; any others (token_id, rank) are.
REALS = ("p", "nll", "margin")
FLAGS = ("correct",)

# Steps, samples and positions are 32-bit numbers.
MOST = 2**31 - 1


class IrregularError(Exception):
    """The file is not a table of (steps x tokens); the message says in what."""


def read_grid(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """KEYS and the asked columns, each as (T, S): the same tokens in each row, steps ascending.

    Args:
        path: a tokens.parquet.
        columns: to read beside KEYS.

    Raises:
        IrregularError: the file is not a table of (steps x tokens).
        OSError: it cannot be read.
    """
    return _grid(_read(path, [*KEYS, *columns]))


def read_frame(path: Path) -> pd.DataFrame:
    """Every column that pml writes and the file has, one row a logged step and token.

    Raises:
        IrregularError: the file is not a table of (steps x tokens).
        OSError: it cannot be read.
    """
    import pandas as pd

    read_grid(path, [*REALS, *FLAGS])
    return pd.read_parquet(path)


def read_rows(path: Path, columns: Sequence[str], where: pc.Expression) -> pa.Table:
    """Some columns of the rows for which an expression holds; there may be none.

    Raises:
        IrregularError: a column or a value is not as pml writes it.
        OSError: it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        _check_columns(parquet.read_schema(path), columns)
        table = parquet.read_table(path, columns=list(columns), filters=where)
    except (pa.ArrowException, ValueError) as error:
        raise IrregularError(f"not readable ({first_line(error)})") from error
    if len(table):
        _check_values(table)
    return table


def _check_columns(schema: pa.Schema, names: Sequence[str]) -> None:
    """Refuse columns that are missing or hold no numbers.

    Raises:
        IrregularError: names them.
    """
    from pyarrow import types

    missing = [name for name in names if name not in schema.names]
    if missing:
        raise IrregularError(f"no column {', '.join(missing)}")
    is_right = dict.fromkeys(REALS, types.is_floating) | dict.fromkeys(FLAGS, types.is_boolean)
    for name in names:
        kind = schema.field(name).type
        if not is_right.get(name, types.is_integer)(kind):
            raise IrregularError(f"column {name} is of {kind}")


def _check_values(table: pa.Table) -> None:
    """Refuse values that are missing or cannot be.

    Raises:
        IrregularError: names their column.
    """
    for name in table.column_names:
        if table[name].null_count:
            raise IrregularError(f"column {name} has empty values")
        if name in REALS and not np.isfinite(table[name].to_numpy()).all():
            raise IrregularError(f"column {name} has values that are no number")

    if "p" in table.column_names:
        p = table["p"].to_numpy()
        if not ((p >= 0) & (p <= 1)).all():
            raise IrregularError("column p has values that are no probability")
    for name in table.column_names:
        if name in (*REALS, *FLAGS):
            continue
        values = table[name].to_numpy()
        if values.min() < 0 or values.max() > MOST:
            raise IrregularError(f"column {name} has values that are no count")


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    """The columns, at least one row."""
    import pyarrow as pa
    from pyarrow import parquet

    # A pipe would be read for ever.
    if path.exists() and not path.is_file():
        raise IrregularError("not a file")
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow, columns)
            table = file.read(columns=columns)
    except pa.ArrowException as error:
        raise IrregularError(f"not readable ({first_line(error)})") from error

    if not len(table):
        raise IrregularError("no token was logged")
    _check_values(table)
    return table


def _grid(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Each column as (T, S): the same tokens in each row, steps ascending."""
    step = table["step"].to_numpy()
    # The tokens of the first step are those before the second one.
    next_step = np.flatnonzero(step != step[0])
    tokens = int(next_step[0]) if len(next_step) else len(step)
    if len(step) % tokens:
        raise IrregularError("steps differ in their number of tokens")

    columns = {}
    for name in table.column_names:
        columns[name] = table[name].to_numpy().reshape(-1, tokens)

    step_TS = columns["step"]
    if (step_TS != step_TS[:, :1]).any():
        raise IrregularError("steps differ in their number of tokens")
    for name in ("sample", "position"):
        if (columns[name] != columns[name][0]).any():
            raise IrregularError("steps differ in their tokens")
    step_T = step_TS[:, 0]
    if (np.diff(step_T) <= 0).any():
        raise IrregularError("steps do not ascend")
    tokens_S = set(zip(columns["sample"][0].tolist(), columns["position"][0].tolist(), strict=True))
    if len(tokens_S) < tokens:
        raise IrregularError("a token is there twice at one step")
    return columns
