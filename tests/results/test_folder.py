"""The run folder: whole files or none, results that cannot be read are named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from pml_cli.config.schema import FORMAT
from pml_cli.errors import UserError
from pml_cli.io import atomic_write, save_tensors
from pml_cli.results.folder import RunFolder, copy_adapter
from pml_cli.results.read import read_failures, read_runs

ROOT = Path(__file__).parents[2]


def finished(root, name="run", **fields):
    folder = RunFolder(root, name)
    folder.finish({"rank": 4, **fields})
    return folder


def test_a_finished_run_is_found_with_its_fields(tmp_path):
    folder = finished(tmp_path / "a", rank=7)
    finished(tmp_path / "b" / "deeper", "other", rank=9)
    assert folder.is_done()
    runs = read_runs([tmp_path]).set_index("id")
    assert runs["rank"].to_dict() == {"run": 7, "other": 9}
    assert runs.loc["run", "folder"] == str(folder.path)


def test_a_run_below_two_roots_counts_once(tmp_path):
    finished(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    roots = [tmp_path, tmp_path / "a", tmp_path / "link", tmp_path / "a" / "run"]
    assert len(read_runs(roots)) == 1


def test_results_inside_hidden_and_adapter_folders_do_not_count(tmp_path):
    for name in (".trash", "adapter"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "result.json").write_text("half")
    assert len(read_runs([tmp_path])) == 0


def test_a_write_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file"
    atomic_write(path, lambda temporary: temporary.write_text("old"))

    def half(temporary):
        temporary.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, half)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_of_the_old_file_keeps_the_whole_old_file(tmp_path):
    """The new file takes the name; nothing is ever written into a file that has it."""
    path = tmp_path / "file"
    atomic_write(path, lambda temporary: temporary.write_text("old"))
    with path.open() as reader:
        atomic_write(path, lambda temporary: temporary.write_text("new, and longer"))
        assert reader.read() == "old"
    assert path.read_text() == "new, and longer"


@pytest.mark.parametrize("when", ["table", "result", "adapter"])
def test_a_killed_write_leaves_nothing_visible(tmp_path, when):
    """The process dies (no clean-up runs) in the middle of a write."""
    code = f"""
import os
from pathlib import Path
import pml_cli.results.folder as records
folder = records.RunFolder(Path({str(tmp_path)!r}), "run")
def die(temporary):
    temporary = temporary / "part" if temporary.is_dir() else temporary
    temporary.write_text('{{"format": 1, "ra')
    os._exit(9)
if {when!r} == "table":
    records.atomic_write(folder.tokens, die)
elif {when!r} == "adapter":
    folder.write_adapter(die)
else:
    Path.write_text_ = Path.write_text
    Path.write_text = lambda self, text, *_: (self.write_text_(text[:9]), os._exit(9))
    folder.finish({{"rank": 4}})
"""
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    died = subprocess.run(
        [sys.executable, "-c", code], env=env, check=False, capture_output=True, text=True
    )
    assert died.returncode == 9, died.stderr
    folder = RunFolder(tmp_path, "run")
    assert [p.name for p in folder.path.iterdir() if not p.name.startswith(".")] == []
    # The temporary file.
    assert len(list(folder.path.iterdir())) == 1
    assert not folder.is_done()
    assert len(read_runs([tmp_path])) == 0
    finished(tmp_path)
    assert read_runs([tmp_path])["rank"].tolist() == [4]


def test_an_adapter_replaces_the_one_before_whole(tmp_path):
    folder = RunFolder(tmp_path, "run")
    folder.write_adapter(lambda temporary: (temporary / "old").write_text("1"))
    folder.write_adapter(lambda temporary: (temporary / "new").write_text("2"))
    assert [p.name for p in folder.adapter.iterdir()] == ["new"]
    assert [p.name for p in folder.path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1, "rank": 4', "not readable as JSON"),
        ("", "not readable as JSON"),
        (
            json.dumps({"format": FORMAT + 1, "id": "run"}),
            f"format {FORMAT + 1} is not this version's",
        ),
        (b"\xff\xfe\x00", "not readable as JSON"),
    ],
)
def test_results_that_cannot_be_read_are_named_in_one_line(tmp_path, content, message):
    folder = RunFolder(tmp_path, "run")
    folder.path.mkdir()
    folder.result.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not folder.is_done()
    with pytest.raises(UserError) as caught:
        read_runs([tmp_path])
    assert message in str(caught.value)
    assert str(folder.result) in str(caught.value)
    assert "\n" not in str(caught.value)
    finished(tmp_path, "other", rank=9)
    left_out = []
    assert read_runs([tmp_path], left_out)["rank"].tolist() == [9]
    assert left_out == [str(caught.value)]


@pytest.mark.parametrize("content", [json.dumps({"rank": 4}), "[1, 2]"])
def test_results_of_other_programs_are_passed_over(tmp_path, content):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text(content)
    assert read_runs([tmp_path]).empty


def test_a_root_that_is_not_there():
    with pytest.raises(UserError, match="no such folder"):
        read_runs([Path("/nowhere/at/all")])


def test_failures(tmp_path):
    folder = RunFolder(tmp_path, "run")
    folder.fail("the loss is no longer finite", "detail")
    assert read_failures(tmp_path) == {"run": "the loss is no longer finite"}
    assert not folder.is_done()
    folder.finish({"rank": 4})
    assert read_failures(tmp_path) == {}
    assert folder.is_done()


def test_a_result_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        finished(tmp_path, loss=float("nan"))
    assert not RunFolder(tmp_path, "run").is_done()


def test_tables_come_back_as_written(tmp_path):
    folder = RunFolder(tmp_path, "run")
    table = pd.DataFrame({"step": [0, 1], "nll": [0.5, float("nan")]})
    folder.write_table(folder.tokens, table)
    pd.testing.assert_frame_equal(pd.read_parquet(folder.tokens), table)
    assert os.listdir(folder.path) == ["tokens.parquet"]  # noqa: PTH208


def test_tensors_can_be_read_by_whom_other_files_can(tmp_path):
    (tmp_path / "other").touch()
    save_tensors({"a": torch.zeros(3)}, tmp_path / "tensors", {})
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_script_beside_a_copied_adapter_runs_from_anywhere(tmp_path):
    folder = finished(tmp_path / "runs")
    folder.adapter.mkdir()
    (folder.adapter / "weights").write_text("here")
    copy_adapter(folder, tmp_path / "out", "print(open('weights').read())\n")
    script = Path("out/adapter/script.py")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "here\n"
