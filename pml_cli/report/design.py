"""The line of `pml sweep --dry-run` that says how sharp the law of the planned cells will be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pml_cli.config.schema import Run
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError
from pml_cli.results.run_id import loss_label

# The statistics are imported where cells are simulated: a dry run is quick without them.
if TYPE_CHECKING:
    from pml_cli.law.design import Sharpness
    from pml_cli.law.fitted_law import FittedLaw

NEEDS_PILOT = "law: not simulated; --design PATH takes the report of a pilot (pml fit)"
TOO_FEW = "law: not simulated; it takes three ranks and three lengths of one kind of cell"

# Ranks, and lengths, that a law takes.
MIN_DISTINCT = 3

# More cells are not simulated in seconds.
MOST_CELLS = 5000


def pilot_at(path: Path) -> FittedLaw:
    """The law of a report that cells are simulated from.

    Raises:
        UserError: no report, or none of its laws is of the gain by rank.
    """
    from pml_cli.law.law_json import load

    laws = [law for law in load(path) if law.form is not None and law.axis.name == "rank"]
    if not laws:
        raise UserError(f"--design {path}: this report has no law of the gain by rank")
    return laws[0]


def design_line(cells: Sequence[CellPlan], pilot: FittedLaw | None) -> str:
    """How sharp alpha, beta and the rank of exact recall will be.

    Args:
        cells: all that are planned; of several kinds the most common one counts.
        pilot: None: that of the embedded model, for its random tokens alone.
    """
    counts = Counter(_kind(cell.run) for cell in cells)
    kind, _ = counts.most_common(1)[0]
    planned = [cell for cell in cells if _kind(cell.run) == kind][:MOST_CELLS]
    run = planned[0].run
    is_embedded = run.model.name == "tiny" and run.data.source == "random"
    if pilot is None and not is_embedded:
        return NEEDS_PILOT

    ranks = [cell.run.rank for cell in planned]
    lengths = [sum(len(sample.target) for sample in cell.samples) for cell in planned]
    if min(len(set(ranks)), len(set(lengths))) < MIN_DISTINCT:
        return TOO_FEW

    from pml_cli.law.design import embedded_pilot, sharpness

    if pilot is None:
        pilot = embedded_pilot()
    found = sharpness(pilot, ranks, lengths, [cell.run.data.seed for cell in planned])
    several = f", {len(planned)} of the cells" if len(counts) > 1 else ""
    return f"law ({pilot.name}{several}): {_widths(found)}"


def _kind(run: Run) -> tuple[str, ...]:
    """What cells of one law share, as far as a plan shows it."""
    return (run.model.name, run.data.label, run.adapter.kind, loss_label(run.loss))


def _widths(found: Sharpness) -> str:
    """The expected intervals in words."""
    exponents = (("alpha", found.alpha, found.alpha_half), ("beta", found.beta, found.beta_half))
    parts = []
    for name, value, half in exponents:
        known = f"{value:.2f} +- {half:.2f}" if math.isfinite(half) else "not identified"
        parts.append(f"{name} {known}")
    if math.isfinite(found.recall_factor):
        parts.append(
            f"rank of exact recall within a factor {found.recall_factor:.2f} "
            f"at {found.recall_length:g} tokens"
        )
    else:
        parts.append("rank of exact recall not identified")
    return f"expect {', '.join(parts)} (95 %, simulated)"
