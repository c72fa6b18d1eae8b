"""A Pallas kernel for TPU: attention to a cache of rows of different lengths, which reads what each row has filled.

The cache stays in HBM. While a block of it is computed the next is copied, also across rows; rows of length 0 cost
nothing. Where rows of queries share a row of the cache, it is read once for all of them. The idea is that of paged
attention (Kwon et al., arXiv 2309.06180, and jax's kernel of that name); here a row's positions lie next to each other,
so a block needs no table.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from actfer_jax.models.cache import Past
from actfer_jax.models.online_softmax import MASKED, Softmax, scores

_BLOCKS = (256, 128)
_QUERIES = 64
"""Queries of a key head that a step of the grid takes, if it takes several rows."""

Ref = Any  # of Pallas, which has no type that mypy reads
Index = jax.Array | int


def block_size(capacity: int) -> int:
    """Positions of a block, of which whole ones make the capacity, a multiple of 128."""
    return next(size for size in _BLOCKS if capacity % size == 0)


def grid_steps(batch: int, queries: int, pasts: int) -> int:
    """Steps of the grid: each takes the rows of one past, or those of a few where they have few queries.

    Args:
      batch: rows of queries.
      queries: of a key head and row.
      pasts: rows of the cache that are read, each by as many rows of queries.
    """
    most = max(_QUERIES * pasts // (queries * batch), 1)
    return pasts // next(n for n in range(most, 0, -1) if pasts % n == 0)


def ragged_attention(query_BxKxMxD: jax.Array, seen: Softmax, past: Past, *, interpret: bool = False) -> Softmax:
    """Adds to `seen` [B, K, M, ...] attention to what has been filled of a layer of the cache."""
    batch, kv_heads, queries, dim = query_BxKxMxD.shape
    pasts = len(past.length_B)
    grid = grid_steps(batch, queries, pasts)
    capacity, dtype = past.keys.shape[3], past.keys.dtype
    size = block_size(capacity)
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)

    def of_rows(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((batch // grid, kv_heads, queries, width), lambda step, *_: (step, 0, 0, 0))

    softmax = [of_rows(x.shape[-1]) for x in seen]
    block = pltpu.VMEM((2, kv_heads, size, dim), dtype)
    call = pl.pallas_call(
        partial(_kernel, pasts=pasts // grid),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(grid,),
            in_specs=[of_rows(dim), *softmax, in_hbm, in_hbm],
            out_specs=softmax,
            scratch_shapes=[block, block, pltpu.SemaphoreType.DMA((2, 2)), pltpu.SMEM((1,), jnp.int32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in seen],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=2**26),
        name="ragged_attention",
        interpret=interpret,
    )
    scalars = (x.astype(jnp.int32) for x in (jnp.reshape(past.layer, 1), past.row_B, past.length_B))
    return Softmax(*call(*scalars, query_BxKxMxD, *seen, past.keys, past.values))


def _kernel(
    layer: Ref,
    row_Q: Ref,
    length_Q: Ref,
    query: Ref,
    seen_top: Ref,
    seen_total: Ref,
    seen_output: Ref,
    keys: Ref,
    values: Ref,
    top: Ref,
    total: Ref,
    output: Ref,
    key_blocks: Ref,
    value_blocks: Ref,
    copied: Ref,
    turn: Ref,
    *,
    pasts: int,
) -> None:
    """The rows of queries that read so many rows of the cache. Blocks of all take turns in the two halves of the
    scratch; `turn` counts them."""
    step, count = pl.program_id(0), pl.num_programs(0) * pasts
    size, together = key_blocks.shape[2], query.shape[0] // pasts

    def next_filled(q: Index) -> jax.Array:
        """The first from here on that has filled anything, or the number of all."""

        def length(q: Index) -> jax.Array:
            return length_Q[jnp.minimum(q, count - 1)]

        start = jnp.asarray(q), length(q)
        return jax.lax.while_loop(
            lambda at: (at[0] < count) & (at[1] == 0), lambda at: (at[0] + 1, length(at[0] + 1)), start
        )[0]

    def copies(q: Index, block: Index, turn: Index) -> list[Any]:
        """Of a block of keys and of values."""
        half = turn % 2
        at = layer[0], row_Q[q], slice(None), pl.ds(block * size, size)
        pairs = (keys, key_blocks), (values, value_blocks)
        return [
            pltpu.make_async_copy(cache.at[at], blocks.at[half], copied.at[half, i])
            for i, (cache, blocks) in enumerate(pairs)
        ]

    def start(q: Index, block: Index, turn: Index) -> None:
        @pl.when(q < count)
        def _() -> None:
            for copy in copies(q, block, turn):
                copy.start()

    @pl.when(step == 0)
    def _() -> None:
        turn[0] = 0
        start(next_filled(0), 0, 0)

    state = Softmax(top, total, output)
    for ref, before in zip(state, (seen_top, seen_total, seen_output), strict=True):
        ref[...] = before[...]

    def add_past(i: jax.Array, turn: jax.Array) -> jax.Array:
        q, own = step * pasts + i, pl.ds(i * together, together)
        blocks = pl.cdiv(length_Q[q], size)

        def of_head(ref: Ref, head: int) -> jax.Array:
            """Of all rows together."""
            return ref[own, head].reshape(-1, ref.shape[-1])

        def add_block(block: jax.Array, turn: jax.Array) -> jax.Array:
            last = block + 1 == blocks
            start(jnp.where(last, next_filled(q + 1), q), jnp.where(last, 0, block + 1), turn + 1)
            for copy in copies(q, block, turn):
                copy.wait()
            for head in range(query.shape[1]):
                score_MxS = scores(of_head(query, head), key_blocks[turn % 2, head])
                position_MxS = block * size + jax.lax.broadcasted_iota(jnp.int32, score_MxS.shape, 1)
                score_MxS = jnp.where(position_MxS < length_Q[q], score_MxS, MASKED)
                past = Softmax(*(of_head(ref, head) for ref in state))
                for ref, value in zip(state, past.add(score_MxS, value_blocks[turn % 2, head]), strict=True):
                    ref[own, head] = value.reshape(together, *ref.shape[2:])
            return turn + 1

        return jax.lax.fori_loop(0, blocks, add_block, turn)

    turn[0] = jax.lax.fori_loop(0, pasts, add_past, turn[0])
