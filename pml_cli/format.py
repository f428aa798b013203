"""Numbers for people."""

from __future__ import annotations

from collections.abc import Sequence


def counted(things: Sequence[object], name: str, plural: str = "s") -> str:
    """How many of something: 1 cell, 2 cells."""
    return f"{len(things)} {name}" + ("" if len(things) == 1 else plural)


def flops_text(count: float) -> str:
    """FLOPs for people: 950 MFLOP, 1.2 TFLOP."""
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def bytes_text(count: float) -> str:
    """Bytes for people: 640 MiB, 5.5 GiB."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration_text(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.4 h, 2.1 days."""
    units = (
        ("s", 1, 90),
        ("min", 60, 90 * 60),
        ("h", 3600, 48 * 3600),
        ("days", 86400, float("inf")),
    )
    return next(
        f"{_digits(seconds / size)} {unit}" for unit, size, below in units if seconds < below
    )


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if value < 999.5:
            return f"{_digits(value)} {unit}"
        value /= step
    return f"{_digits(value)} {units[-1]}"


def _digits(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
