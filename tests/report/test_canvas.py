"""No figure is cut at its canvas: not with one group, not with twelve, not with long names."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from support.law_views import view_of
from support.marks import slow
from support.planted_deployment import planted_entry
from support.planted_forgetting import entry
from support.planted_laws import grid, several_texts
from support.planted_pairs import planted_pairs
from support.planted_recall import planted_recall

from pml_cli.analysis import deployment, forgetting
from pml_cli.analysis.rank_thresholds import rank_table
from pml_cli.law.bits_line import fit_line
from pml_cli.law.forms import Form
from pml_cli.law.group_comparison import Comparison, Group, Tie
from pml_cli.law.half_recall import WITHIN
from pml_cli.report.figures import memft
from pml_cli.report.figures.bits_line import bits_figure
from pml_cli.report.figures.comparison import forest_figure
from pml_cli.report.figures.forgetting import forgetting_figure
from pml_cli.report.figures.lasting import lasting_figure
from pml_cli.report.figures.registry import of_report

# Inches that rounding may cost.
TOLERANCE = 0.01

LONG = (
    "SmolLM2-135M-Instruct-of-a-long-name, jsonl:facts-of-the-factory, linear, "
    "memft_margin(switch=1.0), layer [3, 4], model.path=53947f data.prompt=Text: train.batch=4"
)
NAMES = pytest.mark.parametrize(
    "name",
    [pytest.param("tiny", id="short", marks=pytest.mark.slow), pytest.param(LONG, id="long")],
)
COUNTS = pytest.mark.parametrize("count", [slow(1), 12])

LAWS = of_report("law")


def methods(count):
    """sft and others, at least one."""
    others = [f"memft_margin(threshold={k / 10}, switch=1.0)" for k in range(max(1, count - 1))]
    return ["sft", *others]


def assert_inside(figure):
    """Every artist that is drawn lies inside the canvas."""
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 >= -TOLERANCE and drawn.y0 >= -TOLERANCE
    assert drawn.x1 <= width + TOLERANCE and drawn.y1 <= height + TOLERANCE


@pytest.fixture(scope="module")
def views():
    """A few cells, and twelve ranks and lengths."""
    many = several_texts(
        texts=(0, 1),
        ranks=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32),
        lengths=(16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024),
    )
    few = grid(ranks=(2, 4, 8), lengths=(64, 128, 256))
    return {1: view_of(few), 12: view_of(many, Form(link="hill"))}


@NAMES
@COUNTS
@pytest.mark.parametrize("figure", LAWS)
def test_a_law(views, figure, count, name):
    drawn = LAWS[figure].draw(dataclasses.replace(views[count], name=name))
    if drawn is not None:
        assert_inside(drawn)


@NAMES
@COUNTS
def test_groups_compared(hill_view, count, name):
    groups = [
        Group(name=f"{name} {k}", fit=hill_view.chosen, cost=30.0 * (k % 2)) for k in range(count)
    ]
    tie = Tie(
        what="alpha", shared={"alpha": 0.6}, freedom=1, statistic=6.0, p=0.014, p_clustered=0.23
    )
    comparison = Comparison(
        by=("model",), common="", form=Form(link="hill"), finding=None, groups=groups, ties=[tie]
    )
    assert_inside(forest_figure(comparison))


@NAMES
@COUNTS
@pytest.mark.parametrize("lengths", [(64,), slow((64, 128, 256))], ids=["one length", "three"])
def test_losses_compared(lengths, count, name):
    of_losses = [planted_pairs([0.1, 0.2], loss=loss) for loss in methods(count)[1:]]
    runs = pd.concat(of_losses).drop_duplicates(["data_seed", "loss"])
    runs = pd.concat([runs.assign(seqlen=length, model=name) for length in lengths])
    assert_inside(memft.accuracy_figure(runs.assign(method=runs["loss"]), False))

    cells = [planted_recall({loss: [4, 6] for loss in methods(count)}, seqlen=n) for n in lengths]
    ranks = rank_table(pd.concat(cells))
    assert_inside(memft.rank_figure(ranks.assign(model=name)))


@NAMES
@COUNTS
def test_harm_and_what_lasts(count, name):
    losses = methods(count)
    harmed = [
        entry(method=loss, rank=rank, model=name, id=f"{loss}{rank}")
        for loss in losses
        for rank in (2, 4)
    ]
    table = forgetting.measurement_table(harmed)
    assert_inside(forgetting_figure(table, forgetting.mean_table(table)))

    lasting = [planted_entry(loss, 0, rank, 0.9) for loss in losses for rank in (2, 4)]
    lasting = [{**planted, "model": name} for planted in lasting]
    assert_inside(lasting_figure(deployment.measurement_table(lasting)))


@NAMES
@COUNTS
def test_parameters_against_bits(count, name):
    lengths = np.array([24, 48, 96, 192])
    points = pd.concat(
        pd.DataFrame(
            {
                "group": f"{name} {group}",
                "text": f"{group}/{text}",
                "length": lengths,
                "bits": 11.0 * lengths,
                "parameters": 9 * (11.0 * lengths) ** 0.78 * (1 + 0.02 * text),
                "log_step": 0.1,
                "outside": WITHIN,
            }
        )
        # A line goes through two groups at least.
        for group in range(max(2, count))
        for text in range(3)
    )
    assert_inside(bits_figure(fit_line("sft", points), points))
