"""Attention within segments, with several backends. `cached_attention.py` has attention to a cache."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh

from actfer_jax.models.online_softmax import MASKED
from actfer_jax.models.precision import exact_products
from actfer_jax.parallel.sharding import platform, shard_mapped

BACKENDS = ("auto", "xla", "tiled", "cudnn", "splash", "splash_interpret")
_TILE = 64
BY_HEAD = ("rows", None, "kv_heads")  # axes of queries, keys and values [B, L, H, D]


def attention(
    query_BxLxHxD: jax.Array,
    key_BxTxKxD: jax.Array,
    value_BxTxKxD: jax.Array,
    segment_ids_BxT: jax.Array,
    *,
    causal: bool,
    backend: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Scaled dot-product attention among tokens of the same segment, with grouped queries if H > K.

    Softmax is in float32. Padding is a separate segment: other tokens do not attend to it, and its output is
    meaningless.

    Args:
      query_BxLxHxD, key_BxTxKxD, value_BxTxKxD: rotated, unscaled. H is a multiple of K. The queries are those of the
        last L of the T keys.
      segment_ids_BxT: int, of the keys.
      causal: whether a token attends only to earlier tokens and itself.
      backend: "xla"; "tiled" (plain matrix products, for CPU); "cudnn" (16-bit types only); "splash" (TPU, lengths in
        multiples of 128); "splash_interpret" (the same anywhere, slowly); "auto" picks by platform, length and type.
      mesh: the mesh over which rows and heads are divided; each device computes its own.

    Returns:
      [B, L, H, D].
    """
    if backend == "auto":
        backend = _backend(query_BxLxHxD, key_BxTxKxD, platform(mesh))

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids_BxT: jax.Array) -> jax.Array:
        if backend == "tiled":
            return _tiled(query, key, value, segment_ids_BxT, causal)
        if backend.startswith("splash"):
            return _splash(query, key, value, segment_ids_BxT, causal, interpret=backend == "splash_interpret")
        mask_BxLxT = segment_mask(segment_ids_BxT, query.shape[1], causal)
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask_BxLxT[:, None], implementation="cudnn" if backend == "cudnn" else "xla"
        )

    names = (BY_HEAD, BY_HEAD, BY_HEAD, ("rows",))
    with exact_products(query_BxLxHxD.dtype):
        return shard_mapped(attend, mesh, names, BY_HEAD)(query_BxLxHxD, key_BxTxKxD, value_BxTxKxD, segment_ids_BxT)


def _backend(query_BxLxHxD: jax.Array, key_BxTxKxD: jax.Array, platform: str) -> str:
    # Float32 products must be exact, and the kernels do not guarantee that.
    length, keys = query_BxLxHxD.shape[1], key_BxTxKxD.shape[1]
    half = query_BxLxHxD.dtype in (jnp.bfloat16, jnp.float16)
    if platform == "tpu" and half and length % 128 == keys % 128 == 0:
        return "splash"
    if platform == "gpu" and half:
        return "cudnn"
    if platform == "cpu" and keys >= 2 * _TILE:
        return "tiled"
    return "xla"


def segment_mask(segment_ids_BxT: jax.Array, length: int, causal: bool) -> jax.Array:
    """Which keys the queries of the last `length` of them attend to, bool [B, L, T]."""
    before = segment_ids_BxT.shape[1] - length
    same_BxLxT = segment_ids_BxT[:, before:, None] == segment_ids_BxT[:, None, :]
    return jnp.tril(same_BxLxT, before) if causal else same_BxLxT


def _tiled(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids_BxT: jax.Array, causal: bool) -> jax.Array:
    """One matrix product per row, key head and tile of queries: XLA's CPU backend is slow at batched products.

    A causal tile stops at its last key. The backward pass recomputes the weights, which is not slower.
    """
    batch, length, heads, dim = query.shape
    total, kv_heads = key.shape[1:3]
    before, group = total - length, heads // kv_heads
    tile = _TILE if causal else length

    @jax.checkpoint
    def one(inputs: tuple[jax.Array, ...]) -> jax.Array:
        query_GxLxD, key_TxD, value_TxD, segment_ids_T = inputs
        outputs = []
        for begin in range(0, length, tile):
            end = min(begin + tile, length)
            keys = before + end if causal else total
            mask = segment_ids_T[before + begin : before + end, None] == segment_ids_T[None, :keys]
            if causal:
                mask &= jnp.arange(before + begin, before + end)[:, None] >= jnp.arange(keys)[None]
            scores = query_GxLxD[:, begin:end].reshape(-1, dim) @ key_TxD[:keys].T
            scores = scores.reshape(group, end - begin, keys).astype(jnp.float32) * dim**-0.5
            weights = jax.nn.softmax(jnp.where(mask[None], scores, MASKED)).astype(value.dtype)
            outputs.append((weights.reshape(-1, keys) @ value_TxD[:keys]).reshape(group, end - begin, dim))
        return jnp.concatenate(outputs, axis=1)

    by_head = (
        query.reshape(batch, length, kv_heads, group, dim).transpose(0, 2, 3, 1, 4).reshape(-1, group, length, dim),
        key.transpose(0, 2, 1, 3).reshape(-1, total, dim),
        value.transpose(0, 2, 1, 3).reshape(-1, total, dim),
        jnp.repeat(segment_ids_BxT, kv_heads, axis=0),
    )
    output = jax.lax.map(one, by_head).reshape(batch, kv_heads, group, length, dim)
    return output.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids_BxT: jax.Array, causal: bool, interpret: bool
) -> jax.Array:
    """Splash attention (a Pallas TPU kernel in JAX). It skips fully masked blocks; heads are padded to 128 lanes."""
    length, heads, dim = query.shape[1:]
    keys = key.shape[1]
    block_q, block_kv = map(_splash_block, (length, keys))
    sizes: dict[str, Any] = {f"block_{size}": block_q for size in ("q", "q_dkv", "q_dq")}
    sizes |= {f"block_{size}": block_kv for size in ("kv", "kv_compute", "kv_dkv", "kv_dkv_compute", "kv_dq")}
    shape = length, keys
    one_head = splash_attention.CausalMask(shape, keys - length) if causal else splash_attention.FullMask(shape)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([one_head] * heads),
        block_sizes=splash_attention.BlockSizes(**sizes),
        interpret=interpret,
    )

    def by_head(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -dim % 128))).transpose(0, 2, 1, 3)

    segment_ids = splash_attention.SegmentIds(segment_ids_BxT[:, keys - length :], segment_ids_BxT)
    output = jax.vmap(kernel)(by_head(query * dim**-0.5), by_head(key), by_head(value), segment_ids)
    return output.transpose(0, 2, 1, 3)[..., :dim]


def _splash_block(length: int) -> int:
    if length % 128:
        raise ValueError(f"splash attention takes lengths in multiples of 128, not {length}; pad the rows or use 'xla'")
    return next(size for size in (512, 256, 128) if length % size == 0)
