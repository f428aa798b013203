"""samples.jsonl as a file: one line a sample, whatever is in its texts."""

import json

import pytest

from pml_cli.errors import UserError
from pml_cli.results.folder import RunFolder
from pml_cli.results.samples import read_samples, write_samples

REST = {"turns": [], "prompt_ids": (), "target": None, "decoded": None, "decoded_ids": None}
REST |= {"whole": True, "first_error": None}
ROWS = [
    {"sample": 0, "prompt": "Straße 😀\n", "target_ids": (1, 2), **REST},
    # Line ends of Unicode, which many readers split at; a quote; an escape sequence.
    {"sample": 1, "prompt": 'a\u2028b\u2029c\x85d\re "f" \x1b[31m', "target_ids": (3,), **REST},
]


def test_rows_come_back_as_they_were(tmp_path):
    folder = RunFolder(tmp_path, "run")
    write_samples(folder, ROWS)
    plain = json.loads(json.dumps(ROWS))
    assert read_samples(folder) == plain
    text = folder.samples.read_text("utf-8")
    assert [json.loads(line) for line in text.splitlines()] == plain
    assert "Straße 😀" in text


def test_a_run_of_an_earlier_version_has_none(tmp_path):
    assert read_samples(RunFolder(tmp_path, "run")) is None


def test_a_damaged_file_is_named(tmp_path):
    folder = RunFolder(tmp_path, "run")
    write_samples(folder, ROWS)
    folder.samples.write_text("{")
    with pytest.raises(UserError, match=r"samples\.jsonl: not readable as JSON"):
        read_samples(folder)
