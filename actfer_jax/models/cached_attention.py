"""Attention to a read-only cache and to new tokens, which costs what the rows have filled and not what they could.

The cache is read in blocks. A block past a row's length adds exactly nothing, so how many blocks others have changes no
number of a row. Every backend takes the whole cache and a layer's index: a layer that is sliced out for a loop or a
kernel would be copied.

Shape letters: N layers, B rows of new tokens, L new tokens, H query heads, K key heads, M queries of a key head (H / K
times L), D head size; R rows of the cache, T its positions, S positions of a block.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from actfer_jax.models.attention import BY_HEAD, segment_mask
from actfer_jax.models.cache import Past
from actfer_jax.models.online_softmax import MASKED, Softmax, scores, softmax
from actfer_jax.models.precision import exact_products
from actfer_jax.models.ragged_attention import ragged_attention
from actfer_jax.parallel.sharding import platform, shard_mapped

SHARED, OWN = "shared", "own"
"""Names in a compiled program of what reads a past: the last is the row's own."""


def cached_attention(
    query_BxLxHxD: jax.Array,
    key_BxLxKxD: jax.Array,
    value_BxLxKxD: jax.Array,
    segment_ids_BxL: jax.Array,
    pasts: Sequence[Past],
    *,
    backend: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Causal attention to new tokens of the same segment, and to all that rows have in caches.

    What successive rows share is read once, for the queries of all of them (Hydragen, arXiv 2402.05099).

    Args:
      pasts: at least one; the last is each row's own.
      backend: "rows" (row by row, for CPU); "blocks" (all rows at once, as far as the longest); "ragged" (a kernel for
        TPU, for 16-bit types, with capacities and heads in multiples of 128); "ragged_interpret" (the same anywhere,
        slowly); "auto" picks by platform, sizes and type.
      mesh: the mesh over which rows and heads are divided; each device computes its own.

    Returns:
      [B, L, H, D].
    """
    if backend == "auto":
        backend = _backend(query_BxLxHxD, pasts, platform(mesh))
    attend_to_cache = _BACKENDS[backend]

    def attend(
        query_BxLxHxD: jax.Array,
        key_BxLxKxD: jax.Array,
        value_BxLxKxD: jax.Array,
        segment_ids_BxL: jax.Array,
        *of_caches: jax.Array,
    ) -> jax.Array:
        batch, length, heads, dim = query_BxLxHxD.shape
        kv_heads = key_BxLxKxD.shape[2]
        group = heads // kv_heads
        by_head = query_BxLxHxD.reshape(batch, length, kv_heads, group, dim).transpose(0, 2, 3, 1, 4)
        query_BxKxMxD = by_head.reshape(batch, kv_heads, group * length, dim)
        mask_BxMxL = jnp.tile(segment_mask(segment_ids_BxL, length, causal=True), (1, group, 1))
        score_BxKxMxL = scores(query_BxKxMxD, key_BxLxKxD.transpose(0, 2, 1, 3))
        score_BxKxMxL = jnp.where(mask_BxMxL[:, None], score_BxKxMxL, MASKED)
        seen = softmax(score_BxKxMxL, value_BxLxKxD.transpose(0, 2, 1, 3))
        for n in range(len(pasts)):
            keys, values, length_B, row_B, layer_1 = of_caches[len(Past._fields) * n :][: len(Past._fields)]
            with jax.named_scope(OWN if n + 1 == len(pasts) else SHARED):
                seen = attend_to_cache(query_BxKxMxD, seen, Past(keys, values, length_B, row_B, layer_1[0]))
        output = seen.result().astype(value_BxLxKxD.dtype)
        output = output.reshape(batch, kv_heads, group, length, dim).transpose(0, 3, 1, 2, 4)
        return output.reshape(query_BxLxHxD.shape)

    cached, by_row = ("layers", "rows", "kv_heads"), ("rows",)
    names = (BY_HEAD, BY_HEAD, BY_HEAD, by_row, *(cached, cached, by_row, by_row, (None,)) * len(pasts))
    of_caches = [x for past in pasts for x in past._replace(layer=jnp.reshape(past.layer, 1))]
    with exact_products(query_BxLxHxD.dtype):
        run = shard_mapped(attend, mesh, names, BY_HEAD)
        return run(query_BxLxHxD, key_BxLxKxD, value_BxLxKxD, segment_ids_BxL, *of_caches)


def _backend(query_BxLxHxD: jax.Array, pasts: Sequence[Past], platform: str) -> str:
    if platform == "cpu":
        return "rows"
    half = query_BxLxHxD.dtype in (jnp.bfloat16, jnp.float16)
    if platform == "tpu" and half and not any(size % 128 for past in pasts for size in past.keys.shape[3:]):
        return "ragged"
    return "blocks"


def _together(attend: Callable[..., Softmax]) -> Callable[..., Softmax]:
    """Takes the queries of rows that share a past as those of one row."""

    def run(query_BxKxMxD: jax.Array, seen: Softmax, past: Past) -> Softmax:
        group = len(query_BxKxMxD) // len(past.length_B)

        def join(x_BxKxMxD: jax.Array) -> jax.Array:
            _, heads, queries, dim = x_BxKxMxD.shape
            return (
                x_BxKxMxD.reshape(-1, group, heads, queries, dim)
                .swapaxes(1, 2)
                .reshape(-1, heads, group * queries, dim)
            )

        def part(x_QxKxMxD: jax.Array) -> jax.Array:
            _, heads, queries, dim = x_QxKxMxD.shape
            return (
                x_QxKxMxD.reshape(-1, heads, group, queries // group, dim)
                .swapaxes(1, 2)
                .reshape(-1, heads, queries // group, dim)
            )

        return Softmax(*map(part, attend(join(query_BxKxMxD), Softmax(*map(join, seen)), past)))

    return run


def _blocks(query_BxKxMxD: jax.Array, seen: Softmax, past: Past, *, size: int) -> Softmax:
    """All rows at once, with as many blocks of `size` positions as the longest has filled."""
    kv_heads, capacity, dim = past.keys.shape[2:]
    size = min(size, capacity)

    def add_block(block: jax.Array, seen: Softmax) -> Softmax:
        begin = jnp.minimum(block * size, capacity - size)  # The last block may begin within the one before.
        position_S = begin + jnp.arange(size)

        def read(cache: jax.Array) -> jax.Array:
            def read_row(row: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice(cache, (past.layer, row, 0, begin, 0), (1, 1, kv_heads, size, dim))[0, 0]

            return jax.vmap(read_row)(past.row_B)

        in_block_BxS = (position_S[None] >= block * size) & (position_S[None] < past.length_B[:, None])
        score_BxKxMxS = scores(query_BxKxMxD, read(past.keys))
        score_BxKxMxS = jnp.where(in_block_BxS[:, None, None], score_BxKxMxS, MASKED)
        return seen.add(score_BxKxMxS, read(past.values))

    return jax.lax.fori_loop(0, -(-past.length_B.max() // size), add_block, seen)


def _rows(query_BxKxMxD: jax.Array, seen: Softmax, past: Past) -> Softmax:
    """Row by row, each with the blocks that it has filled. XLA's CPU backend is slow at batched products."""

    def one_row(inputs: Any) -> Softmax:
        query, seen, length, row = jax.tree.map(lambda x: x[None], inputs)
        return Softmax(*(x[0] for x in _blocks(query, seen, past._replace(length_B=length, row_B=row), size=128)))

    result: Softmax = jax.lax.map(one_row, (query_BxKxMxD, seen, past.length_B, past.row_B))
    return result


_BACKENDS: dict[str, Callable[..., Softmax]] = {
    "rows": _together(_rows),
    "blocks": _together(partial(_blocks, size=512)),
    "ragged": ragged_attention,
    "ragged_interpret": partial(ragged_attention, interpret=True),
}
