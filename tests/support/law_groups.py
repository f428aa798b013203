"""Fitted groups of planted cells."""

import pandas as pd

from pml_cli.law.fit_groups import audit, fit_group, with_columns
from pml_cli.runs.groups import split_groups


def groups_of(*results):
    runs = pd.DataFrame(
        [{"id": f"{k}", "folder": f"{k}"} | content for k, content in enumerate(results)]
    )
    cells = audit(with_columns(runs))
    return [fit_group(key, group, draws=0) for key, group in split_groups(cells)]
