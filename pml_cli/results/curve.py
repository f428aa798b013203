"""The training curve of a run, curve.parquet: the one door through which the file is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pml_cli.errors import first_line
from pml_cli.results.tokens import IrregularError

if TYPE_CHECKING:
    import pandas as pd

# What every tracker takes as the name of a metric.
COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")

# More digits than any training has.
MOST_STEP = 2**31 - 1


def read_curve(path: Path) -> pd.DataFrame:
    """One row a training step: int column `step`, ascending, and columns of numbers.

    Numbers that are not finite stay: a training that breaks off may have some.

    Raises:
        IrregularError: the file is missing, not readable, or not of this shape.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet, types

    # A pipe would be read for ever.
    if not path.is_file():
        raise IrregularError("not a file" if path.exists() else "no such file")
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise IrregularError(f"not readable ({first_line(error)})") from error

    if "step" not in table.column_names:
        raise IrregularError("no column step")
    for name in table.column_names:
        if not COLUMN.fullmatch(name):
            raise IrregularError("column names may contain only letters, digits and _")
        kind = table.schema.field(name).type
        is_right = types.is_integer if name == "step" else _is_number
        if not is_right(kind):
            raise IrregularError(f"column {name} is of {kind}")
        if table[name].null_count:
            raise IrregularError(f"column {name} has empty values")

    steps = table["step"].to_numpy()
    if len(steps) and (steps.min() < 0 or steps.max() > MOST_STEP):
        raise IrregularError("column step has negative or too large values")
    if (np.diff(steps) <= 0).any():
        raise IrregularError("steps do not ascend")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _is_number(kind: object) -> bool:
    from pyarrow import types

    return bool(types.is_floating(kind) or types.is_integer(kind))
