"""Sizes of what the trainer holds on the device at once.

Without torch: the cost model reads them too.
"""

EVALUATION_TOKENS = 16384
"""Input tokens scored at once where nothing is trained."""
