"""Shared by all tests: quiet threads, the tiny base loaded once, and small random models of each supported family."""

import contextlib
import os
import resource
import signal
import tempfile

os.environ["PML_CACHE"] = tempfile.mkdtemp(prefix="pml-tests-")  # not the user's own
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin starve each other on a busy machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would what they start

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "head_dim": 8}
SMALL |= {"intermediate_size": 48, "vocab_size": 101, "max_position_embeddings": 256, "pad_token_id": 0}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 256, "vocab_size": 101}
FAMILIES = {
    "qwen3": SMALL,
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 7},  # shorter than the inputs of the tests
    "gemma": SMALL,
    "gemma2": SMALL | {"sliding_window": 7, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0},
    "gemma3_text": SMALL | {"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "gpt2": GPT2,
    "gpt_neox": {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}
    | {"use_parallel_residual": True},
}
MORE = {"glm4": SMALL, "granite": SMALL | {"residual_multiplier": 0.22}}  # for tests of the split pass alone


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """One thread: the tensors of the tests are small, and a fixed number keeps sums in the same order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base():
    from pml_cli.config.schema import Model
    from pml_cli.model.loading import load_base

    return load_base(Model(device="cpu"))


@pytest.fixture(scope="session")
def double_base():
    """A small GPT-2 in float64 (no float32 inside, unlike Qwen3's norms), with the vocabulary of the tiny tokenizer."""
    from pml_cli.model.loading import load_base

    return load_base(double_model())


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

    config = transformers.AutoConfig.for_model(family, **(FAMILIES | MORE)[family])
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # initial weights are so small that layers hardly matter; and no bias or norm may hide as 0 or 1
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + (0.1 if parameter.dim() > 1 else 0.2) * noise)
    model.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def full_disk(room):
    """Inside, no file can be written beyond so many bytes: the system refuses, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
