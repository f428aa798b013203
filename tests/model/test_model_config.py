"""The config of a model as transformers resolves it."""

import pytest

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.model_config import config_fields


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        config_fields(Model(path=str(tmp_path)))


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"its config\.json is not JSON"):
        config_fields(Model(path=str(tmp_path)))
