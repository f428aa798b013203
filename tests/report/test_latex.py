"""law.tex: each number of the laws in its place, names escaped; compiled where there is a TeX."""

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
from pml_cli.law.findings import NOT_IDENTIFIED, OK, finding
from pml_cli.law.model_selection import EDGE
from pml_cli.law.observations import EFFECTIVE, PARAMETERS, RANK, Observations
from pml_cli.law.power_law import unidentified
from pml_cli.report import latex
from pml_cli.report.law_text import sentence

NASTY_NAME = r'100% of_$x$ & {a\b} ~ ^ # <|> "q" Müller 中文'


@pytest.fixture(scope="module")
def group():
    (only,) = groups_of(*several_texts(texts=(0,)))
    return only


@pytest.fixture(scope="module")
def tex(group):
    return latex.table(group.name, "", group.analysis, group.observed)


def tabulars(tex):
    """The column letters and the rows of cells of each tabular."""
    tables = []
    pattern = r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}"
    for columns, body in re.findall(pattern, tex, re.DOTALL):
        rows = []
        for line in body.splitlines():
            if line.endswith(r"\\"):
                cells = line.removesuffix(r" \\").split("&")
                rows.append([cell.strip() for cell in cells])
        tables.append((columns, rows))
    return tables


def number(cell):
    """The value of a cell."""
    plain = cell.replace(r"\bfseries\boldmath", "").strip().strip("$")
    mantissa, _, exponent = plain.partition(r"\cdot10^")
    return float(mantissa) * 10.0 ** int(exponent.strip("{}") or 0)


def ends(cell):
    """Both ends of an interval."""
    low, high = cell.strip("$[]").split(r",\,")
    return number(low), number(high)


@pytest.mark.slow
def test_every_row_has_every_column(tex):
    (parameter_columns, parameters), (quality_columns, quality) = tabulars(tex)
    assert parameter_columns == "lrrrrr" and quality_columns == "lrrrrrrr"
    assert {len(row) for row in parameters} == {6}
    assert {len(row) for row in quality} == {8}


def test_every_group_is_closed(tex):
    braces = re.findall(r"(?<!\\)[{}]", tex)
    assert braces.count("{") == braces.count("}")
    assert len(re.findall(r"(?<!\\)\$", tex)) % 2 == 0
    assert re.findall(r"\\(begin|end)\{(\w+)\}", tex) == [
        ("begin", "table"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("end", "table"),
    ]


def test_no_package_is_needed(tex):
    assert not re.findall(r"\\(?:usepackage|multirow|cline|SI|num|textcolor)\b", tex)


def test_parameters_and_intervals_are_those_of_the_laws(group, tex):
    (_, lines), _ = tabulars(tex)
    assert lines[0] == ["Law", "$C$", r"$\alpha$", r"$\beta$", "$b, H$", "$k$"]
    fitted = [row for row in group.analysis.rows if row.fit.status == OK]
    assert len(lines) == 1 + 2 * len(fitted)

    for k, row in enumerate(fitted):
        values = lines[1 + 2 * k]
        brackets = lines[2 + 2 * k]
        expected = latex.intervals(row, group.analysis)
        # Offset and level share a column.
        fourth = "level" if "level" in row.fit.parameters else "b"
        for column, name in enumerate(("C", "alpha", "beta", fourth, "k"), 1):
            if name not in row.fit.parameters:
                assert values[column] == brackets[column] == ""
                continue
            assert number(values[column]) == pytest.approx(row.fit.parameters[name], rel=5e-3)
            assert ends(brackets[column]) == pytest.approx(expected[name], rel=5e-3)


def test_quality_is_that_of_the_laws(group, tex):
    _, (_, lines) = tabulars(tex)
    fitted = [row for row in group.analysis.rows if row.fit.status == OK]
    assert len(lines) == 1 + len(fitted)

    for cells, row in zip(lines[1:], fitted, strict=True):
        edge = row.checks[EDGE]
        expected = [
            row.fit.n_used,
            row.fit.r2,
            row.fit.mape,
            row.aicc_difference,
            edge.mape,
            edge.mape_all,
            100 * edge.coverage,
        ]
        for cell, value in zip(cells[1:], expected, strict=True):
            if math.isnan(value):
                assert cell.endswith("--")
            else:
                # One decimal, and none of the coverage.
                assert number(cell) == pytest.approx(value, abs=0.51 if value > 20 else 0.051)


def test_the_chosen_law_and_no_other_is_bold(group, tex):
    for _, rows in tabulars(tex):
        (bold,) = [row for row in rows if any("bfseries" in cell for cell in row)]
        assert bold[0].endswith(group.analysis.chosen.name)
        assert all("bfseries" in cell for cell in bold if cell)
    assert tex.count("Bold: chosen") == 1


def test_laws_without_a_fit_are_named_with_the_reason(group, tex):
    failed = [row for row in group.analysis.rows if row.fit.status != OK]
    note = tex[tex.index("Without a fit:") :]
    assert failed
    for row in failed:
        assert row.name in note and sentence(row.fit.finding, RANK) in note


def test_without_any_law_the_tables_say_so(group):
    failed = [
        replace(row, fit=replace(row.fit, status=NOT_IDENTIFIED))
        for row in group.analysis.rows
        if row.fit.uses_saturated
    ]
    analysis = Analysis.without_choice(group.analysis.paper, failed)
    tex = latex.table("x", "", analysis, group.observed)
    assert tex.count("none could be fitted") == 2 and "bfseries" not in tex


def test_the_caption_has_the_links_and_the_symbol_of_the_size(group, tex):
    assert r"by rank $r$" in tex and r"C r^\alpha \ell^{-\beta}" in tex
    assert r"$S(x)$ is $x$ (paper, robust, power), $\min(1, x)$ (hard)" in tex
    by_parameters = latex.table("x", "", group.analysis, group.observed, PARAMETERS)
    assert "by parameters $N$" in by_parameters and r"C N^\alpha" in by_parameters
    by_effective = latex.table("x", "", group.analysis, group.observed, EFFECTIVE)
    assert "by effective parameters $N_e$" in by_effective


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


def test_numbers_large_small_and_infinite(group, monkeypatch):
    chosen = group.analysis.chosen
    planted = {"C": (1e-300, math.inf), "alpha": (-0.5, 123456.0)}
    analysis = replace(group.analysis, bootstrap=None, profiles={})
    assert r"\cdot10" not in latex.table("x", "", analysis, group.observed)

    monkeypatch.setattr(
        latex, "intervals", lambda row, _: planted if row.name == chosen.name else {}
    )
    tex = latex.table("x", "", analysis, group.observed)
    assert r"$[1.00\cdot10^{-300},\,\infty]$" in tex
    assert r"$[-0.500,\,1.23\cdot10^{5}]$" in tex


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
@pytest.mark.parametrize("package", ["", r"\usepackage{booktabs}"])
def test_it_compiles_and_fits_the_text(group, tmp_path, package):
    if package and run("kpsewhich", "booktabs.sty").returncode:
        pytest.skip("no booktabs here")
    empty = Observations.of(*np.empty((4, 0)))
    paper = unidentified("paper", finding("constant_gain"), empty.saturated)
    tables = [
        latex.table(NASTY_NAME, "x_1", group.analysis, group.observed),
        latex.table(NASTY_NAME, "a/b c", Analysis.without_choice(paper, []), empty),
    ]
    (tmp_path / "law.tex").write_text(latex.document(tables), "utf-8")
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{{article}}{package}\begin{{document}}"
        r"\input{law.tex}See \ref{tab:law-x-1}.\end{document}"
    )

    options = ("-interaction=nonstopmode", "-halt-on-error")
    done = run("pdflatex", *options, "paper.tex", cwd=tmp_path)
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log and "Missing character" not in log


def run(*command, cwd=None):
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False)
