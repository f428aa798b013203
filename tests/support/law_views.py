"""What the figures of a law draw, from planted cells."""

import math
from dataclasses import replace

import pandas as pd

from pml_cli.law.analysis import Analysis, LawRow
from pml_cli.law.bootstrap import bootstrap, profiles
from pml_cli.law.fit_groups import audit, with_columns
from pml_cli.law.model_selection import checks, edge_check, saturating
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import fit_paper
from pml_cli.report.figures.law_view import View


def view_of(results, form=None, draws=0):
    """A view of one group; no other laws are fitted than the paper's and the chosen one.

    Args:
        results: contents of result.json.
        form: of the chosen law; None for no chosen law.
        draws: of its bootstrap.
    """
    runs = pd.DataFrame([content | {"id": f"{k}"} for k, content in enumerate(results)])
    cells = audit(with_columns(runs))
    usable = cells[cells["kept"] | (cells["reason"] == "saturated")]
    observed = Observations.of(
        usable["rank"].to_numpy(float),
        usable["target_tokens"].to_numpy(float),
        usable["delta_loss"].to_numpy(float),
        usable["base_loss"].to_numpy(float),
        text=usable["data_seed"],
    )
    paper = _row(observed, fit_paper)
    analysis = Analysis.without_choice(paper.fit, [paper])
    if form is not None:
        chosen = _row(observed, saturating(form), aicc_difference=0.0)
        analysis = replace(
            analysis,
            rows=[paper, chosen],
            chosen=chosen,
            law=chosen.fit,
            unseen=edge_check(observed, saturating(form)),
            bootstrap=bootstrap(observed, chosen.fit, draws) if draws else None,
            profiles=profiles(observed, chosen.fit),
        )
    return View(name="a sweep", cells=cells, observed=observed, analysis=analysis)


def labelled(axes, label):
    """The artists with this label."""
    return [artist for artist in axes.get_children() if artist.get_label() == label]


def _row(observed, estimator, aicc_difference=math.nan):
    """A law with its held-out checks."""
    return LawRow(
        fit=estimator(observed),
        aicc_difference=aicc_difference,
        checks=checks(observed, estimator),
    )
