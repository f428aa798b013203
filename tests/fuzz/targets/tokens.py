"""tokens.parquet of a run: `pml transition` without figures.

An input is a JSON mapping of columns, which becomes a parquet file, or the bytes of one.
"""

import io
import json

from fuzz.folders import first
from fuzz.mutate import json_tree, some_bytes

MAGIC = b"PAR1"
COUNTS = (0, 1, 7, -1, 2**31, 2**62, None)
NUMBERS = (0.0, 0.5, 0.6, 1.0, 1.5, -1.0, 1e38, float("nan"), float("inf"), None)
VALUES = {
    "p": NUMBERS,
    "nll": NUMBERS,
    "margin": NUMBERS,
    "correct": (True, False, None),
}
OTHER_TYPES = (str, float, bool, lambda value: [value], lambda value: int(value or 0))

# The result.json beside it.
RESULT = {}


def seeds(base):
    import pandas as pd

    RESULT["content"] = first(base, "runs/*/result.json")
    content = first(base, "runs/*/tokens.parquet")
    table = pd.read_parquet(io.BytesIO(content))
    return [json.dumps(table.to_dict("list")).encode(), content]


def MUTATE(data, rng):  # noqa: N802
    """Columns stay of one length, or next to nothing is a table."""
    if data.startswith(MAGIC):
        return some_bytes(data, rng)
    if rng.random() < 0.1:
        return json_tree(data, rng)
    columns = json.loads(data)
    change = rng.choice((_change, _change_gently))
    for _ in range(rng.choice((1, 2, 5))):
        change(columns, rng)
    return json.dumps(columns).encode()


def _change_gently(columns, rng):
    """Something that may be right: other probabilities, fewer steps or tokens."""
    kind = rng.randrange(4)
    rows = range(len(columns["step"]))
    if kind == 0:
        power = rng.choice((0.0, 0.01, 0.5, 2, 100))
        columns["p"] = [p**power if rng.random() < 0.5 else p for p in columns["p"]]
    elif kind == 1:
        columns["correct"] = [flag != (rng.random() < 0.3) for flag in columns["correct"]]
    else:
        name = ("step", "position")[kind - 2]
        left_out = rng.choice(columns[name])
        kept = [row for row in rows if columns[name][row] != left_out]
        columns |= {key: [column[row] for row in kept] for key, column in columns.items()}


def _change(columns, rng):
    """Change a column, some of its values, or the rows of all."""
    name = rng.choice(list(columns))
    values = columns[name]
    kind = rng.randrange(6)
    if kind == 0:
        del columns[name]
    elif kind == 1:
        columns[name] = [rng.choice(OTHER_TYPES)(value) for value in values]
    elif kind == 2:
        begin = rng.randrange(len(values) or 1)
        rows = [*range(begin), *range(begin + rng.choice((1, 8)), len(values))]
        columns |= {key: [column[row] for row in rows] for key, column in columns.items()}
    elif kind == 3 and values:
        rows = rng.choices(range(len(values)), k=len(values))
        columns |= {key: [column[row] for row in rows] for key, column in columns.items()}
    else:
        value = rng.choice(VALUES.get(name, COUNTS))
        share = rng.choice((0.05, 0.5, 1))
        columns[name] = [value if rng.random() < share else old for old in values]


def read(folder, data):
    from rich.console import Console

    from pml_cli.commands import transition
    from pml_cli.config.reports import Transition
    from pml_cli.results.folder import RunFolder

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
