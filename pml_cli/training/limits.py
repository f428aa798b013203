"""Sizes of what the trainer holds on the device at once, and how often it measures.

Without torch: the cost model reads them too.
"""

EVALUATION_TOKENS = 16384
"""Input tokens scored at once where nothing is trained."""

MEASURE_EVERY = 10
"""Steps between two measurements of the harm that `loss.keep_harm` limits."""

MEASURED_WINDOWS = 2
"""Windows of text of one such measurement, of each cell."""

KL_WINDOWS = 1
"""Windows of text that `loss.keep_by=kl` reads in a step, of each cell."""

KL_TOKENS = 2048
"""Their input tokens that are in one forward and backward pass."""

KL_LOGITS = 2**24
"""Logits of one model that exist at once where two are compared."""

WIDEST_WHOLE = 2048
"""Inputs of the widest site whose second moment is kept whole for `loss.keep`."""

MAIN_DIRECTIONS = 512
"""Directions that are kept of the second moment of a wider one."""

MOMENT_NUMBERS = 2**29
"""Numbers of the second moments of wider sites that exist whole at once; at least one site's do."""

LBFGS_PAIRS = 20
"""Steps, each with the change of the gradient, from which L-BFGS makes its inverse Hessian."""
