"""The runs that `pml lasting` measures, each with a text and random tokens it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.reports import Lasting
from pml_cli.config.schema import Run
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.source import Sample
from pml_cli.data.windows import Pool, random_pool, text_pool, trained_targets
from pml_cli.evaluation.conditions import CONDITIONS
from pml_cli.evaluation.finished_runs import FinishedRun, Texts, finished_run_list

# Of lasting.json.
FORMAT = 1


def measurable_runs(
    runs: pd.DataFrame,
    settings: Lasting,
) -> tuple[list[FinishedRun], list[str]]:
    """The runs that can be measured, and one line for each distinct fault of the others.

    Args:
        runs: rows of result.json, with `folder`.
    """
    pools: dict[CacheKey, dict[str, Pool]] = {}

    def texts_of(run: Run, samples: list[Sample]) -> tuple[Texts, Sequence[object]]:
        model = CacheKey(run.model)
        if model not in pools:
            pools[model] = {
                "text": text_pool(run.model, settings.text),
                "random": random_pool(run.model, settings.tokens),
            }
        avoided = trained_targets(run, samples)
        # What the penalty has seen is no test of it.
        avoided += [window.target for window in generic_windows(run)]

        texts = {}
        for name, pool in pools[model].items():
            texts[name] = pool.windows_without(avoided, settings.tokens)
        depends_on = [
            FORMAT,
            [condition.name for condition in CONDITIONS],
            settings.tokens,
            settings.decode,
            [pool.hash for pool in pools[model].values()],
        ]
        return texts, depends_on

    return finished_run_list(runs, settings, texts_of)
