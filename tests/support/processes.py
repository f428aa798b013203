"""pml as processes of its own, and what they leave in a results folder while they run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**more):
    """This process's environment, with one thread and the code under test."""
    fixed = {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    return {**os.environ, **fixed, **more}


def command(*arguments):
    """The command line of pml."""
    return [sys.executable, "-m", "pml_cli", *map(str, arguments)]


def run_pml(cwd, *arguments, env=None, timeout=180):
    """Run pml to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=env or environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def start_pml(cwd, *arguments, **more):
    """Start pml."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def status(cwd, out="runs"):
    """What `pml status --json` prints of a folder; None where it fails."""
    shown = run_pml(cwd, "status", out, "--json")
    if shown.returncode not in (0, 1) or not shown.stdout:
        return None
    return json.loads(shown.stdout)


def journals(out):
    """The events of each process of a results folder."""
    paths = (out / ".pml" / "journal").glob("*.jsonl")
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def done_cells(out):
    """The cells that each process has trained to their end."""
    return [
        [event["cell"] for event in events if event["event"] == "done"] for events in journals(out)
    ]


def worker_records(out, kind):
    """The last records of the processes of a kind, such as `local`."""
    paths = (out / ".pml" / "workers").glob("*.json")
    records = [json.loads(path.read_text()) for path in paths]
    return [record for record in records if record["kind"] == kind]


def finished_cells(out):
    """Ids of the cells with a result, sorted."""
    return sorted(path.parent.name for path in out.glob("*/result.json"))


def wait_until(condition, seconds=90.0, pause=0.3):
    """Wait for a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause)
    return bool(condition())
