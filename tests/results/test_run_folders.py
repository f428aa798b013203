"""Runs are found by the hash in their ids, whatever the readable front."""

import shutil
import time

import pytest

from pml_cli.results.folder import RunFolder
from pml_cli.results.run_folders import RunFolders, run_key


@pytest.mark.parametrize(
    ("run_id", "key"),
    [
        ("tiny-random-r8-l128-s0-ab1bff7217", "ab1bff7217"),
        ("a.model-b-r8-l128-s0-0123456789", "0123456789"),
        ("ab1bff7217", "ab1bff7217"),
        ("run7", "run7"),
        ("some-folder", "some-folder"),
    ],
)
def test_the_key_is_the_hash_and_without_one_the_whole_id(run_id, key):
    assert run_key(run_id) == key


def test_a_run_is_found_under_the_front_that_it_was_trained_under(tmp_path):
    RunFolder(tmp_path, "old-r1-ab1bff7217").finish({})
    folders = RunFolders(tmp_path)
    assert folders.find("new-r1-ab1bff7217").is_done()
    assert folders.name("new-r1-ab1bff7217") == "old-r1-ab1bff7217"
    assert folders.exists("new-r1-ab1bff7217")
    assert folders.name("new-r1-0000000000") == "new-r1-0000000000"
    assert not folders.exists("new-r1-0000000000")


def test_its_own_name_comes_first(tmp_path):
    for front in ("a", "b", "c"):
        RunFolder(tmp_path, f"{front}-ab1bff7217").finish({})
    folders = RunFolders(tmp_path)
    assert folders.name("b-ab1bff7217") == "b-ab1bff7217"
    assert folders.name("z-ab1bff7217") == "a-ab1bff7217"


def test_a_folder_that_is_not_there_yet_and_one_that_came_later(tmp_path):
    folders = RunFolders(tmp_path / "none")
    assert folders.name("new-ab1bff7217") == "new-ab1bff7217"
    RunFolder(tmp_path / "none", "old-ab1bff7217").finish({})
    folders.refresh()
    assert folders.name("new-ab1bff7217") == "old-ab1bff7217"


def test_listed_again_runs_that_came_and_went_are_seen(tmp_path):
    for front in ("b", "c"):
        RunFolder(tmp_path, f"{front}-ab1bff7217").finish({})
    folders = RunFolders(tmp_path)

    RunFolder(tmp_path, "a-ab1bff7217").finish({})
    RunFolder(tmp_path, "d-0123456789").finish({})
    folders.refresh()
    assert folders.name("z-ab1bff7217") == "a-ab1bff7217"
    assert folders.exists("d-0123456789")

    shutil.rmtree(tmp_path / "a-ab1bff7217")
    shutil.rmtree(tmp_path / "d-0123456789")
    folders.refresh()
    assert folders.name("z-ab1bff7217") == "b-ab1bff7217"
    assert not folders.exists("d-0123456789")


def test_ten_thousand_runs_are_found_quickly(tmp_path):
    names = [f"old-{number:010x}" for number in range(10_000)]
    for name in names:
        (tmp_path / name).mkdir()
    began = time.perf_counter()
    folders = RunFolders(tmp_path)
    found = [folders.name(f"new-{run_key(name)}") for name in names]
    assert found == names
    assert time.perf_counter() - began < 2
