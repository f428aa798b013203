r"""law.tex: every law of every group as a LaTeX table, to be \input into a paper.

It needs no package. Where booktabs is loaded its rules are used, else plain ones. Each group is one float with two tabulars,
narrow enough for the text of the article class: the parameters with their 95 % intervals, and how well each law fits and
predicts. The chosen law is bold. Laws without a fit are named in the caption, with the reason.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from pml_cli.law.analysis import Analysis, LawRow
from pml_cli.law.findings import OK
from pml_cli.law.model_selection import EDGE
from pml_cli.law.observations import RANK, Observations, SizeAxis
from pml_cli.report.figures.style import three_digits
from pml_cli.report.law_text import held_out_name, sentence

RULES = r"\providecommand{\toprule}{\hline}\providecommand{\midrule}{\hline}\providecommand{\bottomrule}{\hline}"
SIGNS = {"C": "C", "alpha": r"\alpha", "beta": r"\beta", "b": "b", "k": "k"}
FLOOR, LEVEL = "floor", "level"
ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': "''", "`": "'",
}  # fmt: skip


def document(tables: Sequence[str]) -> str:
    """The content of law.tex."""
    head = r"% \input this file; the chosen law is bold. booktabs is used where it is loaded, and not needed."
    return "\n\n".join([f"{head}\n{RULES}", *tables]) + "\n"


def table(
    name: str, slug: str, analysis: Analysis, cells: Observations, axis: SizeAxis = RANK
) -> str:
    """One group as a float.

    Args:
        name, slug: of the group; the slug becomes part of the label.
        cells: those the laws saw.
        axis: the size that the laws are about.
    """
    entries = [entry for entry in analysis.rows if entry.fit.status == OK]
    shown = [
        n
        for n in (*SIGNS, FLOOR)
        if any(_in_column(n, entry) in entry.fit.parameters for entry in entries)
    ]
    leveled = any(LEVEL in entry.fit.parameters for entry in entries)
    signs = SIGNS | ({"b": "b, H"} if leveled else {})
    parameters = [["Law", *(f"${signs[n]}$" if n in signs else n for n in shown)]]
    quality = [
        [
            "Law",
            "$n$",
            "$R^2$",
            r"fit \%",
            r"$\Delta$AICc",
            r"unseen \%",
            r"all unseen \%",
            r"band \%",
        ]
    ]
    for entry in entries:
        bold = _bold if entry is analysis.chosen else str
        spans = intervals(entry, analysis)
        own = [_in_column(n, entry) for n in shown]
        parameters.append(
            [bold(escape(entry.name)), *(bold(_value(entry.fit.parameters.get(n))) for n in own)]
        )
        parameters.append(["", *(_span(*spans[n]) if n in spans else "" for n in own)])
        quality.append([bold(cell) for cell in _quality(entry)])
    if not entries:
        parameters.append(["none could be fitted"])
        quality.append(["none could be fitted"])
    label = re.sub(r"[^A-Za-z0-9-]+", "-", slug).strip("-")
    lines = [
        r"\begin{table}[tbp]",
        r"\centering\scriptsize\setlength{\tabcolsep}{4pt}",
        rf"\caption[Laws of the gain, {escape(name)}]{{{_note(name, analysis, cells, axis)}}}",
        rf"\label{{tab:law{'-' + label if label else ''}}}",
        r"\par\medskip",
        *_tabular(parameters),
        r"\par\medskip",
        *_tabular(quality),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _in_column(name: str, entry: LawRow) -> str:
    """A level stands where other laws have b: no law has both, and the page is narrow."""
    return LEVEL if name == "b" and LEVEL in entry.fit.parameters else name


def escape(text: str) -> str:
    """Any name as LaTeX prints it: special signs escaped, accents dropped, what is not ASCII as a question mark."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    ascii_only = "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c))
    return "".join(ESCAPES.get(c, c) for c in ascii_only if c.isprintable())


def intervals(entry: LawRow, analysis: Analysis) -> dict[str, tuple[float, float]]:
    """95 %: those of the report for the chosen law, those from its own covariance for every other."""
    if entry is analysis.chosen:
        return analysis.intervals
    return entry.fit.intervals


def _tabular(rows: list[list[str]]) -> list[str]:
    width = len(rows[0])
    body = [" & ".join(row + [""] * (width - len(row))).rstrip() + r" \\" for row in rows]
    return [
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        body[0],
        r"\midrule",
        *body[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _quality(entry: LawRow) -> list[str]:
    check, fit = entry.checks[EDGE], entry.fit
    numbers = [
        _fixed(fit.r2, 4), _fixed(fit.mape, 2), _fixed(entry.aicc_difference, 1), _fixed(check.mape, 2), _fixed(check.mape_all, 2),
        _fixed(100 * check.coverage, 0),
    ]  # fmt: skip
    return [escape(entry.name), f"${entry.fit.n_used}$", *numbers]


def _value(value: float | None) -> str:
    return "" if value is None else f"${_number(value)}$"


def _span(low: float, high: float) -> str:
    return "" if math.isnan(low + high) else f"$[{_number(low)},\\,{_number(high)}]$"


def _number(value: float) -> str:
    """Three digits, in math mode."""
    if math.isinf(value):
        return r"\infty" if value > 0 else r"-\infty"
    mantissa, _, power = three_digits(value).partition("e")
    return rf"{mantissa}\cdot10^{{{int(power)}}}" if power else mantissa


def _fixed(value: float, places: int) -> str:
    return f"${value:.{places}f}$" if math.isfinite(value) else "--"


def _bold(cell: str) -> str:
    return rf"\bfseries\boldmath {cell}" if cell else ""


def _note(name: str, analysis: Analysis, cells: Observations, axis: SizeAxis) -> str:
    """The caption: what was fitted to what, what each column is, and which laws are missing."""
    size = r"rank $r$" if axis is RANK else r"trainable parameters $r$"
    words = [
        rf"Laws of the gain $\Delta L$ (nats per token) by {size} and length $\ell$ (tokens), {escape(name)}:",
        rf"{len(cells)} cells, {int(cells.saturated.sum())} of them saturated (final loss at or below {cells.saturated_below:.4g}).",
        r"$\Delta L = L_0 S(x)$ with $x = (C r^\alpha \ell^{-\beta} + b) / L_0$ and $L_0$ the base loss (less the floor,",
        r"where there is one); with a level $H$, $\Delta L = L_0 - H + H S(x)$ with $x = C r^\alpha \ell^{-\beta} / H$;",
        r"$S(x)$ is $x$ (paper, robust, power), $\min(1, x)$ (hard), $1 - e^{-x}$ (exp)",
        r"or $x / (1 + x^k)^{1/k}$ (hill).",
        r"In brackets 95\,\% intervals, from the covariance, which takes the cells as independent"
        + _of_the_chosen(analysis),
        r"$n$: cells used in full (paper, robust) or at all. Fit: MAPE over the unsaturated cells.",
        f"Unseen: MAPE of a fit without the {held_out_name(EDGE, axis)}, over the unsaturated ones among them, and",
        r"over all. Band: share of the unseen inside its 95\,\% band. $\Delta$AICc compares fits to the same cells only.",
    ]
    if analysis.chosen:
        words.append("Bold: chosen, the simplest within 4 AICc of the best.")
    missing: dict[str, list[str]] = {}
    for entry in analysis.rows:
        if entry.fit.status != OK:
            missing.setdefault(sentence(entry.fit.finding, axis), []).append(entry.name)
    words += [
        f"Without a fit: {escape(', '.join(names))} ({escape(reason)})."
        for reason, names in missing.items()
    ]
    return "\n".join(words)


def _of_the_chosen(analysis: Analysis) -> str:
    made = analysis.bootstrap
    if analysis.chosen is None:
        return "."
    if made is not None and made.status == OK:
        return f"; of the chosen law from {len(made.draws)} bootstrap draws of {made.clusters} clusters (text and length)."
    return "; of the chosen law from its profile likelihood where that closes."
