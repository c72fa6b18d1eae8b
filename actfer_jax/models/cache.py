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
    """What new tokens read of a cache.

    Where it has fewer lengths than there are rows of new tokens, successive rows share one, such as a prompt.

    Attributes:
      keys, values: the whole cache [N, R, K, T, D].
      length_B: how many positions of the cache's row are read. One of length 0 costs nothing.
      row_B: the row of the cache, as its device numbers them; it must be on the device of the rows that read it.
      layer: the layer to read, which the decoder sets.
    """

    keys: jax.Array
    values: jax.Array
    length_B: jax.Array
    row_B: jax.Array
    layer: jax.Array | int = 0


def init_cache(config: Qwen3VLConfig, batch: int, length: int, dtype: DTypeLike) -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens."""
    text = config.text
    shape = (text.num_hidden_layers, batch, text.num_key_value_heads, length, text.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write_cache(
    cache: KVCache,
    new: KVCache,
    start_B: jax.Array,
    count_B: jax.Array | None = None,
    row_B: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> KVCache:
    """Writes the first `count` of L new positions at position `start` of each row. Nothing else changes.

    Positions past the end of the cache are dropped.

    Args:
      count_B: None for all, of which none may be past the end.
      row_B: the cache row to write for each row; None for the same row. Rows past the last are dropped.
      mesh: the mesh over which rows and heads are divided; each device writes its own rows.
    """
    cached, by_row = ("layers", "rows", "kv_heads"), ("rows",)
    given = {"start_B": start_B, "count_B": count_B}
    # Also where rows are in order: of a loop whose counter is the row, the TPU's compiler takes (libtpu 0.0.42) that it
    # writes every position, and fails.
    given["row_B"] = jnp.arange(start_B.size) if row_B is None else row_B
    given["number_R"] = jnp.arange(cache.keys.shape[1])
    given = {name: jnp.asarray(x) for name, x in given.items() if x is not None}

    def write(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return _write_rows(KVCache(*arrays[:2]), KVCache(*arrays[2:4]), **dict(zip(given, arrays[4:], strict=True)))

    names = [*[cached] * 4, *[by_row] * len(given)]
    return KVCache(*shard_mapped(write, mesh, names, cached)(*cache, *new, *given.values()))


def _write_rows(
    cache: KVCache,
    new: KVCache,
    start_B: jax.Array,
    row_B: jax.Array,
    number_R: jax.Array,
    count_B: jax.Array | None = None,
) -> KVCache:
    """Row by row, in place. A scatter makes the TPU's compiler copy the whole cache, and is slower on CPU."""
    rows, capacity, length = cache.keys.shape[1], cache.keys.shape[3], new.keys.shape[3]
    offset_L = jnp.arange(length)

    def write(b: jax.Array, cache: KVCache) -> KVCache:
        row = row_B[b] - number_R[0]
        begin = jnp.minimum(start_B[b], capacity - length)  # The slice must end inside the cache.
        shift = start_B[b] - begin

        def of(cache: jax.Array, new: jax.Array) -> jax.Array:
            piece = jax.lax.dynamic_index_in_dim(new, b, 1).astype(cache.dtype)
            at = (0, row, 0, begin, 0)
            if count_B is not None:
                if length > 1:
                    piece = jnp.roll(piece, shift, axis=3)
                used_L = (offset_L >= shift) & (offset_L < shift + count_B[b]) & (row < rows)
                piece = jnp.where(used_L[:, None], piece, jax.lax.dynamic_slice(cache, at, piece.shape))
            return jax.lax.dynamic_update_slice(cache, piece, at)

        return KVCache(*map(of, cache, new))

    written: KVCache = jax.lax.fori_loop(0, start_B.size, write, cache)
    return written
