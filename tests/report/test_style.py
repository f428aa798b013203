"""What figures share: ticks, numbers, and files that are the same for the same figure."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.faults import full_disk

from pml_cli.report.figures import style
from pml_cli.report.figures.parity import predicted_figure


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1, 2, 4, 8, 12, 16], [1, 2, 4, 8, 16]),
        ([7], [7]),
        ([np.nan, -1], []),
        # Labels of four characters are wide.
        ([256, 512, 768, 1024, 1536, 2048, 3072], [256, 512, 768, 1536, 3072]),
    ],
)
def test_ticks_keep_the_ends_and_do_not_touch(values, ticks):
    assert style.log_ticks(values) == ticks


def test_many_values_have_few_ticks():
    ticks = style.log_ticks(np.arange(1, 5000))
    assert ticks[0] == 1 and ticks[-1] == 4999
    assert len(ticks) <= style.MAX_LOG_TICKS + 1


@pytest.mark.parametrize(
    ("value", "label"), [(512, "512"), (4000, "4k"), (12288, "12.3k"), (1.5e6, "1.5M")]
)
def test_tick_labels_are_short(value, label):
    assert style.tick_label(value) == label


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_full_disk_is_the_fault_that_is_named(tmp_path, suffix):
    figure = style.column_figure()
    # Of a PDF the page breaks off, and closing it raises an error of zlib.
    figure.subplots().plot(np.random.default_rng(0).random(2000))
    with full_disk(8000), pytest.raises(OSError, match="File too large"):
        style.save(figure, tmp_path / "figure", suffix)


def test_limits_begin_at_0_and_pass_over_what_is_not_finite():
    low, high = style.axis_limits(np.array([2.0, np.nan]), np.array([10.0, np.inf]))
    assert low == pytest.approx(-0.3) and high == pytest.approx(10.6)
    assert style.axis_limits(np.array([np.nan])) == (0.0, 1.0)


def test_a_long_title_is_broken_at_blanks_and_stays_inside_the_page():
    name = "Instruct-of-a-long-name, jsonl:facts, linear, model.path=53947f data.prompt=Text: "
    figure = Figure(figsize=(7, 3))
    style.page_title(figure, f"What is recalled\n{3 * name}", fontsize=13)

    title = figure._suptitle
    extent = title.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width
    lines = title.get_text().splitlines()
    assert lines[0] == "What is recalled" and len(lines) > 3
    assert " ".join(lines[1:]).split() == (3 * name).split()


def test_a_short_title_stays_as_it_is():
    figure = Figure(figsize=(7, 3))
    style.page_title(figure, "What is recalled\nby rank", fontsize=10)
    assert figure._suptitle.get_text() == "What is recalled\nby rank"


def test_the_same_figure_gives_the_same_bytes(hill_view, tmp_path):
    for suffix in ("svg", "pdf"):
        first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
        for path in (first, second):
            style.save(predicted_figure(hill_view), path, suffix)
        assert first.read_bytes() == second.read_bytes()
    assert "matplotlib.pyplot" not in sys.modules


def test_a_dollar_sign_in_a_name_is_no_formula(tmp_path):
    drawn = style.column_figure()
    axes = drawn.subplots()
    axes.loglog([1e-5, 1e5], [1, 2], label=r"model $\frac{$")
    axes.set_xticks([1], ["$x_{$"])
    axes.legend()
    style.page_title(drawn, r"laws of $\nosuch{$ " * 9, 7)
    style.save(drawn, tmp_path / "figure.svg", "svg")
