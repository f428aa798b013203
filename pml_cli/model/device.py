"""The device a model lies on, and whether its memory gave out."""

from __future__ import annotations

import torch


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice, of a GPU or of the machine."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error).lower() for word in words
    )
