"""result.json of one run among others, as `pml fit` and `pml transition` read it."""

import io
import json

from fuzz.folders import first
from fuzz.mutate import json_tree

MUTATE = json_tree


def seeds(base):
    from support.planted_laws import result

    planted = {"format": 1, "id": "run0", **result(4, 32)}
    return [first(base, "runs/*/result.json"), json.dumps(planted).encode()]


def read(folder, data):
    from rich.console import Console
    from support.planted_laws import grid, write

    from pml_cli.analysis.run_selection import transition_runs
    from pml_cli.commands import fit
    from pml_cli.config.reports import Fit, Transition
    from pml_cli.results.folder import RunFolder

    runs = folder / "runs"
    write(runs, *grid(ranks=(2, 8), lengths=(32, 64)))
    changed = RunFolder(runs, "changed-0123456789")
    changed.path.mkdir()
    changed.result.write_bytes(data)
    changed.is_done()
    transition_runs([runs], Transition(), [])
    console = Console(file=io.StringIO(), width=80)
    fit.run([runs], Fit(figures=False, draws=0), console)
    # What JSON has no number for is null there.
    text = (runs / "fit" / "law.json").read_text("utf-8")
    return json.loads(text, parse_constant=float)
