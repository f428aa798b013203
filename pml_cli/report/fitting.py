"""Fitting every group of runs, as the terminal sees it; shared by `pml fit` and `pml report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import pandas as pd
from rich.console import Console

from pml_cli.config.reports import LawSettings
from pml_cli.law.fit_groups import GroupFit, audit, fit_group, with_columns
from pml_cli.law.observations import SIZE_AXES
from pml_cli.report.progress import CountDisplay
from pml_cli.results.groups import group_slugs, split_groups

Group: TypeAlias = tuple[dict[str, Any], pd.DataFrame]
"""The settings that cells share, and the cells."""


def audited_groups(runs: pd.DataFrame, settings: LawSettings) -> list[Group]:
    """The runs in groups of comparable cells, each with whether a law may use it, and why not.

    Args:
        runs: one row a run, with columns of result.json.
        settings: what counts as saturated, and the size that the law is about.
    """
    cells = audit(
        with_columns(runs),
        settings.saturated_below,
        SIZE_AXES[settings.x],
        unconverged=settings.unconverged,
    )
    return list(split_groups(cells))


def fit_with_progress(
    groups: Sequence[Group],
    settings: LawSettings,
    progress: Console,
) -> list[GroupFit]:
    """Fit each group, with a display of the bootstrap's progress.

    Args:
        groups: of `audited_groups` with the same settings, in any order.
        settings: how they are fitted.
        progress: where the display is.

    Returns:
        The groups in the same order, no two with the same slug.
    """
    fits = []
    for key, cells in groups:
        with CountDisplay(progress, "fitting", "bootstrap draws") as display:
            group = fit_group(
                key,
                cells,
                settings.saturated_below,
                settings.draws,
                display.show,
                axis=SIZE_AXES[settings.x],
                unconverged=settings.unconverged,
            )
        fits.append(group)

    # Slugs name the files of a group, so two groups must not share one.
    slugs = group_slugs([group.key for group in fits])
    return [dataclasses.replace(group, slug=slug) for group, slug in zip(fits, slugs, strict=True)]
