"""The GPUs and the memory of this machine, and how workers share them."""

import os

import pytest

from pml_cli.config.schema import Model, Run
from pml_cli.launch import devices
from pml_cli.launch.executors.inline import InlineLaunch
from pml_cli.launch.executors.local import LocalLaunch
from pml_cli.launch.executors.slurm import SlurmLaunch
from pml_cli.launch.packing import check, make_packs, packing_for
from pml_cli.model import device
from pml_cli.model.device import device_memory

CPU = Model(device="cpu")


def install_nvidia_smi(folder, script, monkeypatch):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("2,5", ["2", "5"]), ("", []), ("-1", []), ("GPU-abc,MIG-1", ["GPU-abc", "MIG-1"])],
)
def test_the_gpus_are_those_that_the_user_allows(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.visible_gpus() == gpus


def test_gpus_are_counted_without_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    lines = ["GPU 0: NVIDIA H200 (UUID: GPU-1)", "GPU 1: NVIDIA H200 (UUID: GPU-2)"]
    script = "\n".join(f"echo '{line}'" for line in lines)
    install_nvidia_smi(tmp_path, script, monkeypatch)
    assert devices.visible_gpus() == ["0", "1"]


def test_each_worker_has_a_device_of_its_own(monkeypatch):
    gpu = [Run(model=Model(device="cuda"))]
    cpu = [Run(model=CPU)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert LocalLaunch().visible_devices(gpu) == ["4", "7"]
    assert LocalLaunch(devices=1).visible_devices(gpu) == ["4"]
    assert LocalLaunch(devices=3).visible_devices(cpu) == ["", "", ""]
    assert LocalLaunch().visible_devices(cpu) == [""] * max(1, devices.cores() // 2)


def test_workers_in_excess_of_the_gpus_share_them(monkeypatch):
    gpu = [Run(model=Model(device="cuda"))]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert LocalLaunch(devices=3).visible_devices(gpu) == ["4", "7", "4"]


def test_packs_are_cut_for_the_devices_and_their_memory():
    cells = check([Run(rank=rank, seqlen=30, model=CPU) for rank in range(1, 17)])
    alone = packing_for(InlineLaunch(), cells)
    shared = packing_for(LocalLaunch(devices=4), cells)
    assert (alone.devices, shared.devices) == (1, 4)
    assert shared.memory == pytest.approx(alone.memory / 4, rel=0.01)
    assert len(make_packs(cells, shared)) >= 4 > len(make_packs(cells, alone))

    slurm = packing_for(SlurmLaunch(devices=2, device_gb=3), cells)
    assert (slurm.devices, slurm.memory, slurm.gpu) == (2, 3 * 2**30, True)


def test_the_memory_of_a_gpu_is_shared_by_its_workers(monkeypatch):
    monkeypatch.setattr(devices, "device_memory", lambda kind: 1000)
    assert devices.memory_per_worker("cuda", ["4", "7"]) == 800
    assert devices.memory_per_worker("cuda", ["4", "7", "4"]) == 400
    assert devices.memory_per_worker("cpu", ["", "", ""]) == 266
    monkeypatch.setattr(devices, "device_memory", lambda kind: None)
    assert devices.memory_per_worker("cuda", ["4"]) is None


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 81559; echo 40960; echo 81559", 40960 * 2**20),
        ("echo '[N/A]'", None),
        ("exit 9", None),
        ("true", None),
    ],
)
def test_memory_of_the_smallest_gpu(tmp_path, monkeypatch, script, expected):
    install_nvidia_smi(tmp_path, script, monkeypatch)
    assert device_memory("cuda") == expected


def test_only_the_gpus_that_may_be_used_are_asked(tmp_path, monkeypatch):
    """A small card that drives the screen does not decide what the others hold."""
    script = 'case "$*" in *"-i 1,2"*) echo 81559; echo 81559;; *) echo 4096; echo 81559;; esac'
    install_nvidia_smi(tmp_path, script, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 2")
    assert device_memory("cuda") == 81559 * 2**20
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert device_memory("cuda") == 4096 * 2**20


@pytest.mark.parametrize(
    ("files", "visible", "kind"),
    [
        (["nvidia0"], None, "cuda"),
        # A container that was given the fourth GPU; WSL.
        (["nvidia3", "nvidiactl"], None, "cuda"),
        (["dxg"], None, "cuda"),
        (["nvidiactl"], None, "cpu"),
        (["nvidia0"], "", "cpu"),
        (["nvidia0"], "-1", "cpu"),
        (["nvidia0", "nvidia1"], "1", "cuda"),
    ],
)
def test_whether_there_is_a_gpu(tmp_path, monkeypatch, files, visible, kind):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.device_kind("auto") == kind
    assert device.device_kind("cpu") == "cpu"


def test_memory_of_this_machine(tmp_path, monkeypatch):
    assert 2**20 < device_memory("cpu") < 2**50
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_memory("cuda") is None


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("4,2", 4)])
def test_threads_of_an_operation(monkeypatch, variable, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert devices.openmp_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert devices.openmp_threads() == devices.cores()
