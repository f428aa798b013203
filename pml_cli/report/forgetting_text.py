"""What a harm means, in words."""

from __future__ import annotations

from pml_cli.format import two_digits
from pml_cli.stats import safe_exp

# Per cent of perplexity, from which it is said how many times as high it is.
TIMES_FROM = 399.5

# Smaller changes, in per cent, would be written as 0.
LEAST_PERCENT = 0.05


def meaning_of_harm(harm: float, changed: float | None = None) -> str:
    """What some nats per token mean: perplexity, and how many next words would be others.

    Args:
        harm: rise of the loss, nats per token.
        changed: the share of tokens with another first choice; None: not said.
    """
    percent = 100 * (safe_exp(harm) - 1)
    if percent >= TIMES_FROM:
        perplexity = f"perplexity {safe_exp(harm):.0f} times as high"
    elif abs(percent) >= LEAST_PERCENT:
        direction = "up" if percent > 0 else "down"
        perplexity = f"perplexity {two_digits(abs(percent))} % {direction}"
    else:
        perplexity = "perplexity unchanged"
    if changed is None:
        return perplexity
    return f"{perplexity}; {100 * changed:.0f} of 100 next words would be chosen otherwise"
