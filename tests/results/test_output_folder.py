"""A results folder that cannot be used is named, with the option, before anything is trained."""

import pytest

from pml_cli.errors import UserError
from pml_cli.results.output_folder import check_output_folder


def test_a_folder_that_may_not_be_looked_at_is_named_with_its_option(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    out = tmp_path / "closed" / "inner"
    monkeypatch.setattr("pathlib.Path.is_symlink", refuse)
    with pytest.raises(UserError, match=f"out={out}: Permission denied"):
        check_output_folder(out)


@pytest.mark.parametrize("name", ["link", "link/below"])
def test_a_link_to_nowhere_is_named(tmp_path, name):
    (tmp_path / "link").symlink_to("/nowhere/x")
    with pytest.raises(UserError, match=r"out=.*link is a dangling symbolic link to /nowhere/x"):
        check_output_folder(tmp_path / name)


def test_a_link_to_a_folder_is_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    check_output_folder(tmp_path / "link")
    check_output_folder(tmp_path / "link" / "new")
