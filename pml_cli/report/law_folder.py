"""The files of a fit: law.json, cells.csv, law.tex and the figures, each as PNG and SVG.

Figures: those of the report `law` in `figures.registry`, which says where each is written. A figure that the cells do not
carry is left out, and one of that name from an earlier fit removed.

law.tex has a table a group, to be \\input (`law_tex`).

law.json, format 3 (numbers at full precision; what is not finite is null; covariances are row by row):

- `format`, `versions` {pml, numpy, scipy}, `inputs` {cells, sha256 of what the fit saw}, `saturated_below`
- `groups`: for each group of comparable cells `name`, `slug` (in cells.csv and `draws`), `key` (the settings they share),
  `cells`, `warnings`, `conclusions`, and
  - `fit`, `held_out`: the paper's estimator (`law.LawFit`, `law.HeldOut`)
  - `laws`: every law (`analysis.Entry`): `name`, `law` (formula), `estimator`, `status`, `reason`, `parameters`, `n`,
    `n_saturated`, `r2`, `mape`, `aicc_difference` (null where other cells were seen), `checks` by what was left out
    (`choice.Check`: `mape`, `mape_all`, `coverage`, `n_fit`, `n_test`, `n_all`, `reason`); those on all cells also `theta`
    and its `covariance` (cells independent) and `covariance_clustered` in the order of saturation.PARAMETERS, `centre`,
    `clusters`, `intervals_95_naive`, `nll`, `aicc`, `cells_sha256`
  - `chosen`: the name of one of them, or null
  - `bootstrap` of the chosen law: `status`, `reason`, `clusters`, `draws`, `failed`, `intervals_95`
  - `profiles` by parameter: `values`, `deviance`, `interval_95`
  - `constant_capacity`: likelihood-ratio test of beta = 1 in the chosen law: `statistic`, `freedom`, `p`
  - `alike_within_clusters`: `correlation` of residuals that share text and length, `p`
  - `recall`: the law of exact recall (`recall_law.RecallFit`): `status`, `reason`, `parameters` {a, g, h}, `n`, `exact`,
    `clusters`, `gaps` {rank, length} (median step between the values tried, on logs), `draws`
  - `capacity`: for each rank and count (`capacity.Held`): `kind`, `rank`, `parameters`, `length`, `bits` a parameter, `low`,
    `high`, `runs`, `last`
  - `control`: gain on unseen sequences of the source, nats per token (`capacity.Unseen`): `gain`, `low`, `high`, `least`,
    `most`, `cells`; or null
  - `range` {rank, length}: least and largest; `base_loss` {length, nats}: mean loss of the base model at each length, and
    `texts`, the same of each text
- `x`: what the ranks of the laws are: rank or parameters (trainable ones)
- `comparisons` (with --by): `by`, `common`, `form`, `reason`, `groups` {name, parameters, intervals_95, n,
  aicc_cost}, `ties` {what, shared, statistic, freedom, p, p_clustered}
- `draws`: slug to parameter (and recall_a, recall_g, recall_h) to the bootstrap's values, draw by draw
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy

from pml_cli import __version__
from pml_cli import io as io_
from pml_cli.config.reports import Fit
from pml_cli.errors import UserError
from pml_cli.law.observations import SIZES, Observations
from pml_cli.law.recall_law import NAMES
from pml_cli.law.report_format import FORMAT
from pml_cli.report import latex
from pml_cli.report.figures.law_view import View

if TYPE_CHECKING:
    from pml_cli.law.group_comparison import Comparison
    from pml_cli.law.group_fit import GroupFit

SEEN = ("rank", "target_tokens", "base_loss", "final_loss", "delta_loss")


def write(
    out: Path, groups: list[GroupFit], settings: Fit, comparisons: Sequence[Comparison] = ()
) -> list[str]:
    """Every file of the report folder, each complete or absent; returns their names.

    Raises:
        UserError: the folder cannot be written.
    """
    cells = pd.concat([group.cells.assign(group=group.slug) for group in groups])
    first = [
        "group",
        "id",
        "rank",
        "target_tokens",
        "data_seed",
        "seed",
        "base_loss",
        "final_loss",
        "delta_loss",
    ]
    after = ["predicted", "residual", "kept", "reason", "token_accuracy", "exact_match", "folder"]
    laws = [name for name in cells if str(name).startswith(("predicted_", "residual_"))]
    table = cells[[*first, *after, *laws]]
    content = {
        "format": FORMAT,
        "versions": {"pml": __version__, "numpy": np.__version__, "scipy": scipy.__version__},
        "inputs": {"cells": len(cells), "sha256": _hash(table)},
        "saturated_below": settings.saturated_below,
        "x": settings.x,
        "comparisons": [one.to_dict() for one in comparisons],
        "groups": [_group_dict(group) for group in groups],
    }
    draws = json.dumps(
        {group.slug: group.analysis.draws | _recall_draws(group) for group in groups},
        allow_nan=False,
    )
    text = f'{json.dumps(content, indent=1, allow_nan=False)[:-2]},\n "draws": {draws}\n}}\n'  # a number a line is too long
    try:
        io_.atomic_write(out / "cells.csv", lambda aside: table.to_csv(aside, index=False))
        io_.atomic_write(out / "law.json", lambda aside: aside.write_text(text, "utf-8"))
        io_.atomic_write(out / "law.tex", lambda aside: aside.write_text(_tex(groups), "utf-8"))
        drawn = _draw(out, groups, settings, comparisons) if settings.figures else []
    except OSError as error:
        raise UserError(f"out={out}: cannot write the report ({error.strerror})") from error
    return ["law.json", "cells.csv", "law.tex", *drawn]


def _tex(groups: list[GroupFit]) -> str:
    tables = [
        latex.table(
            group.name,
            group.slug if len(groups) > 1 else "",
            group.analysis,
            group.observed,
            SIZES[group.x],
        )
        for group in groups
    ]
    return latex.document(tables)


def _draw(
    out: Path, groups: list[GroupFit], settings: Fit, comparisons: Sequence[Comparison]
) -> list[str]:
    """Draw every figure of the report; returns the names of its files (`write_group_figures`)."""
    from pml_cli.report.figures.registry import of_report, write_figure, write_group_figures

    views = {
        group.slug: View(
            name=group.name,
            cells=group.cells,
            observed=group.observed,
            analysis=group.analysis,
            paper=group.fit,
            saturated_below=settings.saturated_below,
            x=SIZES[group.x],
        )
        for group in groups
    }
    names = write_group_figures(out, "law", views)

    forest = of_report("comparison")["comparison"]
    identified = [comparison for comparison in comparisons if comparison.groups]
    for number, comparison in enumerate(identified, 1):
        names += write_figure(out / f"comparison-{number}", forest.draw(comparison))
    return names


def _group_dict(group: GroupFit) -> dict[str, Any]:
    """One group for law.json. The mask of kept cells is in cells.csv, beside their ids."""
    fitted = {
        name: value
        for name, value in group.fit.to_dict().items()
        if name not in ("kept", "warnings")
    }
    return {
        "name": group.name,
        "slug": group.slug,
        "key": {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in group.key.items()
        },
        "cells": len(group.cells),
        "fit": fitted,
        "held_out": group.held.to_dict(),
        **group.analysis.to_dict(),
        "recall": group.recall.to_dict(),
        "capacity": [one.to_dict() for one in group.held_bits],
        "control": group.control.to_dict() if group.control else None,
        "range": _range(group.observed),
        "base_loss": _base_loss(group.observed),
        "warnings": group.warnings,
        "conclusions": group.conclusions,
    }


def _recall_draws(group: GroupFit) -> dict[str, list[float]]:
    return {
        f"recall_{name}": column.tolist()
        for name, column in zip(NAMES, group.recall.draws.T, strict=True)
        if len(column)
    }


def _range(cells: Observations) -> dict[str, list[float]]:
    """Least and largest size and length among the cells a law may use."""
    columns = {"rank": cells.rank, "length": cells.length}
    return {name: [float(v.min()), float(v.max())] if len(v) else [] for name, v in columns.items()}


def _base_loss(cells: Observations) -> dict[str, Any]:
    """Mean loss of the base model at each length, nats per token, and that of each text."""
    return _by_length(cells) | {
        "texts": [_by_length(cells.take(cells.text == text)) for text in np.unique(cells.text)]
    }


def _by_length(cells: Observations) -> dict[str, list[float]]:
    lengths = np.unique(cells.length)
    return {
        "length": lengths.tolist(),
        "nats": [float(cells.base[cells.length == v].mean()) for v in lengths],
    }


def _hash(table: pd.DataFrame) -> str:
    """Of what the fit saw, whatever the order and place of the folders."""
    seen = table[["group", "id", *SEEN, "kept", "reason"]].sort_values(["group", "id", *SEEN])
    return hashlib.sha256(seen.to_csv(index=False).encode()).hexdigest()
