"""Which parameters a training leaves as they are, and how another base is told from theirs."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from actfer_jax.config import ConfigError
from actfer_jax.models.layers import Params
from actfer_jax.models.lora import matches
from actfer_jax.parallel import sharding


def split_frozen(params: Params, patterns: Sequence[str], dtype: DTypeLike) -> tuple[Params, Params]:
    """The parameters to train, and the frozen ones, these in the dtype of the computation.

    Where there are adapters (`models.lora`), they are trained and all others are frozen.

    Args:
      patterns: of the names of parameters to freeze (`fnmatch`). A name is that of the checkpoint without the layer's
        number: "visual.blocks.attn.qkv.kernel".

    Raises:
      ConfigError: a pattern matches no parameter, or nothing is left to train.
    """
    names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)]
    for index, pattern in enumerate(patterns):
        if not any(matches(name, (pattern,)) for name in names):
            raise ConfigError(
                f"config.model.frozen[{index}] is {pattern!r}, which is no parameter; there are: {', '.join(names)}"
            )
    if all(matches(name, patterns) for name in names):
        raise ConfigError(f"config.model.frozen is {tuple(patterns)}, which leaves nothing to train")

    def trained(path: tuple[Any, ...], variable: Any) -> bool:
        return not matches(".".join(map(str, path)), patterns)

    is_adapted = any(isinstance(variable, nnx.LoRAParam) for _, variable in nnx.to_flat_state(params))
    chosen, rest = nnx.split_state(params, nnx.LoRAParam if is_adapted else trained, ...)
    # Of an array in the right type, `astype` makes no copy.
    return chosen, jax.tree.map(lambda x: x.astype(dtype), rest)


def fingerprint(params: Params, mesh: Mesh | None = None) -> str:
    """A digest of parameters, the same on every mesh; "" of none. Every process must call this at the same point."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        return ""
    sums = jax.device_get(_sums([x for _, x in leaves], mesh))
    listed = [
        [jax.tree_util.keystr(path), x.dtype.name, list(x.shape), int(total)]
        for (path, x), total in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@partial(jax.jit, static_argnames="mesh")
def _sums(arrays: list[jax.Array], mesh: Mesh | None) -> list[jax.Array]:
    """For each array, the sum over its elements of a hash of its bits and its place: uint32 [], modulo 2^32."""

    def one(x: jax.Array) -> jax.Array:
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        # The last steps of MurmurHash3 (Appleby): every bit of the input changes every bit of the result.
        bits ^= place * jnp.uint32(0x9E3779B9)
        bits = (bits ^ bits >> 16) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ bits >> 13) * jnp.uint32(0xC2B2AE35)
        return sharding.constrain(jnp.sum(bits ^ bits >> 16, dtype=jnp.uint32), mesh)

    return list(map(one, arrays))
