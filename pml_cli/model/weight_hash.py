"""Checksums of weights: exact, on any device, whatever the number of threads."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

CHUNK = 2**16  # words of four bytes that give one sum
CHUNKS = 16  # at once: the products stay in a processor's cache


@torch.no_grad()
def tensor_checksums(tensor: Tensor) -> Tensor:
    """Checksums of a tensor's bits, on the CPU: of each 2^16 words of four bytes the sum of word times key, modulo 2^64.

    Integer sums are the same in whatever order they are taken, and any device computes them about as fast as it reads its
    memory. One changed word always shows; every other change, such as two weights swapped, but for a chance of about 1 in
    2^32. So it tells models apart, and is no protection against someone who means to deceive.
    """
    raw = tensor.reshape(-1).contiguous().view(torch.uint8)
    if len(raw) % 4 or raw.storage_offset() % 4:
        raw = nn.functional.pad(raw, (0, -len(raw) % 4))
    words, keys = raw.view(torch.int32), _keys().to(tensor.device)
    products = torch.empty(CHUNKS, CHUNK, dtype=torch.int64, device=tensor.device)
    whole, sums = len(words) // CHUNK, []
    for part in words[: whole * CHUNK].view(-1, CHUNK).split(CHUNKS):
        sums.append(products[: len(part)].copy_(part).mul_(keys).sum(1))
    rest = words[whole * CHUNK :]
    return torch.cat([*sums, (rest * keys[: len(rest)]).sum()[None]]).cpu()


@lru_cache(maxsize=1)
def _keys() -> Tensor:
    """Fixed, odd, and as good as random: multiplied by one, no change of a word is lost."""
    drawn = np.frombuffer(hashlib.shake_256(b"pml").digest(8 * CHUNK), "<i8")
    return torch.from_numpy(drawn | 1)
