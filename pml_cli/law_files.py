"""The files of a fit: law.json, cells.csv, and a figure a group as PNG and SVG.

law.json, format 2 (numbers at full precision; what is not finite is null; covariances are row by row):

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
- `draws`: slug to parameter to the bootstrap's values, draw by draw
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy

from . import __version__, records
from .config import Fit
from .errors import UserError

if TYPE_CHECKING:
    from .fit import GroupFit

FORMAT = 2  # of law.json
SEEN = ("rank", "target_tokens", "base_loss", "final_loss", "delta_loss")


def write(out: Path, groups: list[GroupFit], settings: Fit) -> list[str]:
    """Every file of the report folder, each complete or absent; returns their names.

    Raises:
        UserError: the folder cannot be written.
    """
    cells = pd.concat([group.cells.assign(group=group.slug) for group in groups])
    first = ["group", "id", "rank", "target_tokens", "data_seed", "seed", "base_loss", "final_loss", "delta_loss"]
    after = ["predicted", "residual", "kept", "reason", "token_accuracy", "exact_match", "folder"]
    laws = [name for name in cells if str(name).startswith(("predicted_", "residual_"))]
    table = cells[[*first, *after, *laws]]
    content = {
        "format": FORMAT,
        "versions": {"pml": __version__, "numpy": np.__version__, "scipy": scipy.__version__},
        "inputs": {"cells": len(cells), "sha256": _hash(table)},
        "saturated_below": settings.saturated_below,
        "groups": [_group_dict(group) for group in groups],
    }
    draws = json.dumps({group.slug: group.analysis.draws for group in groups}, allow_nan=False)
    text = f'{json.dumps(content, indent=1, allow_nan=False)[:-2]},\n "draws": {draws}\n}}\n'  # a number a line is too long
    try:
        records.write_whole(out / "cells.csv", lambda aside: table.to_csv(aside, index=False))
        records.write_whole(out / "law.json", lambda aside: aside.write_text(text, "utf-8"))
        stems = [f"law-{group.slug}" if len(groups) > 1 else "law" for group in groups if settings.figures]
        for stem, group in zip(stems, groups, strict=False):
            _draw(out, group, stem)
    except OSError as error:
        raise UserError(f"out={out}: cannot write the report ({error.strerror})") from error
    return ["law.json", "cells.csv", *(f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg"))]


def _draw(out: Path, group: GroupFit, stem: str) -> None:
    from .plots import law_figure, save

    figure = law_figure(group.cells, group.fit, group.name)
    for suffix in ("png", "svg"):
        paint: Callable[[Path], object] = partial(save, figure, form=suffix)
        records.write_whole(out / f"{stem}.{suffix}", paint)


def _group_dict(group: GroupFit) -> dict[str, Any]:
    """One group for law.json. The mask of kept cells is in cells.csv, beside their ids."""
    fitted = {name: value for name, value in group.fit.to_dict().items() if name not in ("kept", "warnings")}
    return {
        "name": group.name,
        "slug": group.slug,
        "key": {name: value.item() if isinstance(value, np.generic) else value for name, value in group.key.items()},
        "cells": len(group.cells),
        "fit": fitted,
        "held_out": group.held.to_dict(),
        **group.analysis.to_dict(),
        "warnings": group.warnings,
        "conclusions": group.conclusions,
    }


def _hash(table: pd.DataFrame) -> str:
    """Of what the fit saw, whatever the order and place of the folders."""
    seen = table[["group", "id", *SEEN, "kept", "reason"]].sort_values(["group", "id", *SEEN])
    return hashlib.sha256(seen.to_csv(index=False).encode()).hexdigest()
