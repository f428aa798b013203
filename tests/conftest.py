"""Shared by all tests: quiet threads, the tiny base loaded once, and small random models of each supported family."""

import os
import signal
import tempfile

os.environ["PML_CACHE"] = tempfile.mkdtemp(prefix="pml-tests-")  # not the user's own
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: threads that spin starve each other on a busy machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
from support.families import FAMILIES, GPT2, UNRECORDED
from support.sweeps import quick  # noqa: F401  a fixture

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background jobs ignore it, and so would what they start


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """One thread: the tensors of the tests are small, and a fixed number keeps sums in the same order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base():
    from pml_cli.config.schema import Model
    from pml_cli.model.loading import load_model

    return load_model(Model(device="cpu"))


@pytest.fixture(scope="session")
def double_base():
    """A small GPT-2 in float64 (no float32 inside, unlike Qwen3's norms), with the vocabulary of the tiny tokenizer."""
    from pml_cli.model.loading import load_model

    return load_model(double_model())


def double_model():
    from pml_cli.config.schema import Model

    small = {"model_type": "gpt2", **GPT2, "vocab_size": 2048}
    return Model(name="double", weights="random", architecture=small, dtype="float64", device="cpu")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """model_folder(family): a folder with a small random model of that family, as save_pretrained writes it."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = _save_random(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


def _save_random(family, folder):
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family, **(FAMILIES | UNRECORDED)[family])
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # initial weights are so small that layers hardly matter; and no bias or norm may hide as 0 or 1
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + (0.1 if parameter.dim() > 1 else 0.2) * noise)
    model.save_pretrained(folder)
    return folder
