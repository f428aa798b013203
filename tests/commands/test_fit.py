"""`pml fit` from run folders to the report folder, and the tables it shares with other commands."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support.marks import slow
from support.planted_laws import LENGTHS, RANKS, grid, result, several_texts, write

from pml_cli.commands import fit
from pml_cli.config.reports import Fit
from pml_cli.errors import UserError
from pml_cli.report.figures import probe, style
from pml_cli.report.tables.probe import probe_table
from pml_cli.report.tables.results import results_table
from pml_cli.results.folder import RunFolder
from pml_cli.results.groups import split_groups
from pml_cli.results.read import read_runs


def run(*paths, width=80, show_all=True, **settings):
    shown = io.StringIO()
    console = Console(file=shown, width=width)
    code = fit.run(list(paths), Fit(**{"draws": 60} | settings), console, show_all=show_all)
    return code, shown.getvalue()


@pytest.mark.slow
def test_from_run_folders_to_the_report(tmp_path):
    write(tmp_path, *grid())
    code, shown = run(tmp_path)
    law = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))
    (group,) = law["groups"]
    assert code == 0 and group["fit"]["status"] == "OK"
    assert group["fit"]["alpha"] == pytest.approx(0.6, abs=1e-6)
    assert group["fit"]["beta"] == pytest.approx(0.5, abs=1e-6)
    assert group["fit"]["C"] == pytest.approx(11.0, rel=1e-6)
    assert group["held_out"]["mape"] == pytest.approx(0, abs=1e-5)
    assert set(law["versions"]) == {"pml", "numpy", "scipy"} and law["inputs"]["cells"] == len(
        grid()
    )
    for words in ("alpha", "95 % interval", "R2", "MAPE", "status  OK", "saturated"):
        assert words in shown
    assert (tmp_path / "fit" / "law.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "fit" / "law.svg").read_text("utf-8")
    assert not list((tmp_path / "fit").glob(".*"))


@pytest.mark.parametrize("show_all", [True, slow(False)])
def test_piped_output_is_plain_text_that_fits(tmp_path, monkeypatch, show_all):
    write(tmp_path, *grid())
    monkeypatch.chdir(tmp_path)
    for width in (80, 140):
        shown = run(Path(), width=width, figures=False, show_all=show_all)[1]
        assert show_all or len(shown.splitlines()) <= 15
        assert shown.isascii() and "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= width


def test_every_cell_is_listed_with_its_reason(tmp_path):
    bad = [
        result(64, 32, delta=7.6),
        result(4, 48, delta=None, delta_loss=None),
        result(4, 48, final_loss=8.0, delta_loss=-0.4),
        result(4, 48, delta_loss=3.0, final_loss=5.0),
        result(4, 48, stopped_early=True),
    ]
    write(tmp_path / "a", *bad, *grid())
    RunFolder(tmp_path / "b", "run8").finish(result(2, 256))
    run(tmp_path, figures=False)
    cells = pd.read_csv(tmp_path / "fit" / "cells.csv", keep_default_na=False).set_index("folder")
    reasons = [cells.loc[str(tmp_path / "a" / f"run{k}"), "reason"] for k in range(6)]
    assert [words.split(" ")[0] for words in reasons] == [
        "saturated",
        "a",
        "diverged:",
        "gain",
        "stopped",
        "",
    ]
    assert cells.loc[str(tmp_path / "b" / "run8"), "reason"].startswith("a copy")
    assert len(cells) == len(bad) + len(grid()) + 1
    kept = cells[cells["kept"].astype(str) == "True"]
    assert (kept["reason"] == "").all()


@pytest.mark.slow
def test_groups_that_differ_are_fitted_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(
        style, "save", lambda figure, path, form: path.write_text(form)
    )  # drawing takes long
    few = {"ranks": (2, 4, 8), "lengths": (64, 128, 256)}
    write(tmp_path / "a", *grid(**few))
    write(
        tmp_path / "b",
        *(r | {"id": f"other{k}"} for k, r in enumerate(grid(**few, loss="memft_ot"))),
    )
    code, shown = run(tmp_path)
    law = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))
    assert code == 0 and "2 groups that differ in loss" in shown
    assert [group["key"]["loss"] for group in law["groups"]] == ["memft_ot", "sft"]
    assert {path.name for path in (tmp_path / "fit").glob("*.png")} == {
        f"law-{g['slug']}.png" for g in law["groups"]
    }


@pytest.mark.slow
def test_learning_rate_splits_only_where_it_was_swept(tmp_path):
    cells = pd.DataFrame([r | {"kept": True, "reason": ""} for r in grid()])
    tied = cells.assign(lr=cells["target_tokens"] / 1e4)
    assert len(list(split_groups(tied))) == 1
    swept = pd.concat([cells, cells.assign(lr=0.001)])
    assert [key["lr"] for key, _ in split_groups(swept)] == [0.001, 0.01]
    write(tmp_path, *(r | {"lr": r["target_tokens"] / 1e4} for r in grid()))
    assert "lr differs between cells" in run(tmp_path, figures=False)[1]


@pytest.mark.slow
def test_too_few_cells_say_what_to_run_next(tmp_path):
    write(tmp_path, *grid(ranks=(4, 8)))
    code, shown = run(tmp_path)
    words = " ".join(shown.split())
    assert code == 0 and "NOT_IDENTIFIED: only 2 distinct unsaturated ranks (4, 8)" in words
    assert "pml sweep rank=1,2,4,8,16 seqlen=" in words
    assert (tmp_path / "fit" / "law.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "content", [result(4, 32), result(4, 32, delta=7.6), result(4, 32) | {"rank": None}]
)
def test_a_single_cell_is_no_failure(tmp_path, content):
    write(tmp_path, content)
    assert (
        run(tmp_path, figures=content["rank"] is None)[0] == 0
    )  # no cell at all is the hardest to draw


@pytest.mark.slow
def test_the_report_is_the_same_again_and_ignores_itself(tmp_path):
    write(tmp_path, *grid())
    run(tmp_path, figures=False)
    first = (tmp_path / "fit" / "law.json").read_bytes()
    run(tmp_path, figures=False)
    assert (tmp_path / "fit" / "law.json").read_bytes() == first
    assert len(read_runs([tmp_path])) == len(grid())


def test_out_goes_where_it_is_told(tmp_path):
    write(tmp_path / "runs", *grid())
    run(tmp_path / "runs", out=str(tmp_path / "report"), figures=False)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "law.json",
        "cells.csv",
        "law.tex",
        "index.md",
    }
    assert not (tmp_path / "runs" / "fit").exists()


def test_nothing_to_read_or_nowhere_to_write(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no finished runs.*pml sweep.*pml fit"):
        run(tmp_path)
    assert list(tmp_path.iterdir()) == []
    RunFolder(tmp_path, "broken").fail("out of memory")
    with pytest.raises(UserError, match="1 failed"):
        run(tmp_path)
    write(tmp_path, *grid())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out="):
        run(tmp_path, out=str(tmp_path / "file"))


@pytest.mark.slow
def test_fit_never_imports_torch(tmp_path):
    write(tmp_path, *grid())
    code = (
        "import sys; from pathlib import Path; from rich.console import Console;"
        "from pml_cli.config.reports import Fit; from pml_cli.commands import fit;"
        f"fit.run([Path({str(tmp_path)!r})], Fit(draws=60), Console());"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def show(renderable, width):
    shown = io.StringIO()
    Console(file=shown, width=width).print(renderable)
    return shown.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_tables_for_sweep_and_probe_fit_their_width(width):
    runs = pd.DataFrame([r | {"id": str(k)} for k, r in enumerate(grid())])
    many = pd.DataFrame(grid(ranks=range(1, 17), lengths=range(1000, 14000, 1000)))
    shown = [show(results_table(table), width) for table in (runs, many)]
    shown.append(show(probe_table(result(4, 256)), width))
    shown.append(show(probe_table(result(64, 32, samples=8)), width))
    assert all(len(line) <= width for text in shown for line in text.splitlines())
    assert "…" not in "".join(shown)
    assert (
        "Remembered: every token" in shown[3] and "first wrong token is at position 64" in shown[2]
    )


@pytest.mark.parametrize(("samples", "length"), [(1, 16), (1, 1500), (5, 10), (60, 9)])
def test_recall_figure_is_drawn(tmp_path, samples, length):
    rng = np.random.default_rng(0)
    steps, sample, position = (
        axis.ravel()
        for axis in np.meshgrid([0, 10, 500], range(samples), range(length), indexing="ij")
    )
    p = rng.uniform(size=steps.shape)
    tokens = pd.DataFrame(
        {"step": steps, "sample": sample, "position": position, "p": p, "correct": p > 0.4}
    )
    style.save(probe.recall_figure(tokens), tmp_path / "recall.png", "png")
    assert (tmp_path / "recall.png").stat().st_size > 10_000


def test_layers_given_as_a_list_and_names_alike_are_told_apart(tmp_path):
    few = {"ranks": (4,), "lengths": (64,)}
    write(tmp_path / "a", *grid(**few, layer=[3, 4]))
    write(tmp_path / "b", *(r | {"id": "b0"} for r in grid(**few, layer=None, model="a/b")))
    write(tmp_path / "c", *(r | {"id": "c0"} for r in grid(**few, layer=None, model="a:b")))
    run(tmp_path, figures=False)
    groups = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))["groups"]
    assert len({group["slug"] for group in groups}) == 3
    assert [group["key"]["layer"] for group in groups] == [None, None, "[3, 4]"]


@pytest.mark.slow
def test_the_chosen_law_and_all_laws_side_by_side(tmp_path):
    write(tmp_path, *several_texts())
    shown = run(tmp_path, figures=False, draws=300)[1]
    content = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))
    (group,) = content["groups"]
    # Between Hill's law, which is planted, and its neighbours the noise decides.
    assert content["format"] == 4 and group["chosen"].startswith(("hill", "burr"))
    laws = {entry["name"]: entry for entry in group["laws"]}
    assert {"paper", "robust", "power", "power + b", "hard", "exp", "hill", "hill + b"} <= set(laws)
    chosen, paper = laws[group["chosen"]], laws["paper"]
    assert chosen["parameters"]["alpha"] == pytest.approx(0.6, abs=0.03)
    assert chosen["n"] == 90 and paper["n"] < 90 and paper["aicc_difference"] is None
    edge = {name: law["checks"]["largest ranks and longest lengths"] for name, law in laws.items()}
    assert edge[group["chosen"]]["mape"] < edge["paper"]["mape"] / 4
    assert set(chosen["checks"]) == {
        "largest ranks and longest lengths",
        "largest ranks",
        "longest lengths",
        "one text",
    }
    assert (
        np.array(chosen["covariance"]).shape
        == np.array(chosen["covariance_clustered"]).shape
        == (8, 8)
    )
    assert group["bootstrap"]["clusters"] == 15 and group["bootstrap"]["draws"] == 300
    low, high = group["bootstrap"]["intervals_95"]["alpha"]
    assert (
        low < chosen["parameters"]["alpha"] < high
        and group["profiles"]["alpha"]["interval_95"][0] > 0
    )
    assert len(content["draws"][group["slug"]]["alpha"]) == 300
    assert group["constant_capacity"]["p"] < 0.01
    cells = pd.read_csv(tmp_path / "fit" / "cells.csv")
    assert np.allclose(cells["residual_hill"], cells["delta_loss"] - cells["predicted_hill"])
    assert (cells["predicted_hill"] <= cells["base_loss"]).all()
    for words in (
        f"chosen law: {group['chosen']}",
        "all laws",
        "bootstrap of 15 clusters",
        "usually means saturation",
        "each text in turn",
    ):
        assert words in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_a_law_of_parameters_says_parameters(tmp_path):
    """Ranks are named only where they are ranks: in what was held, and in the sweep to run next."""
    write(tmp_path / "a", *several_texts(texts=(0,)))
    shown = run(tmp_path / "a", figures=False, x="parameters")[1]
    law, words = shown.split("gained ")[0], " ".join(shown.split())
    assert "rank" not in law
    for said in (
        "N^alpha",
        "power of parameters",
        "(parameters 8,192, length 512)",
        "(most parameters and longest lengths)",
        "parameters 256 to 8,192, length",
        "for twice the parameters",
    ):
        assert said in words
    assert "e+0" not in words.split("recall ")[1]
    assert max(map(len, shown.splitlines())) <= 80
    tex = (tmp_path / "a" / "fit" / "law.tex").read_text()
    assert "most parameters and longest lengths" in tex and "rank" not in tex
    write(tmp_path / "b", *grid(ranks=(4, 8)))
    words = " ".join(run(tmp_path / "b", figures=False, x="parameters")[1].split())
    assert (
        "only 2 distinct unsaturated parameter counts (1024, 2048)" in words
        and "pml sweep rank=1,2,4,8,16" in words
    )


@pytest.mark.slow
def test_what_is_read_back_fits_nothing(tmp_path):
    """A reader of law.json needs the documented formula and numbers alone."""
    write(tmp_path, *several_texts())
    run(tmp_path, figures=False, draws=0)
    content = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))
    (group,) = content["groups"]
    entry = next(entry for entry in group["laws"] if entry["name"] == "hill")
    assert (
        entry["law"] == "dL = L0 * S(x), x = (C * rank**alpha * target_tokens**-beta) / L0, "
        "S(x) = x / (1 + x**k)**(1/k)"
    )
    p, cells = entry["parameters"], pd.read_csv(tmp_path / "fit" / "cells.csv")
    x = (
        p["C"]
        * cells["rank"] ** p["alpha"]
        * cells["target_tokens"] ** -p["beta"]
        / cells["base_loss"]
    )
    assert np.allclose(
        cells["base_loss"] * x / (1 + x ** p["k"]) ** (1 / p["k"]),
        cells["predicted_hill"],
        rtol=1e-12,
    )
    assert group["bootstrap"] is None and content["draws"] == {group["slug"]: {}}


def law_and_cells(root):
    """The group of law.json, and cells.csv."""
    (group,) = json.loads((root / "fit" / "law.json").read_text("utf-8"))["groups"]
    return group, pd.read_csv(root / "fit" / "cells.csv", keep_default_na=False)


@pytest.mark.slow
def test_one_threshold_decides_what_is_saturated(tmp_path):
    """Cells of a final loss of 0.60 are measured gains at 0.5, and lower limits at 0.65."""
    base = 7.6
    planted = [result(rank, length, base - 0.60) for rank in (24, 32) for length in (24, 16)]
    write(tmp_path, *planted, *grid(ranks=(1, 2, 4, 8, 12)))
    saturated = {}
    for threshold in (0.5, 0.65):
        run(tmp_path, figures=False, draws=0, saturated_below=threshold)
        group, cells = law_and_cells(tmp_path)
        at_060 = np.isclose(cells["final_loss"], 0.60)
        assert at_060.sum() == len(planted)
        assert (cells["kept"][at_060].astype(str) == str(threshold == 0.5)).all()
        assert (cells["reason"][at_060] == ("" if threshold == 0.5 else "saturated")).all()

        saturated[threshold] = int((cells["reason"] == "saturated").sum())
        assert group["fit"]["n_saturated"] == saturated[threshold]
        assert {law["n_saturated"] for law in group["laws"]} == {saturated[threshold]}
        assert group["fit"]["n"] == len(cells) - saturated[threshold]
    assert saturated[0.65] - saturated[0.5] == len(planted)


def test_where_every_cell_is_saturated_no_law_is_identified(tmp_path):
    write(tmp_path, *several_texts())
    shown = run(tmp_path, figures=False, draws=0, saturated_below=9.5)[1]
    words = " ".join(shown.split())
    assert "0 of 90 cells kept (90 saturated, 0 excluded)" in words and "NOT_IDENTIFIED" in words
    assert "Every cell is saturated" in words and "chosen law" not in words
    group, _ = law_and_cells(tmp_path)
    assert group["chosen"] is None
    assert {law["status"] for law in group["laws"]} == {"NOT_IDENTIFIED"}


@pytest.mark.parametrize(
    "cells",
    [
        grid(ranks=(2, 4, 8), lengths=(64,)),
        grid(ranks=(64, 128, 256), lengths=(2, 4, 8)),
        grid(ranks=(4,), lengths=(32, 64, 128, 256)),
        [*grid(ranks=(2, 4), lengths=(64, 128)), result(4, 64, delta_loss=None)],
    ],
    ids=["three cells", "saturated only", "one rank", "a missing number"],
)
def test_what_carries_no_law_says_what_to_run(tmp_path, cells):
    write(tmp_path, *cells)
    code, shown = run(tmp_path, figures=False)
    words = " ".join(shown.split())
    assert code == 0 and "NOT_IDENTIFIED" in words and "Next: `pml sweep" in words
    group = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))["groups"][0]
    assert group["chosen"] is None and group["bootstrap"] is None


@pytest.mark.slow
def test_laws_that_stop_at_a_bound_are_not_chosen(tmp_path):
    falling = [
        result(r, n, 6.0 * r**-0.3 * n**-0.1 + 0.02 * math.sin(r * n))
        for r in RANKS
        for n in LENGTHS
    ]
    write(tmp_path, *falling)
    words = " ".join(run(tmp_path, figures=False)[1].split())
    assert (
        "no law on all cells: alpha is at its lower bound" in words
        and "Next: more cells, `pml sweep" in words
    )
    group = json.loads((tmp_path / "fit" / "law.json").read_text("utf-8"))["groups"][0]
    assert group["chosen"] is None and {entry["status"] for entry in group["laws"]} == {"BOUND_HIT"}
