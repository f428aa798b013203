"""Does a long run stay flat? Memory, threads and open files of its processes, with their slopes.

    python benchmarks/soak.py --save benchmarks/soak.csv -- pml memft -f memft_rates

Every process of the command's tree is sampled (`--every` seconds) until the command ends.
For each one that lives longer than `--least` minutes the script prints the first and the last
value, the largest, and the slope by the hour with the 95 % interval of Theil and Sen.
The first tenth of a process's life is left out of its slope: the model is loaded in it, and
the first packs fill the allocator's arenas.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
from scipy.stats import theilslopes

MEASURES = ("rss_mb", "uss_mb", "threads", "open_files")
WARM_UP_SHARE = 0.1


def sample(process: psutil.Process, started: float) -> dict[str, float | int | str] | None:
    """One row on one process now, or None if it has just ended."""
    try:
        memory = process.memory_full_info()
        return {
            "minute": (time.time() - started) / 60,
            "pid": process.pid,
            "command": " ".join(process.cmdline()[:4]),
            "rss_mb": memory.rss / 1e6,
            "uss_mb": memory.uss / 1e6,
            "threads": process.num_threads(),
            "open_files": process.num_fds(),
        }
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return None


def watch(command: list[str], every: float, save: Path | None) -> tuple[pd.DataFrame, int]:
    """Run a command to its end.

    Args:
        command: The words of the command line.
        every: Seconds between two samples.
        save: CSV file that every sample is appended to at once: a run that is cut off keeps them.

    Returns:
        One row a process and sample, and the command's exit code.
    """
    started = time.time()
    rows = []
    with subprocess.Popen(command) as running:
        root = psutil.Process(running.pid)
        while running.poll() is None:
            try:
                tree = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            now = [row for process in tree if (row := sample(process, started))]
            rows += now
            if save:
                pd.DataFrame(now).to_csv(
                    save, mode="a", header=not save.exists(), index=False, float_format="%.1f"
                )
            time.sleep(every)
    return pd.DataFrame(rows), running.returncode


def slopes(samples: pd.DataFrame, least: float) -> pd.DataFrame:
    """The growth of every process that lived at least so many minutes.

    Args:
        samples: What `watch` returns.
        least: Shortest life that is reported, in minutes.

    Returns:
        One row a process and measure: first, last and largest value, slope by the hour with
        its 95 % interval.
    """
    rows = []
    for pid, life in samples.groupby("pid"):
        minutes = life["minute"] - life["minute"].min()
        if minutes.max() < least:
            continue

        warm = minutes >= WARM_UP_SHARE * minutes.max()
        for measure in MEASURES:
            slope, _, low, high = theilslopes(life.loc[warm, measure], minutes[warm] / 60)
            rows.append(
                {
                    "pid": pid,
                    "minutes": round(minutes.max(), 1),
                    "measure": measure,
                    "first": life.loc[warm, measure].iloc[0],
                    "last": life[measure].iloc[-1],
                    "largest": life[measure].max(),
                    "slope_per_hour": slope,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=float, default=10, help="seconds between two samples")
    parser.add_argument("--least", type=float, default=5, help="shortest life reported, minutes")
    parser.add_argument("--save", type=Path, help="CSV file of every sample")
    parser.add_argument("command", nargs="+", help="the command, behind --")
    options = parser.parse_args()

    if options.save:
        options.save.unlink(missing_ok=True)
    samples, code = watch(options.command, options.every, options.save)

    table = slopes(samples, options.least)
    print(table.to_string(index=False, float_format="%.1f") if len(table) else "no long process")
    sys.exit(code)


if __name__ == "__main__":
    main()
