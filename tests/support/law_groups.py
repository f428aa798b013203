"""Fitted groups of planted cells, and reports of them."""

import io

import pandas as pd
import pytest
from rich.console import Console

from support.planted_laws import exact_recall, exponential_cells, runs_of, write


def groups_of(*results):
    """Fitted groups, without bootstrap."""
    from pml_cli.law.fit_groups import audit, fit_group, with_columns
    from pml_cli.results.groups import split_groups

    rows = [{"id": f"{k}", "folder": f"{k}"} | content for k, content in enumerate(results)]
    cells = audit(with_columns(pd.DataFrame(rows)))
    return [fit_group(key, group, draws=0) for key, group in split_groups(cells)]


def fit_quietly(*paths, by=(), width=80, show_all=True, **settings):
    """Run `pml fit --all`, without figures unless asked for; returns what it printed."""
    from pml_cli.commands import fit
    from pml_cli.config.reports import Fit

    printed = io.StringIO()
    console = Console(file=printed, width=width)
    settings = {"figures": False} | settings
    code = fit.run(list(paths), Fit(**settings), console, by, show_all=show_all)
    assert code == 0
    return printed.getvalue()


@pytest.fixture(scope="session")
def law_report(tmp_path_factory):
    """Runs of a planted law with exact recall, and their report in fit/."""
    root = tmp_path_factory.mktemp("planted") / "runs"
    cells = exponential_cells(texts=3)
    write(root, *runs_of(cells, exact_match=exact_recall(cells)))
    fit_quietly(root, draws=300)
    return root
