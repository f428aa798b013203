"""The hash of a file of weights."""

import os

import torch
from safetensors.torch import save_file

from pml_cli.model.file_hash import tensors_hash, weight_files


def test_tensors_count_and_not_the_order_of_the_metadata(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    # In the file their order is one of chance: with so many, hardly ever the same.
    metadata = {f"key{i}": "value" for i in range(20)}
    hashes, files = set(), set()
    for i in range(5):
        path = tmp_path / f"{i}.safetensors"
        save_file(tensors, path, metadata=metadata)
        hashes.add(tensors_hash(path))
        files.add(path.read_bytes())
    assert len(files) > 1
    assert len(hashes) == 1

    save_file({"a": torch.arange(4.0), "b": 2 * torch.ones(2, 2)}, path)
    assert tensors_hash(path) not in hashes
    save_file({"a": torch.arange(4.0), "c": torch.ones(2, 2)}, path)
    assert tensors_hash(path) not in hashes


def test_a_damaged_file_has_a_hash_too(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no weights")
    assert tensors_hash(path)


def test_a_pipe_holds_no_weights(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "other.safetensors"]
