r"""law.tex: every law of every group as a LaTeX table, to be \input into a paper.

It needs no package. Where booktabs is loaded its rules are used, else plain ones. Each group is one
float with two tabulars, narrow enough for the text of the article class: the parameters with their
95 % intervals, and how well each law fits and predicts. The chosen law is bold. Laws without a fit
are named in the caption, with the reason.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence

from pml_cli.format import three_digits
from pml_cli.law.analysis import Analysis, LawRow
from pml_cli.law.findings import OK
from pml_cli.law.forms import LINKS
from pml_cli.law.model_selection import AICC_TOLERANCE, EDGE
from pml_cli.law.observations import RANK, Observations, SizeAxis
from pml_cli.report.law_text import held_out_name, sentence

HEAD = (
    r"% \input this file; the chosen law is bold. "
    "booktabs is used where it is loaded, and not needed."
)
# Plain rules where booktabs is not loaded
RULES = "".join(
    rf"\providecommand{{\{rule}}}{{\hline}}" for rule in ("toprule", "midrule", "bottomrule")
)

# Headings of the columns of parameters
PARAMETERS = {
    "C": "$C$",
    "alpha": r"$\alpha$",
    "beta": r"$\beta$",
    "b": "$b$",
    "k": "$k$",
    "floor": "floor",
}

# Heading of the column of b and of the level, of which a law has one.
OFFSET_OR_LEVEL = "$b, H$"
QUALITY_HEADINGS = (
    "Law",
    "$n$",
    "$R^2$",
    r"fit \%",
    r"$\Delta$AICc",
    r"unseen \%",
    r"all unseen \%",
    r"band \%",
)
# Stands in the first column of an empty table
NO_LAW = "none could be fitted"

ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": "'",
}


def document(tables: Sequence[str]) -> str:
    """The content of law.tex."""
    return "\n\n".join([f"{HEAD}\n{RULES}", *tables]) + "\n"


def table(
    name: str, slug: str, analysis: Analysis, cells: Observations, axis: SizeAxis = RANK
) -> str:
    """One group as a float.

    Args:
        name: of the group, for the caption.
        slug: of the group, for the label; empty where there is one group.
        analysis: all laws on the group.
        cells: those the laws saw.
        axis: the size that the laws are about.
    """
    fitted = [row for row in analysis.rows if row.fit.status == OK]
    parameters = _parameter_lines(fitted, analysis)
    quality = [list(QUALITY_HEADINGS)]
    for row in fitted:
        emphasis = _emphasis(row, analysis)
        quality.append([emphasis(cell) for cell in _quality_cells(row)])
    if not fitted:
        parameters.append([NO_LAW])
        quality.append([NO_LAW])

    # Signs that LaTeX allows in a label
    label = re.sub(r"[^A-Za-z0-9-]+", "-", slug).strip("-")
    label = f"tab:law-{label}" if label else "tab:law"
    lines = [
        r"\begin{table}[tbp]",
        # Narrow enough for the text of the article class
        r"\centering\scriptsize\setlength{\tabcolsep}{4pt}",
        # The short one in braces: a list in the name has a bracket, too.
        rf"\caption[{{Laws of the gain, {escape(name)}}}]",
        rf"{{{_caption(name, analysis, cells, axis)}}}",
        rf"\label{{{label}}}",
        r"\par\medskip",
        *_tabular(parameters),
        r"\par\medskip",
        *_tabular(quality),
        r"\end{table}",
    ]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Any text as LaTeX prints it.

    Special signs are escaped, accents dropped, and what is not ASCII becomes a question mark.
    """
    # NFKD makes a letter and a combining accent of an accented letter.
    decomposed = unicodedata.normalize("NFKD", " ".join(text.split()))
    characters = []
    for character in decomposed:
        if unicodedata.combining(character):
            continue
        if not character.isascii():
            characters.append("?")
        elif character.isprintable():
            characters.append(ESCAPES.get(character, character))
    return "".join(characters)


def intervals(row: LawRow, analysis: Analysis) -> dict[str, tuple[float, float]]:
    """95 % intervals by parameter.

    Those of the chosen law are as in the report: of the exponents over all forms that fit nearly as
    well, of the others from its bootstrap or profile likelihood. Those of every other law are from
    its covariance.
    """
    return analysis.intervals if row is analysis.chosen else row.fit.intervals


def _parameter_lines(fitted: Sequence[LawRow], analysis: Analysis) -> list[list[str]]:
    """Headings, and two lines a law: its parameters, and their intervals."""
    # A column that is empty for every law is left out.
    columns = [
        column
        for column in PARAMETERS
        if any(_parameter(column, row) in row.fit.parameters for row in fitted)
    ]
    headings = dict(PARAMETERS)
    if any("level" in row.fit.parameters for row in fitted):
        headings["b"] = OFFSET_OR_LEVEL

    # Two lines a law: intervals beside the values would be too wide for the page.
    lines = [["Law", *[headings[column] for column in columns]]]
    for row in fitted:
        emphasis = _emphasis(row, analysis)
        spans = intervals(row, analysis)
        names = [_parameter(column, row) for column in columns]
        values = [escape(row.name)]
        brackets = [""]
        for name in names:
            values.append(_value(row.fit.parameters.get(name)))
            brackets.append(_span(spans.get(name)))
        lines.append([emphasis(cell) for cell in values])
        lines.append(brackets)
    return lines


def _parameter(column: str, row: LawRow) -> str:
    """The parameter of a law that stands in a column.

    A level stands where other laws have b: no law has both, and the page is narrow.
    """
    return "level" if column == "b" and "level" in row.fit.parameters else column


def _quality_cells(row: LawRow) -> list[str]:
    """How well a law fits and predicts, in the order of QUALITY_HEADINGS."""
    check = row.checks[EDGE]
    return [
        escape(row.name),
        f"${row.fit.n_used}$",
        _fixed(row.fit.r2, 4),
        _fixed(row.fit.mape, 2),
        _fixed(row.aicc_difference, 1),
        _fixed(check.mape, 2),
        _fixed(check.mape_all, 2),
        _fixed(100 * check.coverage, 0),
    ]


def _tabular(lines: Sequence[Sequence[str]]) -> list[str]:
    """A tabular whose first line is the headings; shorter lines are filled up."""
    width = len(lines[0])
    printed = []
    for cells in lines:
        filled = [*cells, *[""] * (width - len(cells))]
        printed.append(" & ".join(filled).rstrip() + r" \\")
    return [
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        printed[0],
        r"\midrule",
        *printed[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _emphasis(row: LawRow, analysis: Analysis) -> Callable[[str], str]:
    """Bold for the chosen law."""
    return _bold if row is analysis.chosen else str


def _bold(cell: str) -> str:
    # bfseries does not reach into math mode.
    return rf"\bfseries\boldmath {cell}" if cell else ""


def _value(value: float | None) -> str:
    return "" if value is None else f"${_number(value)}$"


def _span(interval: tuple[float, float] | None) -> str:
    """An interval in brackets; empty where there is none."""
    if interval is None or math.isnan(sum(interval)):
        return ""
    low, high = interval
    return rf"$[{_number(low)},\,{_number(high)}]$"


def _number(value: float) -> str:
    """Three digits, in math mode."""
    if math.isinf(value):
        return r"\infty" if value > 0 else r"-\infty"
    mantissa, _, exponent = three_digits(value).partition("e")
    return rf"{mantissa}\cdot10^{{{int(exponent)}}}" if exponent else mantissa


def _fixed(value: float, decimals: int) -> str:
    return f"${value:.{decimals}f}$" if math.isfinite(value) else "--"


def _caption(name: str, analysis: Analysis, cells: Observations, axis: SizeAxis) -> str:
    """What was fitted to what, what each column is, and which laws are missing."""
    power = rf"C {axis.symbol}^\alpha \ell^{{-\beta}}"
    saturated = int(cells.saturated.sum())
    sentences = [
        rf"Laws of the gain $\Delta L$ (nats per token) by {axis.label} ${axis.symbol}$",
        rf"and length $\ell$ (tokens), {escape(name)}:",
        f"{len(cells)} cells, {saturated} of them saturated "
        f"(final loss at or below {cells.saturated_below:.4g}).",
        rf"$\Delta L = L_0 S(x)$ with $x = ({power} + b) / L_0$",
        "and $L_0$ the base loss (less the floor, where there is one);",
        rf"with a level $H$, $\Delta L = L_0 - H + H S(x)$ with $x = {power} / H$;",
        f"{_links()}.",
        r"In brackets 95\,\% intervals, from the covariance,",
        f"which takes the cells as independent{_chosen_intervals(analysis)}",
        "$n$: cells used in full (paper, robust) or at all.",
        "Fit: MAPE over the unsaturated cells.",
        f"Unseen: MAPE of a fit without the {held_out_name(EDGE, axis)},",
        "over the unsaturated ones among them, and over all; the form was chosen with them.",
        r"Band: share of the unseen inside its 95\,\% band.",
        r"$\Delta$AICc compares fits to the same cells only.",
    ]
    if analysis.chosen:
        sentences.append(f"Bold: chosen, the simplest within {AICC_TOLERANCE:g} AICc of the best.")

    # Laws that failed for the same reason share a sentence.
    names_by_reason: dict[str, list[str]] = {}
    for row in analysis.rows:
        if row.fit.status != OK:
            reason = sentence(row.fit.finding, axis)
            names_by_reason.setdefault(reason, []).append(row.name)
    for reason, names in names_by_reason.items():
        sentences.append(f"Without a fit: {escape(', '.join(names))} ({escape(reason)}).")
    return "\n".join(sentences)


def _links() -> str:
    """S(x) of every link, with the names of its laws."""
    links = []
    for link in LINKS.values():
        # The other two estimators fit the law without a ceiling, too.
        names = link.label if link.has_ceiling else f"paper, robust, {link.label}"
        links.append(f"${link.latex}$ ({names})")
    return f"$S(x)$ is {', '.join(links[:-1])} or {links[-1]}"


def _chosen_intervals(analysis: Analysis) -> str:
    """Where the intervals of the chosen law are from; ends the sentence about the others'."""
    bootstrap = analysis.bootstrap
    if analysis.chosen is None:
        return "."
    if bootstrap is not None and bootstrap.status == OK:
        return (
            "; of the chosen law over the forms that fit nearly as well (exponents), and from "
            f"{len(bootstrap.draws)} bootstrap draws of {bootstrap.clusters} clusters (the others)."
        )
    return (
        "; of the chosen law over the forms that fit nearly as well (exponents), and from its "
        "profile likelihood where that closes (the others)."
    )
