"""Models of the hub, from a cache of this machine: their commit, and their names in tables."""

import json
import shutil

import huggingface_hub.constants
import pandas as pd
import pytest
from support.sweeps import FEW

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError
from pml_cli.model import files
from pml_cli.model.files import hub_commit, hub_id, locate

COMMIT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Two models of one name in the hub's cache."""
    cache = tmp_path / "hub"
    for owner in ("a", "b"):
        repository = cache / f"models--{owner}--base"
        shutil.copytree(TINY, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    files._download.cache_clear()
    yield cache
    files._download.cache_clear()


def test_the_commit_of_a_hub_model_is_that_of_the_cache(hub):
    assert hub_commit(Model(path="a/base")) == COMMIT
    assert hub_id(Model(path="a/base")) == "a/base"


def test_without_the_hub_a_file_that_is_not_in_the_cache_is_none(hub):
    assert locate(Model(path="a/base"), "adapter_config.json") is None
    assert locate(Model(path="a/base"), "config.json").is_file()
    with pytest.raises(UserError, match=r"model.path=c/base: .*not in the cache"):
        locate(Model(path="c/base"), "adapter_config.json")


def test_other_models_have_none(hub):
    made_up = Model(weights="random", architecture={"model_type": "gpt2"})
    for model in (Model(), Model(path=str(TINY)), made_up):
        assert hub_id(model) is None
        assert hub_commit(model) is None


def test_two_hub_models_of_one_name_in_one_folder_are_kept_apart(hub, tmp_path, quick):
    for owner in ("a", "b"):
        settings = ("model=hf", f"model.path={owner}/base", "rank=2", "seqlen=8", *FEW)
        done = quick("sweep", *settings, "out=o")
        assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "o/results.csv")
    assert sorted(table["model"]) == ["a/base", "b/base"]
    for path in (tmp_path / "o").glob("*/env.json"):
        assert json.loads(path.read_text())["model_commit"] == COMMIT
