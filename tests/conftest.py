"""Shared by all tests: one thread, the tiny model, small random models of each family."""

import os
import signal
import tempfile

# Set before torch is imported: threads that spin starve each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Not the cache of the user.
os.environ["PML_CACHE"] = tempfile.mkdtemp(prefix="pml-tests-")
# No test needs the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
from support.families import FAMILIES, GPT2, UNRECORDED
from support.law_groups import law_report  # noqa: F401  a fixture
from support.sweeps import quick  # noqa: F401  a fixture

# Background jobs of a shell ignore SIGINT, and so would the processes that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup SIGHUP is ignored, and pml leaves it so.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """One thread: the tensors are small, and a fixed number of threads fixes the order of sums."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base():
    from pml_cli.config.schema import Model
    from pml_cli.model.loading import load_model

    return load_model(Model(device="cpu"))


@pytest.fixture(scope="session")
def double_base():
    """A small GPT-2 in float64 with the vocabulary of the tiny tokenizer.

    Nothing in it computes in float32, unlike Qwen3's norms.
    """
    from pml_cli.model.loading import load_model

    return load_model(double_model())


def double_model():
    from pml_cli.config.schema import Model

    small = {"model_type": "gpt2", **GPT2, "vocab_size": 2048}
    return Model(name="double", weights="random", architecture=small, dtype="float64", device="cpu")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """model_folder(family): a small random model of that family, as save_pretrained writes it."""
    folders = {}

    def make(family):
        if family not in folders:
            folders[family] = _save_random(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return make


def _save_random(family, folder):
    from support.family_matrix import small_fields
    from support.models import save_random

    known = FAMILIES | UNRECORDED
    fields = known[family] if family in known else small_fields(family)
    return save_random(family, fields, folder)
