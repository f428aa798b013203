"""index.md of a folder: what each figure and table in it shows, a line each.

It lists what is there by name, since several commands write into one folder: `pml memft`, then
`pml lasting` and `pml forgetting`. What a figure shows is said where it is registered
(`figures/registry.py`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from pml_cli.errors import printable
from pml_cli.io import write_text
from pml_cli.report.figures.registry import SUFFIXES, FigureSpec, registered

FILE_NAME = "index.md"

# In its first line, by which it is known: an index.md of somebody else is left alone.
MARK = "<!-- written by pml -->"

# What is no figure.
TABLES = {
    "results.csv": "one row per finished run, with all fields of result.json",
    "law.json": "every number of the laws, at full precision; pml predict reads it",
    "law.tex": "the laws side by side, to be included by LaTeX",
    "cells.csv": "one row per run: predictions of pml fit, or stubborn tokens of pml transition",
    "transition.json": "every number of the phase transition, with intervals",
    "sequences.csv": "one row per sample: stubborn and wrong tokens, first failure",
    "recall.csv": "share of tokens decoded correctly, by their probability",
    "waits.csv": "training step after which tokens stay above p = 0.5, by rank and length",
    "survival.csv": "share of tokens not yet above p = 0.5, by training step",
    "gathering.csv": "the most common first failure of each text",
    "violations.csv": "tokens with p > 0.5 that are not decoded",
    "comparison.csv": "each loss against plain fine-tuning, pair by pair",
    "ranks.csv": "the rank that exact recall needs under each loss",
    "lasting.csv": "one row per run and condition: recall after rounding and merging",
    "lasting.json": "the same, with means, intervals and paired comparisons with plain fine-tuning",
    "forgetting.csv": "one row per run and kind of text: rise of the loss on other text",
    "forgetting.json": "the same, with means over texts and seeds",
    "capacity.csv": "one row per text grown: tokens and bits recalled exactly",
    "capacity.json": "the same, with means by size and fitted lines",
    "memorize.json": "the answer, its proof, and every cell that was tried",
    "facts.csv": "one row per fact: what the adapter writes, its first wrong token",
}


def write(out: Path) -> list[str]:
    """Write index.md for what is in a folder.

    Args:
        out: the folder.

    Returns:
        Its name; nothing where an index.md of somebody else is there.
    """
    path = out / FILE_NAME
    if path.exists() and not is_ours(path):
        return []
    heading = ["# What is in this folder", "", f"Figures are there as {', '.join(SUFFIXES)}.", ""]
    lines = [MARK, *heading, *_figures(out), *_tables(out)]
    write_text(path, "\n".join(lines) + "\n")
    return [FILE_NAME]


def is_ours(path: Path) -> bool:
    """Whether a file is an index that pml has written."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _figures(out: Path) -> Iterator[str]:
    """A line for each figure, with a link to its PNG."""
    specs = registered()
    for folder in (out, *_figure_folders(out)):
        for path in sorted(folder.glob("*.png")):
            spec = _spec(path.stem, specs)
            if spec is not None:
                file = path.relative_to(out)
                name = _plain(str(file.with_suffix("")))
                yield f"- [{name}]({quote(str(file))}): {spec.meaning}"


def _figure_folders(out: Path) -> list[Path]:
    """figures/, and of several groups those in it."""
    inside = out / "figures"
    if not inside.is_dir():
        return []
    return [inside, *sorted(path for path in inside.iterdir() if path.is_dir())]


def _spec(stem: str, specs: Mapping[str, FigureSpec]) -> FigureSpec | None:
    """The figure of a name, which a group or a number may follow: `law-<group>`."""
    names = [name for name in specs if stem == name or stem.startswith(f"{name}-")]
    return specs[max(names, key=len)] if names else None


def _tables(out: Path) -> Iterator[str]:
    for name, meaning in TABLES.items():
        if (out / name).is_file():
            yield f"- [{name}]({name}): {meaning}"


def _plain(name: str) -> str:
    """A name without any meaning for Markdown: it may have come from a file of somebody else."""
    text = html.escape(printable(name))
    return re.sub(r"[\\`*_\[\]|]", lambda sign: f"&#{ord(sign[0])};", text)
