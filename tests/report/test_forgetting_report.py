"""Figure and tables of `pml forgetting`, and what a harm means in words."""

import pytest
from support.planted_forgetting import entry
from support.printing import printed

from pml_cli.analysis.forgetting import mean_table, measurement_table
from pml_cli.report.figures.forgetting import LEAST_HARM, forgetting_figure
from pml_cli.report.figures.methods import COLOURS
from pml_cli.report.forgetting_text import meaning_of_harm
from pml_cli.report.tables.forgetting import forgetting_report

KINDS = ["prose", "docs", "code", "chat", "own"]


@pytest.fixture
def runs():
    """Two losses without and with a penalty, two texts each."""
    entries = []
    for seed in (0, 1):
        entries += [
            entry(harm=3.0 + seed, data_seed=seed),
            entry(harm=0.1, keep=22.0, exact=False, data_seed=seed),
            entry(harm=2.0, method="memft_margin", data_seed=seed),
            entry(harm=0.08, method="memft_margin", keep=22.0, data_seed=seed),
        ]
    return entries


def printed_report(runs):
    means = mean_table(measurement_table(runs))
    return [line for part in forgetting_report(means, KINDS) for line in printed(part)]


@pytest.mark.parametrize(
    ("harm", "changed", "expected"),
    [
        (0.1, 0.08, "perplexity 11 % up; 8 of 100 next words would be chosen otherwise"),
        (2.65, None, "perplexity 14 times as high"),
        (0.87, None, "perplexity 139 % up"),
        (1.609, None, "perplexity 5 times as high"),
        (-0.05, None, "perplexity 4.9 % down"),
        (0.0004, None, "perplexity unchanged"),
    ],
)
def test_what_a_harm_means(harm, changed, expected):
    assert meaning_of_harm(harm, changed) == expected


def test_the_tables_fit_80_columns(runs):
    lines = printed_report(runs)
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    interval = ["-2.85", "to", "9.85"]
    assert ["sft", "none", "8", "2", "100.0", "3.50", *interval] in [r[:9] for r in rows]
    assert ["margin", "22", "8", "2", "100.0", "0.080"] in [r[:6] for r in rows]
    assert ["sft", "22", "8", "0.10", "0.10", "0.10", "0.10", "0.10"] in rows
    words = " ".join(" ".join(lines).split())
    assert "margin, loss.keep 22, rank 8: 0.080 nats: perplexity 8.3 % up" in words
    assert "sft, rank 8: 3.50 nats: perplexity 33 times as high" in words


def test_where_nothing_is_recalled(runs):
    failed = [run | {"exact_match": 0.0} for run in runs]
    assert "no cell recalls a sample whole" in printed_report(failed)


def test_the_figure_has_a_point_a_cell_and_the_front(runs):
    table = measurement_table(runs)
    axes = forgetting_figure(table, mean_table(table)).axes[0]
    assert axes.get_xscale() == "log"
    named = {text.get_text(): text.xy for text in axes.texts if text.xy[1] == 0}
    assert named == {"22": pytest.approx((0.1, 0))}
    front = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert front.get_xdata()[0] == pytest.approx(0.08)
    assert set(front.get_ydata()) == {100}
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["front: none is better in both", "sft", "memft_margin"]


def test_the_legend_lies_within_the_page_and_grey_is_that_of_sft():
    runs = [entry(method="memft_margin", rank=rank, id=str(rank)) for rank in (2, 4, 8)]
    table = measurement_table(runs)
    page = forgetting_figure(table, mean_table(table))
    page.canvas.draw()
    legend = page.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= page.bbox.width
    colours = {line.get_color() for line in page.axes[0].lines if line.get_marker() in ("o", "s")}
    assert colours == {COLOURS[1]}


def test_harm_below_zero_is_at_the_end_of_the_axis():
    table = measurement_table([entry(harm=-0.01), entry(harm=0.5, keep=3.0)])
    axes = forgetting_figure(table, mean_table(table)).axes[0]
    points = [line.get_xdata() for line in axes.lines if line.get_marker() not in ("None", "")]
    assert min(float(x.min()) for x in points if len(x)) == LEAST_HARM
    assert "≤0.001" in [tick.get_text() for tick in axes.get_xticklabels()]


def test_a_figure_without_harm_says_so():
    run = entry() | {"harm": None, "harm_low": None, "harm_high": None}
    run["kinds"] = {"prose": run["kinds"]["prose"]}
    table = measurement_table([run])
    axes = forgetting_figure(table, mean_table(table)).axes[0]
    assert "not measured" in axes.texts[0].get_text()
