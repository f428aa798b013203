"""How the threads of one operation wait for each other; to be set before torch is imported."""

from __future__ import annotations

import os

# Rounds that a waiting thread spins before it sleeps: some microseconds.
SPIN_COUNT = "1000"


def share_cores() -> None:
    """Let waiting threads spin for a moment, then sleep; what the user has set stays.

    By default OpenMP spins for milliseconds. That is fastest on an idle machine, but beside another
    busy process training takes many times as long. Threads that sleep at once are the best
    neighbours, and a quarter to a half slower on an idle machine (measured: benchmarks/README.md).
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return

    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # Read by GNU's OpenMP, which torch brings on Linux.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
