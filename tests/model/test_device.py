"""Devices by name, and the memory of a device."""

from types import SimpleNamespace

import pytest
import torch

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.device import device_kind, out_of_memory, pick_device, usable_memory
from pml_cli.model.loading import load_model


@pytest.mark.parametrize("device", ["cuda", "warp:9"])
def test_devices_that_do_not_exist_are_refused(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=f"model.device={device}"):
        load_model(Model(device=device))


def test_a_cuda_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1").index == 1
    message = r"model\.device=cuda:2: the last CUDA device here is cuda:1"
    with pytest.raises(UserError, match=message):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "has_gpu", "kind"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda:3", False, "cuda"),
    ],
)
def test_the_kind_of_a_device_without_torch(device, has_gpu, kind):
    assert device_kind(device, has_gpu) == kind


def test_a_gpu_is_as_large_as_its_driver_tells_this_process(monkeypatch):
    """Of a slice (MIG) that is less than nvidia-smi tells of the GPU."""
    sizes = {"cuda:0": 1000, "cuda:1": 500}

    def properties(device):
        return SimpleNamespace(total_memory=sizes[str(device)])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert usable_memory(torch.device("cuda:1")) == 400


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_errors_that_say_memory_is_exhausted(error, expected):
    assert out_of_memory(error) is expected
