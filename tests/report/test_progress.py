"""Displays: what a strip of p shows, and plain lines where there is no terminal."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from pml_cli.config.schema import Model, Run
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check
from pml_cli.launch.status import RunningProcess, Snapshot
from pml_cli.report import progress
from pml_cli.report.output import consoles
from pml_cli.report.progress import (
    ABOVE_HALF_COLOUR,
    BELOW_HALF_COLOUR,
    CountDisplay,
    ProbeDisplay,
    SweepDisplay,
    probability_strip,
    sparkline,
)


def test_strip_has_one_block_a_token_and_colours_the_threshold():
    lines = probability_strip(np.array([0.0, 0.49, 0.5, 0.51, 1.0]), width=10, rows=2)
    assert [line.plain for line in lines] == ["▁▄▅▅█"]
    assert [span.style for span in lines[0].spans] == [BELOW_HALF_COLOUR] * 3 + [
        ABOVE_HALF_COLOUR
    ] * 2


def test_strip_of_many_tokens_shows_the_least_of_each_block_within_its_rows():
    p = np.ones(1000)
    p[501] = 0.1
    lines = probability_strip(p, width=20, rows=5)
    assert len(lines) <= 5
    assert sum(line.plain.count("▁") for line in lines) == 1


def test_sparkline_falls_with_the_loss_and_marks_what_is_not_finite():
    assert sparkline([8.0, 4.0, 0.5], 10) == "█▅▁"
    assert sparkline([1.0, float("nan")], 10)[1] == "?"


def test_piped_probe_prints_plain_lines():
    out = io.StringIO()
    with ProbeDisplay(Console(file=out, width=80), "title", 100) as display:
        for step in range(1, 101):
            display.update(step, 1.0, np.array([0.1, 2.0]), np.array([True, False]))
    lines = out.getvalue().splitlines()
    assert lines[0] == "title"
    assert 10 <= len(lines) <= 12
    assert "p > 0.5  50.0%  recalled  50.0%" in lines[-1]
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in out.getvalue()


def test_sweep_display_counts_cells_and_failures():
    cells = check([Run(rank=rank, seqlen=8, model=Model(device="cpu")) for rank in (1, 2, 4)])
    out = io.StringIO()
    with SweepDisplay(Console(file=out), cells=3, work=sum(cell.work for cell in cells)) as display:
        display.loading()
        display.pack_started(cells[:2])
        display.cell_ended(cells[0], None)
        display.cell_ended(cells[1], "nan")
        display.pack_ended(cells[:2])
    assert (display.ended, display.failed) == (2, 1)
    assert display.completed == pytest.approx(2 / 3)
    assert out.getvalue() == ""


def test_sweep_display_follows_workers(tmp_path):
    """Of four cells one was done before; two more have ended since, and one is half trained."""
    process = RunningProcess(
        name="w",
        kind="local",
        order="",
        host="here",
        pid=1,
        job=None,
        cells=["d"],
        step=5,
        steps=10,
        steps_per_second=1.0,
        work_per_second=10.0,
        work_left=50.0,
    )
    snapshot = Snapshot(
        work=dict.fromkeys("abcd", 100.0),
        done=["a", "b"],
        failed={"c": "nan"},
        running=[process],
        resumable={},
        jobs=[],
    )
    out = io.StringIO()
    with SweepDisplay(Console(file=out), cells=3, work=300) as display:
        display.workers_started(2, "2 processes")
        display.snapshot_taken(snapshot)
    assert (display.ended, display.failed) == (2, 1)
    assert display.completed == pytest.approx(250 / 300)
    assert out.getvalue() == "2 processes started\n"


def test_nothing_is_done_while_the_workers_load(tmp_path):
    """The padding of a pack of two lengths is in neither count."""
    cells = check([Run(rank=1, seqlen=n, model=Model(device="cpu")) for n in (64, 128)])
    plan = SimpleNamespace(cells=cells, done=frozenset(), todo=[Pack(cells=cells)])
    snapshot = Snapshot(
        work=SweepManifest.planned(tmp_path, plan.todo).work,
        done=[],
        failed={},
        running=[],
        resumable={},
        jobs=[],
    )
    with SweepDisplay.of(plan, Console(file=io.StringIO())) as display:
        display.snapshot_taken(snapshot)
        assert display.completed == 0


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_quiet_console_shows_no_progress(is_terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal)
    silent = consoles(console, quiet=True).progress
    with CountDisplay(silent, "reading", "runs", 2) as display:
        display.advance()
        display.stage("answers")
    with SweepDisplay(silent, 2, 100) as display:
        display.workers_started(2, "2 processes")
        display.loading()
    assert out.getvalue() == ""


def test_piped_count_prints_plain_lines_only_where_asked_and_not_too_often(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(file=out, width=80)
    with CountDisplay(console, "reading", "runs", 3, "runs read") as display:
        for now[0] in (1.0, 11.0, 12.0):
            display.advance()
    assert out.getvalue() == "2/3 runs read\n"
    with CountDisplay(console, "fitting", "bootstrap draws") as display:
        now[0] = 100.0
        display.show(5, 10)
    assert out.getvalue() == "2/3 runs read\n"
