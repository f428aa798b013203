"""tokens.parquet of a run: `pml transition` without figures.

An input is a JSON mapping of columns, which becomes a parquet file, or the bytes of one.
"""

import io
import json

from fuzz.folders import first
from fuzz.mutate import json_tree, some_bytes

MAGIC = b"PAR1"
# The result.json beside it.
RESULT = {}


def seeds(base):
    import pandas as pd

    RESULT["content"] = first(base, "runs/*/result.json")
    content = first(base, "runs/*/tokens.parquet")
    table = pd.read_parquet(io.BytesIO(content))
    return [json.dumps(table.to_dict("list")).encode(), content]


def MUTATE(data, rng):  # noqa: N802
    return some_bytes(data, rng) if data.startswith(MAGIC) else json_tree(data, rng)


def read(folder, data):
    from rich.console import Console

    from pml_cli.commands import transition
    from pml_cli.config.reports import Transition
    from pml_cli.runs.folder import RunFolder

    run = RunFolder(folder / "runs", "run")
    run.result.parent.mkdir(parents=True)
    run.result.write_bytes(RESULT["content"])
    run.tokens.write_bytes(_parquet(data))
    console = Console(file=io.StringIO(), width=80)
    transition.run([folder / "runs"], Transition(figures=False, draws=20), console)
    report = folder / "runs" / "transition" / "transition.json"
    return json.loads(report.read_text("utf-8"), parse_constant=float)


def _parquet(data):
    """The file that a mapping of columns stands for."""
    import pyarrow as pa
    from pyarrow import parquet

    if data.startswith(MAGIC):
        return data
    buffer = io.BytesIO()
    try:
        parquet.write_table(pa.table(json.loads(data)), buffer)
    # No table: the bytes themselves are tried.
    except (
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        pa.ArrowException,
    ):
        return data
    return buffer.getvalue()
