"""Runs read back: what is found below folders, and what is said where there is nothing."""

import os

import pytest
from support.faults import refuse_to_list
from support.planted_laws import result

from pml_cli.errors import UserError
from pml_cli.results.folder import RunFolder
from pml_cli.results.read import (
    check_formats,
    finished_runs,
    own_result,
    read_failures,
    read_runs,
)


def test_finished_runs_are_those_of_every_folder(tmp_path):
    for name in ("a", "b"):
        RunFolder(tmp_path / name, f"run-{name}").finish({"rank": 4})
    assert len(finished_runs([tmp_path / "a", tmp_path / "b"], "`pml sweep`")) == 2


def test_a_copy_counts_once_and_is_said(tmp_path):
    for place, front, seconds in (("a", "base", 1.5), ("b/kept", "base", 1.5), ("c", "new", 2.5)):
        result = {"rank": 4, "model": front, "seconds": seconds}
        # Of an earlier version, one of them.
        result |= {"hub_id": None} if place == "c" else {}
        RunFolder(tmp_path / place, f"{front}-r4-0123456789").finish(result)
    notes = []
    runs = read_runs([tmp_path], notes=notes)
    assert runs["folder"].tolist() == [str(tmp_path / "a/base-r4-0123456789")]
    (line,) = notes
    assert line.startswith("2 duplicate runs ignored: ")
    assert "a/base-r4-0123456789 and " in line and "b/kept/base-r4-0123456789" in line
    # Without a list for them, it is not said.
    assert len(read_runs([tmp_path])) == 1


def test_one_run_with_two_results_is_named_and_the_first_counts(tmp_path):
    for place, loss in (("a", 0.5), ("b", 0.25)):
        folder = RunFolder(tmp_path / place, "base-r4-0123456789")
        folder.finish({"rank": 4, "final_loss": loss})
    notes = []
    runs = read_runs([tmp_path / "b", tmp_path / "a"], notes=notes)
    assert runs["final_loss"].tolist() == [0.25]
    (line,) = notes
    assert line.endswith("are the same run with different results; only the first is used")
    assert line.index(str(tmp_path / "b")) < line.index(str(tmp_path / "a"))


def test_a_folder_that_may_not_be_listed_is_named_as_runs_may_lie_in_it(tmp_path, monkeypatch):
    for name in ("a", "b", "lost+found"):
        RunFolder(tmp_path / name, f"run-{name}").finish({"rank": 4})
    # Of a disk's root it is no place of runs.
    assert len(read_runs([tmp_path])) == 2

    refuse_to_list(monkeypatch, tmp_path / "b")
    line = f"{tmp_path / 'b'}: cannot be listed (Permission denied)"
    with pytest.raises(UserError) as caught:
        finished_runs([tmp_path], "`pml sweep`")
    assert str(caught.value) == line
    left_out = []
    assert len(read_runs([tmp_path], left_out)) == 1
    assert left_out == [line]
    assert read_failures(tmp_path) == {}


@pytest.mark.parametrize(("failures", "note"), [(0, ""), (2, " (2 failed; error.json in their")])
def test_without_finished_runs_the_error_says_how_to_make_some(tmp_path, failures, note):
    for number in range(failures):
        RunFolder(tmp_path, f"run{number}").fail("the loss is no longer finite")
    with pytest.raises(UserError) as caught:
        finished_runs([tmp_path], "`pml sweep -f law`")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no finished runs{note}")
    assert message.endswith("; make some with `pml sweep -f law`")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'"text"'])
def test_a_damaged_error_still_counts_as_a_failure(tmp_path, content):
    folder = RunFolder(tmp_path, "run")
    folder.fail("lost")
    folder.error.write_bytes(content)
    assert read_failures(tmp_path) == {"run": "error.json cannot be read"}


def test_a_folder_with_runs_of_another_format_is_refused(tmp_path):
    RunFolder(tmp_path, "run").finish({"rank": 4})
    check_formats(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/result.json").write_text("{")
    check_formats(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/result.json").write_text('{"format": 7, "id": "other"}')
    with pytest.raises(UserError, match=r"format 7 is not this version's \(1\); use another out="):
        check_formats(tmp_path)


def test_a_folder_whose_name_is_no_text_is_named(tmp_path):
    RunFolder(tmp_path, "run").finish(result(2, 32))
    (tmp_path / "run").rename(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))
    with pytest.raises(UserError, match="its name is not valid UTF-8; rename it"):
        read_runs([tmp_path])
    left_out = []
    assert read_runs([tmp_path], left_out=left_out).empty and len(left_out) == 1


@pytest.mark.parametrize("change", [{"seconds": None}, {"exact_match": "x"}], ids=str)
def test_a_search_refuses_a_result_without_what_it_goes_on_with(tmp_path, change):
    folder = RunFolder(tmp_path, "run-0123456789")
    folder.finish({"exact_match": 1.0, "seconds": 2.0})
    needed = ("exact_match", "seconds")
    assert own_result(folder, needed)["seconds"] == 2.0

    folder = RunFolder(tmp_path, "other-0123456789")
    folder.finish({"exact_match": 1.0, "seconds": 2.0} | change)
    (name,) = change
    with pytest.raises(UserError, match=rf"result\.json: .*{name}.*run the same command again"):
        own_result(folder, needed)
