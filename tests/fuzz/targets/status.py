"""`pml status` of a folder in which a process of another machine trains.

An input is a JSON mapping with the manifest of the sweep and the record of the process.
"""

import io
import json

from fuzz.folders import first
from fuzz.mutate import json_tree

MUTATE = json_tree


def seeds(base):
    manifest = json.loads(first(base, "runs/.pml/requests/*.json"))
    record = {
        "name": "w-1",
        "kind": "local",
        "host": "far",
        "place": "another machine",
        "pid": 7,
        "created": 1.0,
        "ticks": 5,
        "shown": 1e9,
        "state": "running",
        "stale": 1e15,
        "started": 1e9 - 60,
        "order": "0123456789",
        "launch": "abcdefgh",
        "slot": 0,
        "slurm": None,
        "doing": {"step": 1, "steps": 3, "since": 1e9 - 9, "first": 0, "names": []},
    }
    busy = record | {"doing": record["doing"] | {"names": list(manifest["cells"])}}
    job = {"job": "12", "restart": 0, "task": "12_3"}
    on_slurm = busy | {"kind": "slurm", "slurm": job, "slot": None}
    return [
        json.dumps({"manifest": manifest, "record": each}).encode()
        for each in (record, busy, on_slurm)
    ]


def read(folder, data):
    from rich.console import Console

    from pml_cli.commands import status
    from pml_cli.errors import UserError
    from pml_cli.launch.status import Watcher

    try:
        files = json.loads(data)
        manifest, record = files["manifest"], files["record"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError("not for this target") from error

    runs = folder / "runs"
    for name, content in (("requests", manifest), ("workers", record)):
        path = runs / ".pml" / name / "0123456789.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), "utf-8")

    snapshot = Watcher(runs).look(queue=False)
    console = Console(file=io.StringIO(), width=80)
    status.run(runs, console=console)
    if not snapshot.running:
        raise UserError("no process is shown")
    return [snapshot.share_done, snapshot.seconds_left, snapshot.total_work]
