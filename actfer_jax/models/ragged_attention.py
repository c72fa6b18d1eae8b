"""A Pallas kernel for TPU: attention to a cache of rows of different lengths, which reads what each row has filled.

The cache stays in HBM. While a block of it is computed the next is copied, also across rows; rows of length 0 cost
nothing. The idea is that of paged attention (Kwon et al., arXiv 2309.06180, and jax's kernel of that name); here a
row's positions lie next to each other, so a block needs no table.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from actfer_jax.models.cache import Past
from actfer_jax.models.online_softmax import MASKED, Softmax, scores

_BLOCKS = (256, 128)

Ref = Any  # of Pallas, which has no type that mypy reads
Index = jax.Array | int


def block_size(capacity: int) -> int:
    """Positions of a block, of which whole ones make the capacity, a multiple of 128."""
    return next(size for size in _BLOCKS if capacity % size == 0)


def ragged_attention(query_BxKxMxD: jax.Array, new: Softmax, past: Past, *, interpret: bool = False) -> jax.Array:
    """Attention [B, K, M, D] to `new` and to what rows have filled of a layer of the cache."""
    batch, kv_heads, queries, dim = query_BxKxMxD.shape
    capacity, dtype = past.keys.shape[3], past.keys.dtype
    size = block_size(capacity)
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)

    def of_row(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, kv_heads, queries, width), lambda b, *_: (b, 0, 0, 0))

    block = pltpu.VMEM((2, kv_heads, size, dim), dtype)
    state = [pltpu.VMEM((kv_heads, queries, width), jnp.float32) for width in (1, 1, dim)]
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch,),
            in_specs=[of_row(dim), of_row(1), of_row(1), of_row(dim), in_hbm, in_hbm],
            out_specs=of_row(dim),
            scratch_shapes=[*state, block, block, pltpu.SemaphoreType.DMA((2, 2)), pltpu.SMEM((1,), jnp.int32)],
        ),
        out_shape=jax.ShapeDtypeStruct(query_BxKxMxD.shape, dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=2**26),
        name="ragged_attention",
        interpret=interpret,
    )
    scalars = (x.astype(jnp.int32) for x in (past.layer.reshape(1), past.row_B, past.length_B))
    return call(*scalars, query_BxKxMxD, *new, past.keys, past.values)


def _kernel(
    layer: Ref,
    row_B: Ref,
    length_B: Ref,
    query: Ref,
    new_top: Ref,
    new_total: Ref,
    new_output: Ref,
    keys: Ref,
    values: Ref,
    output: Ref,
    top: Ref,
    total: Ref,
    weighted: Ref,
    key_blocks: Ref,
    value_blocks: Ref,
    copied: Ref,
    turn: Ref,
) -> None:
    """One row. Blocks of all rows take turns in the two halves of the scratch; `turn` counts them."""
    b, batch = pl.program_id(0), pl.num_programs(0)
    size = key_blocks.shape[2]

    def next_filled(b: Index) -> jax.Array:
        """The first row from here on that has filled anything, or the number of rows."""

        def length(b: Index) -> jax.Array:
            return length_B[jnp.minimum(b, batch - 1)]

        start = jnp.asarray(b), length(b)
        return jax.lax.while_loop(
            lambda at: (at[0] < batch) & (at[1] == 0), lambda at: (at[0] + 1, length(at[0] + 1)), start
        )[0]

    def copies(b: Index, block: Index, turn: Index) -> list[Any]:
        """Of a block of keys and of values."""
        half = turn % 2
        at = layer[0], row_B[b], slice(None), pl.ds(block * size, size)
        pairs = (keys, key_blocks), (values, value_blocks)
        return [
            pltpu.make_async_copy(cache.at[at], blocks.at[half], copied.at[half, i])
            for i, (cache, blocks) in enumerate(pairs)
        ]

    def start(b: Index, block: Index, turn: Index) -> None:
        @pl.when(b < batch)
        def _() -> None:
            for copy in copies(b, block, turn):
                copy.start()

    @pl.when(b == 0)
    def _() -> None:
        turn[0] = 0
        start(next_filled(0), 0, 0)

    state = Softmax(top, total, weighted)
    for ref, of_new_keys in zip(state, (new_top, new_total, new_output), strict=True):
        ref[...] = of_new_keys[0]
    count = pl.cdiv(length_B[b], size)

    def add_block(block: jax.Array, now: jax.Array) -> jax.Array:
        last = block + 1 == count
        start(jnp.where(last, next_filled(b + 1), b), jnp.where(last, 0, block + 1), now + 1)
        for copy in copies(b, block, now):
            copy.wait()
        for head in range(query.shape[1]):
            score_MxS = scores(query[0, head], key_blocks[now % 2, head])
            position_MxS = block * size + jax.lax.broadcasted_iota(jnp.int32, score_MxS.shape, 1)
            score_MxS = jnp.where(position_MxS < length_B[b], score_MxS, MASKED)
            past = Softmax(*(ref[head] for ref in state))
            for ref, value in zip(state, past.add(score_MxS, value_blocks[now % 2, head]), strict=True):
                ref[head] = value
        return now + 1

    turn[0] = jax.lax.fori_loop(0, count, add_block, turn[0])
    output[0] = Softmax(*(ref[...] for ref in state)).result().astype(output.dtype)
