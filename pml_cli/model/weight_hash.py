"""Exact checksums of weights in memory, on any device and with any number of threads.

The three hashes of weights in pml, and what each is for:

- `SplitModel.weights_hash` (this file's checksums): of all bits of the weights in memory. env.json
  of a run records it, and `pml lasting` refuses a run that was trained on other weights.
- `model.file_hash.sampled_hash`: of a safetensors or GGUF file, of which it reads samples. Part of
  the run id of a local model, so it must be quick and work without torch.
- `results.run_id.model_hash`: of a GGUF file or a folder; for a folder, its config, its tokenizer
  and the sampled hashes of its weights. The model part of the run id.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WORD_BYTES = 4

# Words that give one checksum.
CHUNK = 2**16

# Chunks whose products are computed at once, so that they stay in a processor's cache.
CHUNKS_AT_ONCE = 16


@torch.no_grad()
def tensor_checksums(tensor: Tensor) -> Tensor:
    """Checksums of a tensor's bits: sums of word times key for each chunk, modulo 2^64.

    Integer sums are the same in whatever order they are taken, and any device computes them about
    as fast as it reads its memory. One changed word always changes the checksum; any other change,
    such as two weights swapped, fails to only with a chance of about 1 in 2^32. So it tells models
    apart, but does not protect against tampering.

    Args:
        tensor: of any dtype, shape and device.

    Returns:
        int64 on the CPU, one for each 2^16 words of four bytes and one for the remaining words.
    """
    words = _words(tensor)
    keys = _keys().to(tensor.device)
    whole_chunks = len(words) // CHUNK
    chunked = words[: whole_chunks * CHUNK].view(-1, CHUNK)
    remainder = words[whole_chunks * CHUNK :]

    products = torch.empty(CHUNKS_AT_ONCE, CHUNK, dtype=torch.int64, device=tensor.device)
    sums = []
    for block in chunked.split(CHUNKS_AT_ONCE):
        # In preallocated memory: copy converts the words to 64 bits.
        block_products = products[: len(block)].copy_(block).mul_(keys)
        sums.append(block_products.sum(1))
    remainder_products = remainder * keys[: len(remainder)]
    sums.append(remainder_products.sum()[None])
    return torch.cat(sums).cpu()


def _words(tensor: Tensor) -> Tensor:
    """The bits of a tensor as int32 words, (number of words,), padded with zero bytes."""
    raw = tensor.reshape(-1).contiguous().view(torch.uint8)
    # A view as words needs aligned memory; padding copies.
    if len(raw) % WORD_BYTES or raw.storage_offset() % WORD_BYTES:
        raw = F.pad(raw, (0, -len(raw) % WORD_BYTES))
    return raw.view(torch.int32)


@lru_cache(maxsize=1)
def _keys() -> Tensor:
    """Fixed pseudorandom keys, (CHUNK,) int64; odd, so that no change of a word is lost."""
    digest = hashlib.shake_256(b"pml").digest(8 * CHUNK)
    return torch.from_numpy(np.frombuffer(digest, "<i8") | 1)
