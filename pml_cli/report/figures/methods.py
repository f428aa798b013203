"""How the methods (losses) of a comparison look: colours of Okabe and Ito, a marker for each.

The colours can be distinguished without colour vision, the markers in grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

COLOURS = ["#9A9A9A", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]

# Two markers more than colours, so that no two of the first 63 methods look the same.
MORE_MARKERS = [*MARKERS, "<", ">"]

NAMES = {
    "sft": "plain fine-tuning (sft)",
    "memft_ot": "MemFT, threshold (memft_ot)",
    "memft_sw": "MemFT, window (memft_sw)",
    "memft_margin": "margin, then hinge (memft_margin)",
}


def sft_first(methods: Iterable[str]) -> list[str]:
    """The distinct methods: sft, then the others by name."""
    return sorted(set(methods), key=lambda method: (method != "sft", method))


def colour_and_marker(
    index: int,
    markers: Sequence[str] = MARKERS,
) -> tuple[str, str]:
    """The style of the method at this index of `sft_first`."""
    colour = COLOURS[index % len(COLOURS)]
    marker = markers[index % len(markers)]
    return colour, marker
