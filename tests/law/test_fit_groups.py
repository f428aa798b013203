"""Groups of cells: which are compared, and what a law of the number of parameters changes."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from support.law_groups import fit_quietly, groups_of
from support.planted_laws import (
    exact_recall,
    exponential_cells,
    grid,
    result,
    runs_of,
    write,
)

from pml_cli.law.findings import OK
from pml_cli.law.fit_groups import audit, with_columns
from pml_cli.law.law_json import load
from pml_cli.results.folder import RunFolder

FEW = {"ranks": (1, 2, 4, 8), "lengths": (48, 64, 96, 128, 192)}


def write_group(root, **columns):
    """The same cells, with other settings."""
    write(root, *[cell | columns | {"id": None} for cell in grid(**FEW)])


def comparison_of(folder):
    (comparison,) = json.loads((folder / "law.json").read_text("utf-8"))["comparisons"]
    return comparison


def group_names(comparison):
    return [row["name"] for row in comparison["groups"]]


@pytest.mark.slow
def test_a_law_of_effective_parameters_is_found_where_it_was_planted(tmp_path):
    """As runs of older versions are read: without the column, from rank, width 128 and length."""

    def planted(rank, length):
        effective = rank * (min(length, 128) + 128 - rank)
        loss = 7.6 * math.exp(-0.12 * effective / length)
        return result(rank, length, delta=7.6 - loss, id=None)

    ranks, lengths = (2, 3, 4, 6, 8), (32, 64, 128, 256, 512)
    write(tmp_path, *[planted(rank, length) for rank in ranks for length in lengths])
    printed = fit_quietly(tmp_path, draws=0, x="effective", width=100)
    assert "C N_e^alpha l^-beta" in printed
    assert "power of effective parameters" in printed
    assert "(rank 8, length 512)" in printed

    (group,) = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))["groups"]
    (law,) = [law for law in group["laws"] if law["name"] == "exp"]
    assert law["parameters"]["alpha"] == pytest.approx(1, abs=1e-3)
    assert law["parameters"]["beta"] == pytest.approx(1, abs=1e-3)
    assert load(tmp_path / "fit")[0].axis.name == "effective"


@pytest.mark.slow
def test_groups_with_one_law_may_share_their_exponents(tmp_path):
    write_group(tmp_path / "a")
    write_group(tmp_path / "b", model="other")
    printed = fit_quietly(tmp_path, by=["model"], draws=30)
    assert "model tiny" in printed and "may be shared" in printed
    comparison = comparison_of(tmp_path / "fit")
    assert comparison["by"] == ["model"]
    assert group_names(comparison) == ["model other", "model tiny"]
    assert all(tie["p"] > 0.9 for tie in comparison["ties"])


@pytest.mark.slow
def test_groups_are_compared_by_what_also_shows_in_their_settings(tmp_path):
    """Two sources differ in data.text too; other settings still keep groups apart."""
    write_group(tmp_path / "a", data="random", setting="model.dtype=bfloat16")
    text = "model.dtype=bfloat16 data.text=ca7613 data.prompt=two words"
    write_group(tmp_path / "b", data="text", setting=text)
    write_group(tmp_path / "c", data="text", setting="data.text=ca7613")
    write_group(tmp_path / "d", layer=2, setting="model.dtype=bfloat16 model.layer=2")
    fit_quietly(tmp_path, by=["data"], draws=0, width=100)
    comparison = comparison_of(tmp_path / "fit")
    assert group_names(comparison) == ["data random", "data text"]
    assert comparison["common"].endswith("setting model.dtype=bfloat16")


@pytest.mark.slow
def test_groups_of_one_name_say_what_else_differs(tmp_path):
    """Two placements differ in model.layer too."""
    setting = "model.dtype=bfloat16 model.layer=2"
    write_group(tmp_path / "a", setting="model.dtype=bfloat16")
    write_group(tmp_path / "d", layer=2, setting=setting)
    write_group(tmp_path / "e", layer=2, setting=f"{setting} adapter.layers=[2, 3]")
    fit_quietly(tmp_path / "a", tmp_path / "d", by=["layer"], draws=0)
    assert group_names(comparison_of(tmp_path / "a" / "fit")) == ["layer 2", "layer 4"]

    fit_quietly(*(tmp_path / name for name in "ade"), by=["layer"], draws=0)
    assert group_names(comparison_of(tmp_path / "a" / "fit")) == [
        "layer 2 model.layer=2",
        "layer 2 model.layer=2 adapter.layers=[2, 3]",
        "layer 4",
    ]


@pytest.mark.slow
def test_a_law_of_the_number_of_parameters_differs_in_the_scale_alone(tmp_path):
    write(tmp_path, *grid())
    fits = {}
    ranges = {"rank": (2, 32), "parameters": (512, 8192)}
    for x, trained in ranges.items():
        fit_quietly(tmp_path, draws=0, x=x, out=str(tmp_path / x))
        content = json.loads((tmp_path / x / "law.json").read_text("utf-8"))
        fits[x] = content["groups"][0]["fit"]
        assert content["x"] == x
        (law,) = load(tmp_path / x)
        assert law.ranks == trained
    alpha = fits["rank"]["alpha"]
    assert fits["parameters"]["alpha"] == pytest.approx(alpha, abs=1e-6)
    assert fits["parameters"]["C"] == pytest.approx(fits["rank"]["C"] * 256**-alpha, rel=1e-5)


@pytest.mark.slow
def test_a_run_without_a_number_of_parameters_is_excluded(tmp_path):
    write(tmp_path, *grid())
    RunFolder(tmp_path, "odd").finish(result(2, 300, trainable_parameters=None))
    printed = fit_quietly(tmp_path, draws=0, x="parameters")
    assert "1 cell excluded: trainable parameters missing or not positive" in printed


@pytest.mark.slow
def test_what_speaks_against_the_gain_alone_counts_for_recall(tmp_path):
    """Stopped once recalled, at p < 1/2; and diverged, where it recalls nothing."""
    cells = exponential_cells(texts=3)
    exact = exact_recall(cells)
    runs = runs_of(cells, exact_match=exact)
    early = 0
    for run in runs:
        if run["exact_match"]:
            run |= {"stopped_early": True, "final_loss": 1.5, "base_loss": 1.5 + run["delta_loss"]}
            early += 1
    runs[0] |= {"exact_match": 0.0, "delta_loss": -1.0, "final_loss": runs[0]["base_loss"] + 1.0}
    (group,) = groups_of(*runs)

    assert group.recall.status == OK
    assert group.recall.n == len(runs)
    assert group.recall.exact == exact.sum() - exact[0] == early - exact[0]
    # The gain of those is a limit that nobody knows.
    assert group.cells["kept"].sum() <= len(runs) - early


@pytest.mark.slow
def test_cells_that_had_not_converged_are_counted_and_flat_gains_lose_no_other_group(tmp_path):
    late = [
        cell | {"converged": cell["target_tokens"] < 128, "expected_gain": 0.3, "id": None}
        for cell in grid(**FEW)
    ]
    write(tmp_path / "law", *late)
    rng = np.random.default_rng(0)
    flat = [
        result(rank, length, 3 + 0.06 * rng.standard_normal(), model="flat", id=None)
        for rank in FEW["ranks"]
        for length in FEW["lengths"]
    ]
    write(tmp_path / "flat", *flat)

    shown = " ".join(fit_quietly(tmp_path, draws=0).split())

    assert "8 cells had not converged, with up to 0.3 nats per token to gain" in shown
    assert "NOT_IDENTIFIED: the gain does not depend on rank or length" in shown
    groups = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))["groups"]
    assert {group["key"]["model"]: bool(group["chosen"]) for group in groups} == {
        "flat": False,
        "tiny": True,
    }


def test_what_cells_that_had_not_converged_count_as():
    columns = {"converged": False, "expected_gain": 0.3, "id": None}
    runs = with_columns(pd.DataFrame([cell | columns for cell in grid(**FEW)]))
    assert audit(runs)["reason"].isin(["", "saturated"]).all()
    dropped = audit(runs, unconverged="drop")
    assert dropped["reason"].isin(["had not converged", "saturated"]).all()

    # Runs of an optimiser that cannot tell, and of older versions, go on as before.
    unknown = with_columns(pd.DataFrame(grid(**FEW)))
    assert audit(unknown, unconverged="drop")["kept"].sum() == audit(unknown)["kept"].sum() > 0
