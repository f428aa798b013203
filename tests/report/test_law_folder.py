"""The folder of a fit: which figures are written, where, and which are removed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from support.law_groups import fit_quietly, groups_of
from support.planted_laws import grid, write

from pml_cli.config.reports import Fit
from pml_cli.report import law_folder
from pml_cli.report.figures import registry


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are written as a word instead of a drawing."""
    page = replace(registry.registered()["law"], draw=lambda view: object())
    monkeypatch.setitem(registry._registered, "law", page)
    monkeypatch.setattr(registry, "save", lambda figure, path, suffix: path.write_text(suffix))


def written_pngs(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


@pytest.fixture(scope="module")
def two_groups():
    results = grid(ranks=(4,), lengths=(32, 64))
    return groups_of(*results, *(content | {"loss": "memft_ot"} for content in results))


@pytest.mark.usefixtures("undrawn")
def test_figures_of_several_groups_have_folders(tmp_path, two_groups):
    names = law_folder.write(tmp_path, two_groups, Fit())
    expected = []
    for group in two_groups:
        expected.append(f"law-{group.slug}.png")
        for name in ("length", "maps", "rank"):
            expected.append(f"figures/{group.slug}/law-{name}.png")
    assert written_pngs(tmp_path) == sorted(expected)
    assert names[-2:] == ["figures/ (18 files)", "index.md"]


@pytest.mark.usefixtures("undrawn")
def test_of_many_groups_only_the_pages_are_drawn(tmp_path, two_groups):
    groups = [replace(two_groups[0], slug=f"g{k}") for k in range(registry.MANY_GROUPS + 1)]
    law_folder.write(tmp_path, groups, Fit())
    assert written_pngs(tmp_path) == [f"law-{group.slug}.png" for group in groups]


@pytest.mark.usefixtures("undrawn")
def test_a_figure_that_the_cells_no_longer_carry_is_removed(tmp_path, two_groups):
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("law-profile.png", "law-profile.svg", "mine.png"):
        (figures / name).write_text("old")

    law_folder.write(tmp_path, two_groups[:1], Fit())
    assert written_pngs(tmp_path) == [
        "figures/law-length.png",
        "figures/law-maps.png",
        "figures/law-rank.png",
        "figures/mine.png",
        "law.png",
    ]
    assert not (figures / "law-profile.svg").exists()


@pytest.mark.parametrize(
    ("x", "size"),
    [
        ("rank", "rank"),
        ("parameters", "trainable_parameters"),
        ("effective", "effective_parameters"),
    ],
)
def test_a_formula_is_one_of_the_columns_of_the_cells(tmp_path, x, size):
    """What law.json says of the paper's law gives the predictions of cells.csv."""
    write(tmp_path, *grid())
    fit_quietly(tmp_path, x=x, draws=0)
    content = json.loads((tmp_path / "fit/law.json").read_text("utf-8"))
    (law, *_) = content["groups"][0]["laws"]
    assert law["law"] == f"dL = C * {size}**alpha * target_tokens**-beta + b"

    cells = pd.read_csv(tmp_path / "fit/cells.csv")
    columns = {name: cells[name].to_numpy(float) for name in (size, "target_tokens")}
    predicted = eval(law["law"].removeprefix("dL = "), columns | law["parameters"])
    assert predicted == pytest.approx(cells["predicted"].to_numpy(float))
    assert len(set(cells.columns)) == len(cells.columns)


@pytest.mark.usefixtures("undrawn")
def test_without_figures_there_are_the_tables(tmp_path, two_groups):
    names = law_folder.write(tmp_path, two_groups, Fit(figures=False))
    assert names == ["law.json", "cells.csv", "law.tex", "index.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_figure_of_a_loss_with_a_path_for_a_name_stays_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("pml_cli.report.figures.bits_line.bits_figure", lambda *_: object())
    monkeypatch.setattr(registry, "save", lambda figure, path, suffix: path.write_text(suffix))
    out = tmp_path / "out"
    (out / "bits-..").mkdir(parents=True)

    losses = ["../../outside", "x" * 5000]
    lines = [(SimpleNamespace(loss=loss), None) for loss in losses]
    names = law_folder._draw_lines(out, lines)
    assert len(names) == 2 * len(registry.SUFFIXES)
    assert all((out / name).is_file() for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
