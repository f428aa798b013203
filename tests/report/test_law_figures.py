"""The figures of `pml fit`: what they show is what was measured and fitted, and nothing that a sweep can hold stops them."""

import io
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.law_groups import groups_of
from support.planted_laws import grid, result, several_texts

from pml_cli.config.reports import Fit
from pml_cli.law import model_selection
from pml_cli.law.analysis import Analysis, LawRow
from pml_cli.law.bootstrap import bootstrap, profiles
from pml_cli.law.fit_groups import audit, with_columns
from pml_cli.law.forms import Form
from pml_cli.law.group_comparison import Comparison, Group, Tie
from pml_cli.law.observations import PARAMETERS, Observations
from pml_cli.law.power_law import fit_paper
from pml_cli.report import law_folder
from pml_cli.report.figures import (
    comparison,
    curves,
    heatmaps,
    parity,
    profile,
    registry,
    residuals,
    style,
    surface,
)
from pml_cli.report.figures import law as law_plots
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import of_report
from pml_cli.stats import LN2

FIGURES = {name.removeprefix("law-"): spec.draw for name, spec in of_report("law").items()}


def row_of(observed, estimator, difference=math.nan):
    """A law and its held-out checks."""
    held_out = model_selection.checks(observed, estimator)
    return LawRow(fit=estimator(observed), aicc_difference=difference, checks=held_out)


def view_of(rows, form=None, draws=0):
    """A view whose chosen law has the given form, or none: no other law is fitted."""
    runs = with_columns(pd.DataFrame([r | {"id": f"{k}"} for k, r in enumerate(rows)]))
    cells = audit(runs)
    usable = cells[cells["kept"] | (cells["reason"] == "saturated")]
    columns = (
        usable[name].to_numpy(float)
        for name in ("rank", "target_tokens", "delta_loss", "base_loss")
    )
    observed = Observations.of(*columns, text=usable["data_seed"])
    paper = row_of(observed, fit_paper)
    if form is None:
        analysis = Analysis.without_choice(paper.fit, [paper])
        return View(name="a sweep", cells=cells, observed=observed, analysis=analysis)

    chosen = row_of(observed, model_selection.saturating(form), 0.0)
    analysis = replace(
        Analysis.without_choice(paper.fit, [paper, chosen]),
        chosen=chosen,
        law=chosen.fit,
        bootstrap=bootstrap(observed, chosen.fit, draws) if draws else None,
        profiles=profiles(observed, chosen.fit),
    )
    return View(name="a sweep", cells=cells, observed=observed, analysis=analysis)


@pytest.fixture(scope="module")
def bent():
    """Three texts whose gain bends towards the base loss."""
    return view_of(several_texts(), Form(link="hill"), draws=200)


def labelled(axes, label):
    return [artist for artist in axes.get_children() if artist.get_label() == label]


def test_lines_are_the_chosen_law_and_the_dashes_the_papers(bent):
    (axes,) = curves.rank_figure(bent).axes
    p = bent.chosen.parameters
    solid = [
        line
        for line in axes.get_lines()
        if line.get_label().startswith("_child") and len(line.get_xdata()) == 100
    ]
    assert len(solid) == 5  # a line a length
    x, y = solid[0].get_data()
    base = bent.observed.base[bent.observed.length == 32].mean()
    ratio = p["C"] * x ** p["alpha"] * 32 ** -p["beta"] / base
    assert np.allclose(y, base * ratio / (1 + ratio ** p["k"]) ** (1 / p["k"]))
    ring = labelled(axes, "_band")[0].get_paths()[0].vertices
    low, high = bent.chosen.band(x, np.full(100, 32.0), np.full(100, base))
    assert ring[:, 1].min() == pytest.approx(low.min()) and ring[:, 1].max() == pytest.approx(
        high.max()
    )
    dashes = labelled(axes, "_paper")
    assert dashes
    x, y = dashes[0].get_data()
    there = np.isfinite(y)
    assert 0 < there.sum() < 100 and np.allclose(y[there], bent.paper.predict(x[there], 32))


def test_points_are_means_and_hollow_where_saturated(bent):
    for figure in (curves.rank_figure, curves.length_figure):
        (axes,) = figure(bent).axes
        drawn = {
            name: sum(len(line.get_xdata()) for line in labelled(axes, name))
            for name in ("_full", "_hollow")
        }
        means = bent.cells.groupby(["rank", "target_tokens"])[["base_loss", "final_loss"]].agg(
            {"final_loss": lambda values: (values <= LN2).mean() >= 0.5}
        )
        assert drawn["_hollow"] == means["final_loss"].sum() > 0
        assert drawn["_full"] + drawn["_hollow"] == 30  # 90 runs, three a cell
    first = labelled(curves.rank_figure(bent).axes[0], "_full")[0]
    where = (bent.observed.rank == 1) & (bent.observed.length == 32)
    assert first.get_ydata()[0] == pytest.approx(bent.observed.delta[where].mean())


def test_an_axis_of_parameters_has_their_name_and_values():
    view = view_of(several_texts(texts=(0,)), Form(link="hill"))
    moved = replace(
        view,
        axis=PARAMETERS,
        observed=replace(view.observed, rank=256 * view.observed.rank),
    )
    axes = curves.rank_figure(moved).axes[0]
    assert axes.get_xlabel() == "trainable parameters N"
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "256",
        "512",
        "1024",
        "2048",
        "4096",
        "8192",
    ]
    assert law_plots.maps_figure(moved).axes[0].get_ylabel() == "trainable parameters N"
    assert profile.profile_figure(moved).axes[0].get_xlabel() == "alpha (power of parameters)"


def test_cells_left_out_are_predicted_by_a_fit_without_them():
    exact = view_of(several_texts(noise=0.0, texts=(0,)), Form(link="hill"))
    (axes,) = parity.predicted_figure(exact).axes
    (unseen,) = labelled(axes, "unseen by the fit")
    o = exact.observed
    edge = ((o.rank == 32) | (o.length == 512)) & ~o.saturated
    assert sorted(unseen.get_xdata()) == pytest.approx(sorted(o.delta[edge]))
    assert np.allclose(
        unseen.get_xdata(), unseen.get_ydata(), rtol=1e-4
    )  # the truth is a Hill law without noise
    rows = several_texts(noise=0.0, texts=(0,))
    for row in rows:  # what is left out has no say in its own prediction
        if (row["rank"] == 32 or row["target_tokens"] == 512) and row["final_loss"] > LN2:
            row |= {
                "delta_loss": 0.9 * row["delta_loss"],
                "final_loss": row["base_loss"] - 0.9 * row["delta_loss"],
            }
    other = parity.predicted_figure(view_of(rows, Form(link="hill")))
    assert np.allclose(
        labelled(other.axes[0], "unseen by the fit")[0].get_ydata(), unseen.get_ydata(), rtol=1e-4
    )
    paper = next(
        line for line in axes.get_lines() if line.get_label().startswith("unseen, paper's law")
    )
    assert (
        paper.get_ydata().max() == pytest.approx(axes.get_ylim()[1])
        and "(clipped)" in paper.get_label()
    )


def test_residuals_are_relative_and_their_means_by_hand(bent):
    panels = residuals.residuals_figure(bent).axes
    o = bent.observed
    residual = 100 * (o.delta / bent.chosen.predict(o.rank, o.length, o.base) - 1)
    (points,) = labelled(panels[0], "in the fit")
    assert sorted(points.get_ydata()) == pytest.approx(sorted(residual[~o.saturated]))
    (means,) = labelled(panels[0], "mean in the fit")
    assert means.get_xdata().tolist() == [1, 2, 4, 8, 16, 32]
    assert means.get_ydata()[0] == pytest.approx(residual[(o.rank == 1) & ~o.saturated].mean())
    assert len(labelled(panels[0], "saturated")[0].get_xdata()) == o.saturated.sum() > 0


def test_means_over_the_predicted_gain_are_in_bins_of_several_cells():
    """Few cells, each with a gain of its own: a bar a cell would be no mean."""
    view = view_of(several_texts(texts=(0,), ranks=(1, 2, 4, 8)), Form(link="hill"))
    panels = residuals.residuals_figure(view).axes
    (points,), (means,) = labelled(panels[2], "in the fit"), labelled(panels[2], "mean in the fit")
    order = np.argsort(points.get_xdata())
    cells = points.get_ydata()[order]
    assert len(cells) <= residuals.MAX_DISTINCT
    parts = np.array_split(cells, len(means.get_xdata()))
    assert min(map(len, parts)) >= 5 and means.get_ydata() == pytest.approx(
        [part.mean() for part in parts]
    )
    lone = residuals._means(np.arange(10.0), np.ones(10))
    assert len(lone[0]) == 2


def test_profiles_have_the_95_line_the_interval_and_the_draws(bent):
    figure = profile.profile_figure(bent)
    assert [axes.get_xlabel().split(" ")[0] for axes in figure.axes] == ["alpha", "beta", "k"]
    alpha = figure.axes[0]
    assert labelled(alpha, "95 % line, 3.84")[0].get_ydata()[0] == pytest.approx(3.8415, abs=1e-4)
    low, high = bent.analysis.bootstrap.intervals["alpha"]
    (span,) = labelled(alpha, "its 95 % interval")
    assert span.get_x() == pytest.approx(low) and span.get_x() + span.get_width() == pytest.approx(
        high
    )
    heights = labelled(alpha, "bootstrap draws")[0].get_data().values
    assert heights.max() == pytest.approx(0.45 * profile.MAX_DEVIANCE) and (heights > 0).sum() > 5
    assert alpha.get_title().startswith(f"{bent.chosen.parameters['alpha']:.3f} (")


def tie(what, shared, **p_values):
    return Tie(what=what, shared=shared, freedom=len(shared), statistic=6.0, **p_values)


def test_groups_side_by_side_have_both_tests_and_the_value_that_these_are_of(bent):
    """By likelihood ratio alphas differ, by clusters they may be one; the dashes are the tie of alpha, not of both."""
    one = Group(name="a", fit=bent.chosen, bootstrap=bent.analysis.bootstrap, cost=0.0)
    ties = [
        tie("alpha", {"alpha": 0.611}, p=0.014, p_clustered=0.23),
        tie("beta", {"beta": 0.522}, p=0.003, p_clustered=0.002),
        tie("alpha and beta", {"alpha": 0.7, "beta": 0.8}, p=0.002, p_clustered=math.nan),
    ]
    found = Comparison(
        by=("model",),
        common="",
        form=Form(link="hill"),
        finding=None,
        groups=[one, replace(one, name="b", cost=30.0)],
        ties=ties,
    )
    alpha, beta = comparison.forest_figure(found).axes
    for axes, words in (
        (
            alpha,
            "alpha: may be shared (shared: 0.611, dashed)\np = 0.014 (likelihood ratio), 0.23 (clusters)",
        ),
        (
            beta,
            "beta: differ (shared: 0.522, dashed)\np = 0.003 (likelihood ratio), 0.002 (clusters)",
        ),
    ):
        assert axes.get_title() == words
        (dashed,) = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
        assert dashed.get_xdata()[0] == float(words.split("shared: ")[1][:5])
        assert [
            line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "o"
        ][1] == "white"
    assert [text.get_text() for text in alpha.get_yticklabels()] == [
        "a",
        "b\n(rejects the common law)",
    ]


def test_maps_hold_the_measured_values():
    rows = grid(ranks=(2, 4, 8), lengths=(64, 128))
    rows += [result(16, 64, final_loss=50.0, delta_loss=-42.4)]
    figure = law_plots.maps_figure(view_of(rows))
    words = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    first = rows[0]
    assert f"{first['final_loss']:.2f}" in words[0] and "50.0" in words[0]
    assert f"{first['bits_gained'] / 512:.2f}" in words[1]
    assert words[2] == {"25", "100"} or words[2] == {"25"}
    assert figure.axes[0].images[0].norm.vmax == 7.6  # a diverged cell does not dim the others
    assert "gained" in figure.axes[1].get_title()
    known = [r | {"bits_memorised": 512.0} for r in rows]
    figure = law_plots.maps_figure(view_of(known))
    assert "memorised" in figure.axes[1].get_title() and "1.00" in {
        text.get_text() for text in figure.axes[1].texts
    }


def test_many_lengths_are_put_together_in_the_maps():
    lengths = np.arange(20, 2020)
    cells = pd.DataFrame({"rank": 8, "target_tokens": lengths, "final_loss": 1.0})
    table = heatmaps.cell_means(cells, "final_loss")
    assert table.shape[0] == 1 and 20 <= table.shape[1] <= 32 and (table.to_numpy() == 1).all()
    assert heatmaps.cell_means(cells[:40], "final_loss").shape == (1, 40)


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        (grid(ranks=(4,)), "law rank length maps"),
        (grid(lengths=(64,)), "law rank length maps"),
        (grid(ranks=(64, 128, 256), lengths=(2, 4, 8)), "law rank length maps"),
        (grid(ranks=(2, 4, 8), lengths=(64,)), "law rank length maps"),
        ([result(4, 32)], "law rank length maps"),
        ([result(4, 32) | {"rank": None}], "law"),
        ([result(r, 16 * r) for r in (2, 3, 4, 6, 8, 12, 16)], "law rank length maps"),
        (
            [
                result(r, n, 6.0 * r**-0.3 * n**-0.1 + 0.02 * math.sin(r * n))
                for r in (2, 4, 8, 16)
                for n in (32, 64, 128)
            ],
            "law rank length maps surface predicted residuals",
        ),
    ],
    ids=[
        "one rank",
        "one length",
        "saturated only",
        "three cells",
        "one cell",
        "no number",
        "rank with length",
        "at a bound",
    ],
)
def test_what_carries_no_law_is_drawn_as_far_as_it_goes(rows, drawn):
    view = view_of(rows)
    assert view.chosen is None
    made = {name: figure(view) for name, figure in FIGURES.items()}
    assert {name for name, figure in made.items() if figure is not None} == set(drawn.split())
    if len(view.observed) in (0, 1, 3, 9):  # layout takes long, and the rest are laid out alike
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made["law"].draw_without_rendering()


def test_odd_cells_do_not_stop_a_figure():
    odd = [
        result(4, 64, delta_loss=None),
        result(4, 48, final_loss=90.0, delta_loss=-82.4),
        result(4, 96)
        | {
            "free_accuracy": None,
            "token_accuracy": None,
            "bits_gained": None,
            "trainable_parameters": 0,
        },
    ]
    view = view_of([*several_texts(texts=(0,)), *odd], Form(link="hill"))
    for name, figure in FIGURES.items():
        made = figure(view)
        assert made is not None, name
        if name in ("law", "profile"):  # the page has the pieces of the others
            made.draw_without_rendering()
    axes = curves.rank_figure(view).axes[0]
    assert (
        labelled(axes, "_excluded") and axes.get_ylim()[0] > -1
    )  # a diverged cell sits at the edge of the frame


def test_thousands_of_cells_make_a_small_svg():
    rng = np.random.default_rng(0)
    ranks, lengths = rng.integers(1, 65, 1200), rng.integers(20, 3000, 1200)
    gains = 14 * ranks**0.6 * lengths**-0.5
    gains = 7.6 * gains / (7.6**4 + gains**4) ** 0.25 * (1 + 0.01 * rng.standard_normal(1200))
    rows = [
        result(int(r), int(n), min(d, 7.5)) for r, n, d in zip(ranks, lengths, gains, strict=True)
    ]
    view = view_of(rows, Form(link="hill"))
    for figure in (parity.predicted_figure, residuals.residuals_figure, surface.surface_figure):
        svg = io.BytesIO()
        figure(view).savefig(svg, format="svg", dpi=60)
        assert b"<image" in svg.getvalue() and len(svg.getvalue()) < 400_000


def test_the_same_figure_gives_the_same_bytes(bent, tmp_path):
    for k in range(2):
        style.save(parity.predicted_figure(bent), tmp_path / f"{k}.svg", "svg")
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules


def test_ticks_keep_the_ends_and_do_not_touch():
    assert style.log_ticks([1, 2, 4, 8, 12, 16]) == [1, 2, 4, 8, 16]
    assert style.log_ticks([7]) == [7] and style.log_ticks([np.nan, -1]) == []
    assert style.log_ticks([256, 512, 768, 1024, 1536, 2048, 3072]) == [
        256,
        512,
        768,
        1536,
        3072,
    ]  # four letters are wide
    many = style.log_ticks(np.arange(1, 5000))
    assert many[0] == 1 and many[-1] == 4999 and len(many) <= style.MAX_LOG_TICKS + 1
    assert [style.tick_label(v) for v in (512, 4000, 12288, 1.5e6)] == [
        "512",
        "4k",
        "12.3k",
        "1.5M",
    ]
    assert [style.three_digits(v) for v in (0.6, 14, 3.14159, 123.4, 123456)] == [
        "0.600",
        "14.0",
        "3.14",
        "123",
        "1.23e+05",
    ]


def report(tmp_path, groups):
    """The names that are told and the pictures that are there; each is a line, not a drawing."""
    with pytest.MonkeyPatch.context() as patch:
        page = replace(registry.registered()["law"], draw=lambda view: object())
        patch.setitem(registry._registered, "law", page)
        patch.setattr(registry, "save", lambda figure, path, form: path.write_text(form))
        names = law_folder.write(tmp_path, groups, Fit())
    return names, sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))


def test_figures_of_several_groups_have_their_folders_and_many_groups_a_page_each(tmp_path):
    rows = grid(ranks=(4,), lengths=(32, 64))
    two = groups_of(*rows, *(r | {"loss": "memft_ot"} for r in rows))
    slugs = [group.slug for group in two]
    names, files = report(tmp_path / "two", two)
    extra = [
        f"figures/{slug}/law-{name}.png" for slug in slugs for name in ("length", "maps", "rank")
    ]
    assert files == sorted([*extra, *(f"law-{slug}.png" for slug in slugs)])
    assert names[-1] == "figures/ (12 files)"
    many = [replace(two[0], slug=f"g{k}") for k in range(registry.MANY_GROUPS + 1)]
    assert report(tmp_path / "many", many)[1] == [f"law-g{k}.png" for k in range(len(many))]


def test_a_figure_that_the_cells_no_longer_carry_is_removed(tmp_path):
    (group,) = groups_of(*grid(ranks=(4,), lengths=(32, 64)))
    (tmp_path / "figures").mkdir()
    for name in ("law-profile.png", "law-profile.svg", "mine.png"):
        (tmp_path / "figures" / name).write_text("old")
    _, files = report(tmp_path, [group])
    assert files == [
        "figures/law-length.png",
        "figures/law-maps.png",
        "figures/law-rank.png",
        "figures/mine.png",
        "law.png",
    ]
    assert not (tmp_path / "figures" / "law-profile.svg").exists()
