"""How the threads of one operation wait for one another. To be settled before torch is imported."""

from __future__ import annotations

import os

SPIN = "1000"  # rounds of waiting before a thread sleeps: some microseconds


def share_cores() -> None:
    """Let waiting threads spin for a moment, then sleep; where the user has settled it, leave it.

    OpenMP's default is to spin for milliseconds: fastest for who is alone on a machine, but beside another busy process
    training takes many times as long. Threads that sleep at once are the best neighbours and lose a quarter to a half of the
    speed when alone. Measured: benchmarks/README.md.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault(
            "GOMP_SPINCOUNT", SPIN
        )  # of GNU's OpenMP, which torch brings on Linux
