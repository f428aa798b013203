"""The tokens that random sources draw from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pml_cli.errors import UserError
from pml_cli.model.tokenizer import Tokenizer


def ordinary_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """All token ids but the special ones, ascending, (V,).

    Raises:
        UserError: there are none.
    """
    ids = set(range(tokenizer.size)) - tokenizer.special
    return drawable(np.array(sorted(ids), np.int64))


def drawable(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids, if there are any.

    Raises:
        UserError: there are none.
    """
    if not len(ids):
        raise UserError("model: its vocabulary has no ordinary token to draw; take other data")
    return ids
