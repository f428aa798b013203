"""A finished run as trackers take it: settings, the curve step by step, results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pml_cli.config.load import read_run
from pml_cli.errors import UserError
from pml_cli.results.curve import read_curve
from pml_cli.results.fields import ResultFields
from pml_cli.results.folder import RunFolder
from pml_cli.results.read import AGAIN
from pml_cli.results.tokens import IrregularError
from pml_cli.validation import checked, parse_json, read_regular

Value: TypeAlias = str | int | float | bool | None

# In front of the columns of curve.parquet: result.json has a `loss` and an `lr` too.
CURVE = "curve/"

# Numbers of result.json that say which file it is, not what was measured.
NOT_MEASURED = ("format",)


@dataclass(frozen=True, kw_only=True)
class MirroredRun:
    """A finished run.

    Attributes:
        identity: of this very result; one that was trained again has another.
        name: the path of its folder within the folder that is mirrored.
        settings: every setting, by its key on the command line.
        curve: of each training step its number, and its values by `curve/` and column.
        results: the numbers of result.json.
        ended: when it ended, in seconds since 1970.
    """

    identity: str
    name: str
    settings: Mapping[str, Value]
    curve: list[tuple[int, dict[str, float]]]
    results: Mapping[str, float]
    ended: float

    @property
    def last_step(self) -> int:
        """The step that the results are told at."""
        return self.curve[-1][0] if self.curve else 0


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """The result.json of a run, read once.

    Attributes:
        folder: of the run.
        content: of the file.
        ended: when it was written, in seconds since 1970.
    """

    folder: RunFolder
    content: bytes
    ended: float

    @property
    def identity(self) -> str:
        """16 hexadecimal digits of the run's name and result."""
        name = self.folder.path.resolve().name
        text = name.encode("utf-8", "surrogateescape") + b"\0" + self.content
        return hashlib.sha256(text).hexdigest()[:16]


def read_result_file(path: Path) -> ResultFile:
    """The result.json of a run folder.

    Raises:
        UserError: it cannot be read.
    """
    folder = RunFolder(path.parent, path.name)
    try:
        content, status = read_regular(folder.result)
    except OSError as error:
        raise UserError(f"{folder.result}: not readable ({error.strerror or error})") from error
    return ResultFile(folder=folder, content=content, ended=status.st_mtime)


def read_mirrored_run(file: ResultFile, root: Path) -> MirroredRun:
    """The run that a result.json belongs to.

    Args:
        file: its result.json.
        root: the folder that is mirrored.

    Raises:
        UserError: one of its files is missing or damaged.
    """
    folder = file.folder
    result = parse_json(folder.result, file.content, AGAIN)
    checked(folder.result, result, ResultFields, AGAIN)
    run = read_run(folder.config)
    try:
        curve = read_curve(folder.curve)
    except IrregularError as error:
        raise UserError(f"{folder.curve}: {error}; {AGAIN}") from error

    names = [str(name) for name in curve.columns if name != "step"]
    steps = [int(step) for step in curve["step"]]
    rows = curve[names].to_numpy(float).tolist()
    return MirroredRun(
        identity=file.identity,
        name=_name(folder.path, root),
        settings=dict(_flat(dataclasses.asdict(run))),
        curve=[
            (step, _finite({f"{CURVE}{name}": v for name, v in zip(names, row, strict=True)}))
            for step, row in zip(steps, rows, strict=True)
        ],
        results=_numbers(result),
        ended=file.ended,
    )


def _name(folder: Path, root: Path) -> str:
    path = folder.resolve()
    inside = path.relative_to(root.resolve()) if path.is_relative_to(root.resolve()) else Path()
    # The folder itself, or one that a link leads to.
    return inside.as_posix() if inside.name else path.name


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Settings by their key: `train.lr`. Lists and mappings of values become JSON."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        # The groups of a run; a mapping further down is a setting by itself.
        if isinstance(value, Mapping) and not prefix:
            yield from _flat(value, f"{key}.")
        elif isinstance(value, Mapping | list):
            yield key, json.dumps(value, default=str)
        else:
            yield key, value


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of result.json; true and false are 1 and 0."""
    numbers = {
        name: float(value)
        for name, value in result.items()
        if name in ResultFields.__annotations__
        and name not in NOT_MEASURED
        and isinstance(value, int | float)
    }
    return _finite(numbers)
