"""The grammar of the command line and of sweep files: what is written is what is meant."""

import math
from decimal import Decimal

import pytest
import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pml_cli.config import sweep_file
from pml_cli.config.compose import parse
from pml_cli.config.request import load
from pml_cli.errors import UserError, printable

KEYS = st.sampled_from(["rank", "seqlen", "train.lr", "data.end", "adapter.layers"])
# Without ~/, which is the folder of the user in a path, and ${...}, which is another setting.
TEXTS = st.text(st.sampled_from("ab \\'\"{}[]():,=.$%\n\té-+01e~/"), max_size=10)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS
NAMES = st.text("abcxyz", min_size=1, max_size=4)
WORDS = {"null", "true", "false", "nan", "inf", "on", "off", "yes", "no"}
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def written(value):
    """A value as one writes it on the command line."""
    if isinstance(value, str):
        return QuotedString(text=value, quote=Quote.double).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        pairs = [f"{key}:{written(inner)}" for key, inner in value.items()]
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


@given(KEYS, VALUES)
def test_a_value_is_read_as_it_was_written(key, value):
    assume("${" not in repr(value))
    grid, lines = parse([f"{key}={written(value)}"])
    assert lines == []
    assert grid == {key: [value]}
    assert repr(grid[key][0]) == repr(value)


# Equal in Python, or alike in print, and yet different values.
ALIKE = st.sampled_from([1, "1", 1.0, "1.0", True, "True", None, "None"])


@given(KEYS, st.lists(ALIKE, min_size=2) | st.lists(SCALARS, min_size=2, max_size=4))
def test_several_values_are_swept_each_once_in_their_order(key, values):
    assume("${" not in repr(values))
    text = ",".join(map(written, values))
    distinct = list(dict.fromkeys(map(repr, values)))
    # Hydra's choice() takes no null.
    choices = [f"{key}=choice({text})"] if None not in values else []
    for override in (f"{key}={text}", *choices):
        grid, lines = parse([override])
        assert lines == []
        assert [repr(value) for value in grid[key]] == distinct


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 9), st.sampled_from([1, 10]))
def test_a_range_is_that_of_python_without_errors_of_rounding(start, stop, step, parts):
    ends = [Decimal(number) / parts for number in (start, stop, step)]
    expected = [float(Decimal(number) / parts) for number in range(start, stop, step)]
    grid, lines = parse([f"train.lr=range({','.join(map(str, ends))})"])
    if not expected:
        assert len(lines) == 1 and lines[0].endswith("no values")
        return
    assert lines == []
    assert grid["train.lr"] == expected


# Python converts no longer number.
LONG = st.just(f"rank={'9' * 5000}")


@given(
    overrides=st.lists(LONG | st.text(st.sampled_from("ab=[]{}(),:'\"\\$@+~. \n0e\0"), max_size=15))
)
def test_any_text_is_read_or_refused_in_a_line_each(overrides):
    grid, lines = parse(overrides)
    assert len(grid) <= len(overrides)
    for line in lines:
        assert printable(line) == printable(line.strip())
        assert len(line.splitlines()) == 1


PIECES = st.sampled_from(
    [
        *("rank", "seqlen", "train.lr", "data", "adapter.layers", "model.path", "launch", "out"),
        *("=", ",", "[", "]", "{", "}", "(", ")", ":", "range(1,", "choice(", "glob(*)", "null"),
        *("1", "-1", "1e400", "nan", "${rank}", "${", "???", "'", '"', "\\", "é", "\ud800", "~/"),
    ]
)


# Composing takes a tenth of a second.
@settings(max_examples=max(3, settings().max_examples // 30))
@given(st.lists(st.lists(PIECES, max_size=5).map("".join), max_size=3))
def test_any_command_line_is_a_request_or_refused(overrides):
    try:
        request = load("sweep", overrides)
    except UserError as error:
        assert error.faults
        return
    assert request.runs
    for run in request.runs:
        assert math.isfinite(run.train.peak_lr)


@settings(max_examples=max(3, settings().max_examples // 30))
@given(st.permutations(["rank=1,2", "seqlen=4,8", "seed=0,1", "train.lr=1,1.0", "data=random"]))
def test_the_order_of_overrides_does_not_count(overrides):
    cells = [repr(run) for run in load("sweep", overrides).runs]
    assert sorted(cells) == sorted(repr(run) for run in load("sweep", sorted(overrides)).runs)
    # Each once: 1 and 1.0 are one rate.
    assert len(cells) == len(set(cells)) == 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps")


NESTED = st.dictionaries(NAMES, st.dictionaries(NAMES, SCALARS, min_size=1), min_size=1)
SWEEP_KEYS = st.sampled_from(["rank", "seqlen", "seed", "data"])


@given(mapping=st.dictionaries(SWEEP_KEYS, VALUES | NESTED, min_size=1))
def test_a_sweep_file_is_read_as_it_was_written(folder, mapping):
    assume("${" not in repr(mapping))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(mapping, allow_unicode=True), "utf-8")
    (grid,) = sweep_file.read(path)
    assert grid == dict(flat(mapping))


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@given(content=st.binary(max_size=40) | st.text("ab:-[]{}&*!|>'\"%, \n1e.~", max_size=40))
def test_any_sweep_file_is_a_mapping_or_refused_in_one_line(folder, content):
    path = folder / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        grids = sweep_file.read(path)
    except UserError as error:
        (line,) = error.faults
        assert line.startswith(f"{path}: ")
        return
    assert all(isinstance(key, str) for grid in grids for key in grid)
