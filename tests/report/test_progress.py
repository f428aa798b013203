"""Displays: what a strip of p shows, and plain lines where there is no terminal."""

import io

import numpy as np
from rich.console import Console

from pml_cli.report import progress
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
    display = SweepDisplay(Console(file=io.StringIO()), cells=3, work=100)
    with display:
        display.step(0.5, 60)
        display.end_cell(None)
        display.end_cell("nan")
        display.end_pack(60)
    assert (display.ended, display.failed) == (2, 1)


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
