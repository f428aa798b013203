"""Measured speeds: what is recorded, and the times expected from it."""

import json

import pytest
from support.pricing import pack

from pml_cli.config.schema import Model, Run
from pml_cli.launch import cost_model
from pml_cli.launch.executors.inline import InlineLaunch
from pml_cli.launch.executors.local import LocalLaunch
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check
from pml_cli.launch.throughput import (
    MAX_POINTS,
    Throughput,
    expected_seconds,
    makespan,
    timed_by_others,
)
from pml_cli.report.tables.dry_run import time_line

CPU = Model(device="cpu")
SHORT = pack(CPU, seqlen=16, steps=10)
MIDDLE = pack(CPU, seqlen=64, steps=20)
LONG = pack(CPU, seqlen=256, steps=5)
LONGEST = pack(CPU, seqlen=900, steps=7)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "cache"))
    return Throughput()


def record(throughput, pack, seconds, device="cpu", dtype="float32", model="tiny"):
    throughput.record(device, dtype, model, pack, seconds)


def expected(throughput, pack, device="cpu", dtype="float32", model="tiny"):
    return throughput.expected_seconds(device, dtype, model, pack)


def test_the_folder_of_the_cache(tmp_path, monkeypatch):
    for name in ("PML_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Throughput().path == tmp_path / ".cache/pml/rates.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert Throughput().path == tmp_path / "x/pml/rates.json"
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "own"))
    assert Throughput().path == tmp_path / "own/rates.json"


def test_a_planted_overhead_and_rate_are_recovered(cache):
    def true_seconds(pack):
        return pack.cells[0].steps * 0.003 + cost_model.training_flops(pack) / 2e10

    for measured in (SHORT, MIDDLE, LONG):
        record(cache, measured, true_seconds(measured))
    for asked in (SHORT, MIDDLE, LONG, LONGEST):
        assert expected(Throughput(), asked) == pytest.approx(true_seconds(asked), rel=1e-6)


def test_one_or_two_points_give_a_ratio(cache):
    record(cache, MIDDLE, 2.0)
    assert expected(cache, MIDDLE) == pytest.approx(2.0)

    per_flop = 2.0 / cost_model.training_flops(MIDDLE)
    long_seconds = per_flop * cost_model.training_flops(LONG)
    assert expected(cache, LONG) == pytest.approx(long_seconds)

    record(cache, LONG, long_seconds)
    longest_seconds = per_flop * cost_model.training_flops(LONGEST)
    assert expected(cache, LONGEST) == pytest.approx(longest_seconds)


def test_neither_overhead_nor_rate_is_negative(cache):
    # Larger steps took less time.
    for measured, step_seconds in ((SHORT, 0.03), (MIDDLE, 0.02), (LONG, 0.01)):
        record(cache, measured, step_seconds * measured.cells[0].steps)
    assert 0.01 <= expected(cache, LONGEST) / LONGEST.cells[0].steps <= 0.03


def test_another_model_stands_in_for_one_that_was_not_measured(cache):
    assert expected(cache, SHORT) is None
    record(cache, SHORT, 1.0, model="other")
    assert expected(cache, SHORT) == pytest.approx(1.0)
    record(cache, SHORT, 5.0)
    assert expected(cache, SHORT) == pytest.approx(5.0)


def test_another_device_or_dtype_does_not(cache):
    record(cache, SHORT, 5.0)
    assert expected(cache, SHORT, dtype="bfloat16") is None
    assert expected(cache, SHORT, device="NVIDIA H200") is None


def test_only_the_last_points_are_kept(cache):
    for seconds in (1.0,) * 5 + (3.0,) * MAX_POINTS:
        record(cache, SHORT, seconds)
    assert expected(cache, SHORT) == pytest.approx(3.0)
    (points,) = json.loads(cache.path.read_text())["cpu"]["float32"].values()
    assert len(points) == MAX_POINTS
    assert [path.name for path in cache.path.parent.iterdir()] == ["rates.json"]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "7",
        '{"cpu": 3}',
        '{"cpu": {"float32": {"tiny": [[1]]}}}',
        '{"cpu": {"float32": {"tiny": "x"}}}',
    ],
)
def test_a_damaged_file_counts_as_empty(cache, damage):
    cache.path.parent.mkdir()
    cache.path.write_text(damage)
    assert expected(cache, SHORT) is None
    record(cache, SHORT, 1.0)
    assert expected(cache, SHORT) == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_not_used(cache, seconds):
    record(cache, SHORT, seconds)
    assert expected(cache, SHORT) is None


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "file"))
    record(Throughput(), SHORT, 1.0)
    assert expected(Throughput(), SHORT) is None


def test_expected_seconds_are_those_measured_with_as_many_threads(cache, monkeypatch):
    short = Pack(cells=check([Run(seqlen=30, model=CPU)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert expected_seconds(InlineLaunch(), [short]) == [None]
    record(cache, short, 7.0, device="cpu, 3 threads")
    assert expected_seconds(InlineLaunch(), [short]) == [pytest.approx(7.0)]
    assert expected_seconds(LocalLaunch(devices=1, threads=2), [short]) == [None]


def test_times_by_packs_of_another_model_are_marked(cache, monkeypatch):
    short = Pack(cells=check([Run(seqlen=30, model=CPU)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert timed_by_others(InlineLaunch(), [short]) == {"tiny"}
    record(cache, short, 7.0, device="cpu, 3 threads", model="other")
    assert timed_by_others(InlineLaunch(), [short]) == {"tiny"}
    line = time_line(InlineLaunch(), [short], [7.0], {"tiny"})
    assert "about 7 s, estimated from other models (marked ?): tiny was not trained here" in line

    record(cache, short, 7.0, device="cpu, 3 threads")
    assert timed_by_others(InlineLaunch(), [short]) == set()


def test_a_free_device_takes_the_next_pack():
    assert makespan([30.0, 20.0, 10.0], 1) == 60
    assert makespan([30.0, 20.0, 10.0], 2) == 30
    assert makespan([2, 5, 3, 3, 2], 2) == 8


def test_the_expected_time_is_that_of_the_device_that_ends_last():
    sizes = ((1, 40), (2, 30), (3, 20))
    packs = [Pack(cells=check([Run(rank=r, seqlen=n, model=CPU)])) for r, n in sizes]
    seconds = [30.0, 20.0, 10.0]
    assert "time: unknown" in time_line(InlineLaunch(), packs, [None] * 3)
    assert "about 60 s," in time_line(InlineLaunch(), packs, seconds)
    assert "about 30 s on 2 devices" in time_line(LocalLaunch(devices=2), packs, seconds)
