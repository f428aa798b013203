"""What is written is what is read, and whatever is not ours is refused in one line."""

import csv
import gzip
import io
import json
import math

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.strategies import JSON, NUMBERS, WORDS

from pml_cli.data.facts_file import read_rows
from pml_cli.errors import UserError, printable
from pml_cli.io import FORMULA_STARTS, atomic_write, json_text, jsonable, write_csv, write_json
from pml_cli.results.fields import ResultFields
from pml_cli.results.folder import RunFolder
from pml_cli.results.read import read_runs
from pml_cli.results.samples import read_samples, write_samples
from pml_cli.validation import fault_of, load_json, parse_yaml, shown

KEYS = st.sampled_from(["prompt", "target", "id", "x y"])
ROWS = st.lists(st.dictionaries(KEYS, WORDS, min_size=1), min_size=1, max_size=5)
LINE_ENDS = st.sampled_from(["\n", "\r\n"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(content=JSON)
def test_json_comes_back_as_it_was(folder, content):
    path = folder / "new" / "content.json"
    write_json(path, content)
    assert load_json(path, "") == content
    assert [child.name for child in path.parent.iterdir()] == [path.name]


NO_NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf])


@given(st.recursive(NO_NUMBERS | JSON, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_no_number_in_json_is_other_than_finite(content):
    text = json_text(jsonable(content))
    for word in ("NaN", "Infinity"):
        assert word not in text or word in str(content)
    json.loads(text, parse_constant=pytest.fail)


@given(old=st.binary(max_size=50), new=st.binary(max_size=50), room=st.integers(0, 60))
def test_a_write_that_fails_anywhere_leaves_the_old_file(folder, old, new, room):
    path = folder / "file"
    atomic_write(path, lambda temporary: temporary.write_bytes(old))

    def write(temporary):
        temporary.write_bytes(new[:room])
        if room < len(new):
            raise OSError(28, "No space left on device")

    if room < len(new):
        with pytest.raises(OSError, match="No space"):
            atomic_write(path, write)
    else:
        atomic_write(path, write)
    assert path.read_bytes() == (old if room < len(new) else new)
    assert not list(folder.glob(".file*"))


@given(cells=st.lists(st.tuples(WORDS | st.sampled_from(FORMULA_STARTS), NUMBERS), max_size=5))
def test_tables_come_back_and_hold_no_formula(folder, cells):
    path = folder / "table.csv"
    write_csv(path, pd.DataFrame(cells, columns=["=name", "number"]))
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    # pandas writes a lone carriage return without quotes around it.
    assume(len(rows) == len(cells))
    for row, (name, number) in zip(rows, cells, strict=True):
        assert row[0] == (f"'{name}" if name.startswith(FORMULA_STARTS) else name)
        assert float(row[1]) == number


# -- files of facts


@given(rows=ROWS, ascii_only=st.booleans(), end=LINE_ENDS, bom=st.booleans(), zipped=st.booleans())
def test_json_lines_are_read_as_they_were_written(folder, rows, ascii_only, end, bom, zipped):
    text = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    content = text.encode("utf-8-sig" if bom else "utf-8")
    _compare(folder / "facts.jsonl", gzip.compress(content) if zipped else content, rows)


@given(rows=ROWS, indent=st.none() | st.integers(0, 2))
def test_a_json_array_is_read_as_it_was_written(folder, rows, indent):
    _compare(folder / "facts.json", json.dumps(rows, indent=indent).encode(), rows)


@given(
    cells=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_a_table_is_read_as_it_was_written(folder, cells, delimiter, quoting):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting)
    writer.writerows([("prompt", "target"), *cells])
    rows = [dict(zip(("prompt", "target"), pair, strict=True)) for pair in cells]
    rows = [row for row in rows if any(text.strip() for text in row.values())]
    assume(rows)
    # Line ends inside of cells are those of the file.
    assume(all("\r" not in text for pair in cells for text in pair))
    _compare(folder / "facts.csv", buffer.getvalue().encode(), rows)


def _compare(path, content, rows):
    """Read rows back, or see them refused in one line where a text cannot be one."""
    path.write_bytes(content)
    try:
        read = [dict(row.fields) for row in read_rows(str(path))]
    except UserError as error:
        assert "\n" not in printable(str(error))
        assert "\0" in str(rows) or "\\x00" in repr(rows) or "\0" in content.decode("latin-1")
        return
    assert read == rows


@given(content=st.binary(max_size=60), name=st.sampled_from(["a.jsonl", "a.csv", "a.parquet"]))
def test_bytes_are_rows_or_refused_in_one_line(folder, content, name):
    path = folder / name
    path.write_bytes(content)
    try:
        assert read_rows(str(path))
    except UserError as error:
        assert str(error).startswith(f"data.path={path}: ")


# -- files of runs


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "sample": st.integers(0, 9),
                "turns": st.lists(st.tuples(WORDS, WORDS).map(list), max_size=2),
                "prompt_ids": st.lists(st.integers(0, 99), max_size=3),
                "target": st.none() | WORDS,
                "target_ids": st.lists(st.integers(0, 99), min_size=1, max_size=3),
                "decoded": st.none() | WORDS,
                "decoded_ids": st.none() | st.lists(st.integers(0, 99), max_size=3),
                "whole": st.booleans(),
                "first_error": st.none(),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_samples_come_back_whatever_letters_they_have(folder, rows):
    run = RunFolder(folder, "samples")
    write_samples(run, rows)
    assert read_samples(run) == rows
    # As programs see it that also split at the line ends of Unicode.
    assert len(run.samples.read_text("utf-8").splitlines()) == len(rows)


@given(fields=st.dictionaries(st.sampled_from(sorted(ResultFields.__annotations__)), JSON))
def test_a_result_of_any_shape_is_a_row_or_refused_in_one_line(folder, fields):
    path = folder / "runs" / "run" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "id": "run"} | fields), "utf-8")
    try:
        runs = read_runs([folder / "runs"])
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert str(path) in str(error)
        return
    assert len(runs) == 1
    for value in runs.iloc[0]:
        assert not isinstance(value, float) or not math.isinf(value)


@given(JSON | st.just("long " * 100), st.sampled_from([ResultFields, list[int], dict[str, float]]))
def test_what_is_wrong_with_a_file_is_said_in_one_short_line(content, schema):
    fault = fault_of(content, schema)
    assert len(printable(fault).splitlines()) <= 1
    assert len(fault) < 300
    assert len(shown(content)) < 100


YAML = st.sampled_from(
    [
        *"[]{}'\"#~%?\n\t",
        *("a: ", "- ", ", ", "  ", "&a ", "*a", "|\n", "? ", "0x", "2020-13-45", "---\n"),
        *("!!int ", "!!timestamp ", "!!bool ", "!!binary ", "!!float ", "!x ", "<<: ", "x", "1e9"),
    ]
)


@settings(max_examples=3 * settings().max_examples)
@given(st.lists(YAML, max_size=12).map("".join))
def test_yaml_is_plain_values_or_refused_in_one_line(text):
    try:
        parse_yaml(text)
    except ValueError as error:
        assert len(str(error).splitlines()) <= 1
