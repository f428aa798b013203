"""Hashes of weights: exact, whatever the device, the threads and the place in memory."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from support.models import local

from pml_cli.config.schema import Model
from pml_cli.model.loading import load_model
from pml_cli.model.weight_hash import CHUNK, tensor_checksums

WIDE = {"n_embd": 64, "n_head": 4, "n_layer": 1, "n_positions": 32, "vocab_size": 32000}


def test_the_weights_hash_distinguishes_models(model_folder, tmp_path):
    original = load_model(local(model_folder("gpt2"))).weights_hash()
    folder = shutil.copytree(model_folder("gpt2"), tmp_path / "copy")
    copy = load_model(local(folder))
    assert copy.weights_hash() == original

    with torch.no_grad():
        copy.head.weight_VD[0, 0] += 1
    assert copy.weights_hash() != original


@pytest.fixture(scope="module")
def wide_model():
    """Its embeddings are so large that a floating-point sum would depend on the threads."""
    architecture = {"model_type": "gpt2", **WIDE}
    return load_model(Model(name="wide", weights="random", architecture=architecture, device="cpu"))


def test_the_weights_hash_does_not_depend_on_threads(wide_model):
    threads = torch.get_num_threads()
    hashes = set()
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            hashes.add(wide_model.weights_hash())
    finally:
        torch.set_num_threads(threads)
    assert len(hashes) == 1


def test_two_weights_swapped_and_one_bit_change_the_hash(wide_model):
    weights = wide_model.head.weight_VD
    original = wide_model.weights_hash()
    with torch.no_grad():
        weights[[3, 4000]] = weights[[4000, 3]]
        swapped = wide_model.weights_hash()
        weights[[3, 4000]] = weights[[4000, 3]]
        assert wide_model.weights_hash() == original

        weights[7, 7] = torch.nextafter(weights[7, 7], torch.tensor(9.0))
        one_bit = wide_model.weights_hash()
    assert len({original, swapped, one_bit}) == 3


def reference_checksums(tensor):
    """The same in plain integers."""
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 4), "<i4")
    keys = np.frombuffer(hashlib.shake_256(b"pml").digest(8 * CHUNK), "<i8") | 1
    checksums = []
    for start in range(0, len(words) // CHUNK * CHUNK + 1, CHUNK):
        pairs = zip(words[start : start + CHUNK], keys, strict=False)
        checksums.append(sum(int(word) * int(key) for word, key in pairs) % 2**64)
    return checksums


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 70001)])
def test_checksums_of_bits(dtype, shape):
    """Wherever in memory the tensor lies, and in whatever order."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9
    tensor = values.to(dtype)
    expected = reference_checksums(tensor)

    flat = tensor.reshape(-1)
    first = flat[:1]
    shifted = torch.cat([first, flat])[len(first) :].view(shape)
    column_major = tensor.T.contiguous().T if tensor.dim() == 2 else tensor
    for variant in (tensor, shifted, column_major):
        assert [int(s) % 2**64 for s in tensor_checksums(variant)] == expected
