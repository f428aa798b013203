"""Sizes of what the trainer holds on the device at once, and how often it measures.

Without torch: the cost model reads them too.
"""

EVALUATION_TOKENS = 16384
"""Input tokens scored at once where nothing is trained."""

MEASURE_EVERY = 10
"""Steps between two measurements of the harm that `loss.keep_harm` limits."""

MEASURED_WINDOWS = 2
"""Windows of text of one such measurement, of each cell."""
