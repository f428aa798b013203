"""Files of a model."""

import pytest

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError
from pml_cli.model.files import locate


def test_files_of_the_embedded_and_of_a_local_model(tmp_path):
    assert locate(Model(), "config.json") == TINY / "config.json"
    assert locate(Model(), "chat_template.jinja") is None

    (tmp_path / "config.json").write_text("{}")
    local = Model(path=str(tmp_path))
    assert locate(local, "config.json") == tmp_path / "config.json"
    assert locate(local, "tokenizer.json") is None


def test_nothing_is_downloaded_for_random_weights():
    model = Model(path="some/repository", weights="random", architecture={"vocab_size": 7})
    assert locate(model, "tokenizer.json") is None


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_folder_that_does_not_exist_is_refused(path):
    model = Model(path=path)
    with pytest.raises(UserError, match=f"model.path={model.path}: no such folder"):
        locate(model, "config.json")


def test_a_repository_without_a_network_is_refused():
    model = Model(path="nobody/nothing")
    with pytest.raises(UserError, match="nobody/nothing: no such local folder") as caught:
        locate(model, "config.json")
    assert "\n" not in str(caught.value)
