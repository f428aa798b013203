"""Names of models, data and losses in tables: one for what is the same, two for what is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pml_cli.results.run_id import option_labels

if TYPE_CHECKING:
    import pandas as pd

# The entry of `setting` that tells the content of a local model or of a data file.
MODEL_CONTENT = re.compile(r"(?:^| )model\.path=(\w+)")
DATA_CONTENT = re.compile(r"(?:^| )data\.path=(\w+)")


def with_settled_labels(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with one `model` for each model, one `data` for each file, one `loss` for each loss.

    A model's folder or a data file that was renamed between two sweeps would otherwise split its
    runs into two groups; two hub models of one name (a/base, b/base) would be mixed into one.
    Runs of earlier versions name a loss by its settings where there is an option:
    memft_margin(switch=1.0).

    Args:
        runs: one row a run, as `read_runs`.
    """
    if not {"model", "data", "setting"} <= set(runs.columns):
        return runs

    settings = runs["setting"].fillna("").astype(str)
    model_content = settings.str.extract(MODEL_CONTENT, expand=False)
    data_content = settings.str.extract(DATA_CONTENT, expand=False)
    # Of jsonl:facts; another source takes other samples from the same file.
    source = runs["data"].str.partition(":")[0]

    model = _first_of_each(runs["model"], [model_content])
    data = _first_of_each(runs["data"], [source, data_content])
    runs = runs.assign(model=_with_distinguishing_suffix(runs, model), data=data)
    return runs.replace({"loss": option_labels()}) if "loss" in runs else runs


def _first_of_each(labels: pd.Series[str], keys: list[pd.Series[str]]) -> pd.Series[str]:
    """Labels of rows with equal keys become the first one; those without a key stay."""
    return labels.groupby(keys).transform("first").fillna(labels)


def _with_distinguishing_suffix(runs: pd.DataFrame, model: pd.Series[str]) -> pd.Series[str]:
    """Hub ids in place of a label that several of them share."""
    if "hub_id" not in runs:
        return model
    is_shared = runs["hub_id"].groupby(model).transform("nunique") > 1
    return model.where(~is_shared | runs["hub_id"].isna(), runs["hub_id"])
