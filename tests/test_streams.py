"""Standard output that is refused: the work goes on, and only then it is said."""

import io
import os
import subprocess
import sys

import pytest
from support.processes import command, environment

from pml_cli.streams import GuardedStream, guarded_streams, lost_output


def test_what_is_refused_is_dropped_and_remembered():
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        stream = GuardedStream(full)
        assert stream.write("a line\n") == 7
        stream.flush()
        assert stream.refused is not None
        assert stream.refused.strerror == "No space left on device"
        stream.write("dropped")
        stream.flush()


def test_a_reader_that_has_left_is_no_fault(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with guarded_streams():
            print("to nobody", flush=True)
            assert lost_output() is None


def test_a_stream_that_takes_all_is_as_before(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    with guarded_streams():
        print("a line")
        assert lost_output() is None
    assert sys.stdout is text
    assert text.getvalue() == "a line\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_a_full_disk_under_standard_output_is_one_line_and_code_2():
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            command("--help"),
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("columns", ["0", "-3", "wide", "", "\u00b2", "9" * 40])
def test_a_terminal_without_a_size_is_printed_to_all_the_same(columns):
    done = subprocess.run(
        command("probe", "--help"),
        env=environment() | {"COLUMNS": columns, "LINES": columns},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert max(map(len, done.stdout.splitlines())) > 40
