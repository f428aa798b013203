"""law.tex: every number of the laws in its place, the chosen one bold, any name escaped; compiled where there is a TeX."""

import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from support.law_groups import groups_of
from support.planted_laws import several_texts

from pml_cli.law.analysis import Analysis
from pml_cli.law.findings import NOT_IDENTIFIED, finding
from pml_cli.law.observations import RANK, Observations
from pml_cli.law.power_law import unidentified
from pml_cli.report import latex
from pml_cli.report.law_text import sentence

NASTY = r'100% of_$x$ & {a\b} ~ ^ # <|> "q" Müller 中文'


@pytest.fixture(scope="module")
def group():
    (found,) = groups_of(*several_texts(texts=(0,)))
    return found


@pytest.fixture(scope="module")
def tex(group):
    return latex.table(group.name, "", group.analysis, group.observed)


def tabulars(text):
    """Rows of cells of each tabular, after its column letters."""
    found = []
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL
    ):
        rows = [
            line.removesuffix(r" \\").split("&")
            for line in body.splitlines()
            if line.endswith(r"\\")
        ]
        found.append((columns, [[cell.strip() for cell in row] for row in rows]))
    return found


def number(cell):
    plain = cell.replace(r"\bfseries\boldmath", "").strip().strip("$")
    mantissa, _, power = plain.partition(r"\cdot10^")
    return float(mantissa) * 10.0 ** int(power.strip("{}") or 0)


def test_every_row_has_every_column_and_every_group_closes(tex):
    (first, parameters), (second, quality) = tabulars(tex)
    assert first == "lrrrrr" and second == "lrrrrrrr"
    assert {len(row) for row in parameters} == {6} and {len(row) for row in quality} == {8}
    opened = re.findall(r"(?<!\\)[{}]", tex)
    assert opened.count("{") == opened.count("}")
    assert len(re.findall(r"(?<!\\)\$", tex)) % 2 == 0
    assert re.findall(r"\\(begin|end)\{(\w+)\}", tex) == [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("begin", "tabular"), ("end", "tabular"),
        ("end", "table"),
    ]  # fmt: skip
    assert not set(re.findall(r"\\(?:usepackage|multirow|cline|SI|num|textcolor)\b", tex))


def test_numbers_and_intervals_are_those_of_the_laws(group, tex):
    (_, parameters), (_, quality) = tabulars(tex)
    assert parameters[0] == ["Law", "$C$", r"$\alpha$", r"$\beta$", "$b, H$", "$k$"]
    fitted = [entry for entry in group.analysis.rows if entry.fit.status == "OK"]
    assert len(parameters) == 1 + 2 * len(fitted) and len(quality) == 1 + len(fitted)
    for k, entry in enumerate(fitted):
        values, spans, scores = parameters[1 + 2 * k], parameters[2 + 2 * k], quality[1 + k]
        told = latex.intervals(entry, group.analysis)
        fourth = "level" if "level" in entry.fit.parameters else "b"
        for name, value, span in zip(
            ("C", "alpha", "beta", fourth, "k"), values[1:], spans[1:], strict=True
        ):
            if name not in entry.fit.parameters:
                assert value == span == ""
                continue
            assert number(value) == pytest.approx(entry.fit.parameters[name], rel=5e-3)
            low, high = span.strip("$[]").split(r",\,")
            assert (number(low), number(high)) == pytest.approx(told[name], rel=5e-3)
        edge = entry.checks["largest ranks and longest lengths"]
        wanted = [
            entry.fit.n_used,
            None,
            entry.fit.mape,
            entry.aicc_difference,
            edge.mape,
            edge.mape_all,
            100 * edge.coverage,
        ]
        for cell, value in zip(scores[1:], wanted, strict=True):
            if value is not None and math.isnan(value):
                assert cell.endswith("--")
            elif value is not None:
                assert number(cell) == pytest.approx(value, abs=0.51 if value > 20 else 0.051)


def test_the_chosen_law_and_no_other_is_bold(group, tex):
    for _, rows in tabulars(tex):
        bold = [row for row in rows if any("bfseries" in cell for cell in row)]
        (row,) = bold
        assert row[0].endswith(group.analysis.chosen.name)
        assert all("bfseries" in cell for cell in row if cell)
    assert tex.count("Bold: chosen") == 1


def test_laws_without_a_fit_are_named_with_the_reason(group, tex):
    stopped = [entry for entry in group.analysis.rows if entry.fit.status != "OK"]
    said = tex[tex.index("Without a fit:") :]
    assert stopped and all(
        entry.name in said and sentence(entry.fit.finding, RANK) in said for entry in stopped
    )
    gone = [
        replace(e, fit=replace(e.fit, status=NOT_IDENTIFIED))
        for e in group.analysis.rows
        if e.fit.uses_saturated
    ]
    bare = latex.table("x", "", Analysis.without_choice(group.analysis.paper, gone), group.observed)
    assert bare.count("none could be fitted") == 2 and "bfseries" not in bare


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("mlp_block", r"mlp\_block"),
        ("a & b % c # $d", r"a \& b \% c \# \$d"),
        (r"{\x}~^", r"\{\textbackslash{}x\}\textasciitilde{}\textasciicircum{}"),
        ("a<b>|c", r"a\textless{}b\textgreater{}\textbar{}c"),
        ("Müller\n中", "Muller ?"),
    ],
)
def test_names_are_escaped(text, escaped):
    assert latex.escape(text) == escaped


def test_numbers_large_small_and_without_end(group):
    chosen = group.analysis.chosen
    values = {"C": (1e-300, math.inf), "alpha": (-0.5, 123456.0)}
    analysis = replace(group.analysis, bootstrap=None, profiles={})
    told = latex.table("x", "", analysis, group.observed)
    assert r"\cdot10" not in told
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            latex, "intervals", lambda entry, _: values if entry.name == chosen.name else {}
        )
        told = latex.table("x", "", analysis, group.observed)
    assert r"$[1.00\cdot10^{-300},\,\infty]$" in told and r"$[-0.500,\,1.23\cdot10^{5}]$" in told


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
@pytest.mark.parametrize("package", ["", r"\usepackage{booktabs}"])
def test_it_compiles_and_fits_the_text(group, tmp_path, package):
    empty = Observations.of(*np.empty((4, 0)))
    paper = unidentified("paper", finding("constant_gain"), empty.saturated)
    nothing = latex.table(NASTY, "a/b c", Analysis.without_choice(paper, []), empty)
    tables = [latex.table(NASTY, "x_1", group.analysis, group.observed), nothing]
    (tmp_path / "law.tex").write_text(latex.document(tables), "utf-8")
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{{article}}{package}\begin{{document}}\input{{law.tex}}See \ref{{tab:law-x-1}}.\end{{document}}"
    )
    if (
        package
        and subprocess.run(
            ["kpsewhich", "booktabs.sty"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no booktabs here")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log and "Missing character" not in log
