"""The tokens that random sources draw from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pml_cli.model.tokenizer import Tokenizer


def ordinary_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """All token ids but the special ones, ascending, (V,)."""
    ids = set(range(tokenizer.size)) - tokenizer.special
    return np.array(sorted(ids))
