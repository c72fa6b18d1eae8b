"""The cache of keys and values: made, written row by row, and what attention reads of it.

Shape letters: N layers, B rows of new tokens, L new tokens, K key heads, D head size; R rows of the cache, T its
positions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.parallel.sharding import shard_mapped


class KVCache(NamedTuple):
    """Keys (rotated) and values, [layers, B, kv_heads, T, head_dim] each."""

    keys: jax.Array
    values: jax.Array


class Past(NamedTuple):
    """What a layer reads of a cache.

    Attributes:
      keys, values: the whole cache [N, R, K, T, D].
      layer: the layer to read.
      length_B: how many positions each row has filled.
      row_B: the cache row of each row.
    """

    keys: jax.Array
    values: jax.Array
    layer: jax.Array
    length_B: jax.Array
    row_B: jax.Array


def init_cache(config: Qwen3VLConfig, batch: int, length: int, dtype: DTypeLike) -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens."""
    text = config.text
    shape = (text.num_hidden_layers, batch, text.num_key_value_heads, length, text.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write_cache(
    cache: KVCache,
    new: KVCache,
    start_B: jax.Array,
    count_B: jax.Array,
    row_B: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> KVCache:
    """Writes the first `count` of L new positions at position `start` of each row. Nothing else changes.

    Positions past the end of the cache are dropped.

    Args:
      row_B: the cache row to write for each row; None for the same row. Rows past the last are dropped.
      mesh: the mesh over which rows and heads are divided; each device writes its own rows.
    """
    batch, rows = new.keys.shape[1], cache.keys.shape[1]
    row_B = jnp.arange(batch) if row_B is None else row_B
    arguments = (*map(jnp.asarray, (start_B, count_B, row_B)), jnp.arange(rows))
    cached, by_row = ("layers", "rows", "kv_heads"), ("rows",)
    write = shard_mapped(_write_rows, mesh, (cached, cached, by_row, by_row, by_row, by_row), cached)
    return KVCache(write(cache.keys, new.keys, *arguments), write(cache.values, new.values, *arguments))


def _write_rows(
    cache_NxRxKxTxD: jax.Array,
    new_NxBxKxLxD: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    row_B: jax.Array,
    number_R: jax.Array,
) -> jax.Array:
    """Row by row, in place. A scatter makes the TPU's compiler copy the whole cache, and is slower on CPU."""
    capacity, length = cache_NxRxKxTxD.shape[3], new_NxBxKxLxD.shape[3]
    offset_L = jnp.arange(length)
    row_B = row_B - number_R[0]

    def write(b: jax.Array, cache: jax.Array) -> jax.Array:
        begin = jnp.minimum(start_B[b], capacity - length)  # The slice must end inside the cache.
        shift = start_B[b] - begin
        piece = jax.lax.dynamic_index_in_dim(new_NxBxKxLxD, b, 1).astype(cache.dtype)
        if length > 1:
            piece = jnp.roll(piece, shift, axis=3)
        used_L = (offset_L >= shift) & (offset_L < shift + count_B[b]) & (row_B[b] < cache.shape[1])
        at = (0, row_B[b], 0, begin, 0)
        old = jax.lax.dynamic_slice(cache, at, piece.shape)
        return jax.lax.dynamic_update_slice(cache, jnp.where(used_L[:, None], piece, old), at)

    return jax.lax.fori_loop(0, row_B.size, write, cache_NxRxKxTxD)
