"""Reckons kernels (Pallas), of which the compiler estimates nothing, from the shapes of their arrays."""

import re
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from actfer_jax.compile_check.chips import Chip
from actfer_jax.compile_check.hlo import Array
from actfer_jax.models.ragged_attention import block_size, grid_steps

# Shares of the chip's bandwidth and peak that a good kernel reaches, and seconds between two steps of its grid: rounded
# experience, not measurements of these kernels.
BANDWIDTH_SHARE, PEAK_SHARE, GRID_STEP = 0.8, 0.4, 0.35e-6

_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)_")
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
"""Matrix products of splash attention for each block of scores."""
_RAGGED = re.compile(r"ragged_attention\b")


class Work(NamedTuple):
    """The work of a kernel on one device."""

    flops: float
    bytes: float
    steps: int

    def seconds(self, chip: Chip) -> float:
        """Either memory or matrix units hold the kernel up, and its grid steps besides."""
        memory = self.bytes / (BANDWIDTH_SHARE * chip.bandwidth * 1e9)
        return max(memory, self.flops / (PEAK_SHARE * chip.teraflops * 1e12)) + self.steps * GRID_STEP


def reckon(name: str, operands: Sequence[Array], results: Sequence[Array], filled: int | None = None) -> Work | None:
    """The work of a kernel, by the name that it has in the program; None for an unknown one.

    Args:
      filled: positions that rows of a cache have filled on average, for kernels that read no others; None for all.
    """
    if splash := _SPLASH.match(name):
        return _splash(_PRODUCTS[splash[1]], operands, results)
    if _RAGGED.match(name):
        return _ragged(operands, results, filled)
    return None


def _splash(products: int, operands: Sequence[Array], results: Sequence[Array]) -> Work:
    """Splash attention: blocks that a causal mask hides are steps of the grid without work."""
    blocks, _, query, key = operands[:4]
    # Only a causal kernel has the positions of the queries, the same for all rows.
    causal = operands[-1].dtype == "s32" and len(operands[-1].shape) == 2
    rows, blocks_q, blocks_k = prod(query.shape[:-2]), *blocks.shape[-2:]
    length, total, dim = query.shape[-2], *key.shape[-2:]
    size_q, size_k = length // blocks_q, total // blocks_k
    seen = [
        min(blocks_k, -(-(total - length + (block + 1) * size_q) // size_k)) if causal else blocks_k
        for block in range(blocks_q)
    ]
    flops = 2 * products * rows * sum(seen) * size_q * size_k * dim
    return Work(flops, sum(array.bytes for array in (*operands, *results)), rows * blocks_q * blocks_k)


def _ragged(operands: Sequence[Array], results: Sequence[Array], filled: int | None) -> Work:
    """Attention to what rows of a cache [layer, row, kv head, position, dim] have filled; each is read once."""
    _, _, lengths, *own, keys, _ = operands  # First are the layer, and of each row that is read its number and length.
    pasts = lengths.shape[0]
    (rows, kv_heads, queries, dim), capacity = own[0].shape, keys.shape[-2]
    size = block_size(capacity)
    read = capacity if filled is None else min(-(-filled // size) * size, capacity)
    scores = rows * kv_heads * queries * read
    cached = 2 * Array(keys.dtype, (pasts, kv_heads, read, dim)).bytes
    moved = cached + sum(array.bytes for array in (*own, *results))
    return Work(2 * 2 * scores * dim, moved, grid_steps(rows, queries, pasts))
