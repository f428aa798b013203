"""Fitted groups of planted cells."""

import pandas as pd

from pml_cli.commands import fit


def groups_of(*results):
    runs = pd.DataFrame(
        [{"id": f"{k}", "folder": f"{k}"} | content for k, content in enumerate(results)]
    )
    cells = fit.audit(runs, 0.69)
    return [fit.fit_group(key, part, 0.69, 0) for key, part in fit.split(cells)]
