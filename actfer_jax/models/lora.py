"""Low-rank adapters (LoRA, arXiv 2106.09685): a frozen product W x, to which a trained scale * B A x is added.

Adapters are put onto a model that exists (`add_adapters`): a `layers.Linear` with an `adapter` adds its product. Their
parameters are `nnx.LoRAParam`, always float32, and lie beside the kernel that they adapt, so that no name of the base
changes. New adapters have B = 0: the model is exactly the base. They are merged into the base in exports only, in
float32: what a few updates add is lost in the rounding of a bfloat16 weight.
"""

import fnmatch
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from actfer_jax.config import ConfigError, Count, above, at_least, below, check_fields
from actfer_jax.models.layers import Linear, axes, flat_dot
from actfer_jax.models.qwen3_vl import Qwen3VL

_PARTS = {
    "decoder": ("language_model.layers.*",),
    "merger": ("visual.merger.*", "visual.deepstack_merger_list.*"),
    "vision": ("visual.blocks.*",),
}


@dataclass(frozen=True)
class LoraConfig:
    """Which matrix products have an adapter, and of what kind. The parameters of the base are frozen.

    Attributes:
      rank: r, the columns of A and rows of B; at least 1.
      alpha: the adapter's product is multiplied by alpha / r; above 0.
      rslora: multiplied by alpha / sqrt(r) instead (arXiv 2312.03732).
      dropout: the share of an adapter's inputs that an update leaves out; at least 0 and below 1. Sampling leaves
        nothing out: in reinforcement learning a dropout makes every update off-policy.
      targets: patterns such as "q_proj" or "*.mlp.*", of which one must match the name of a product, or its last part.
        A name is that of the checkpoint without the layer's number: "language_model.layers.self_attn.q_proj".
      decoder: whether the language model has adapters.
      merger: whether what makes tokens of patches has, with DeepStack's.
      vision: whether the blocks of the vision tower have.
    """

    rank: Count = 16
    alpha: Annotated[float, above(0)] = 32.0
    rslora: bool = False
    dropout: Annotated[float, at_least(0), below(1)] = 0.0
    targets: tuple[str, ...] = ("*",)
    decoder: bool = True
    merger: bool = False
    vision: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class _DropoutKey(nnx.Variable[jax.Array]):
    """The data of an adapter's random key in one microbatch of an update."""


class Adapter(nnx.Module):
    """scale * B A x, for a stack of layers or for one.

    Args:
      a: float32 [..., size_in, rank]; b: float32 [..., rank, size_out]. Leading axes are those of the stack.
      names: of the axes of the adapted kernel. The axis of the rank is never divided.
      scale: of the product.
      dropout: as in `LoraConfig`; used where there is a key (`draw_dropout`).
    """

    def __init__(self, a: jax.Array, b: jax.Array, names: tuple[str | None, ...], scale: float, dropout: float):
        self.a = nnx.LoRAParam(a, **axes(*names[:-1], None))
        self.b = nnx.LoRAParam(b, **axes(*names[:-2], None, names[-1]))
        self.scale, self.dropout = scale, dropout
        self.key: _DropoutKey | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size_in] to [..., size_out], in the dtype of x; the products are summed in float32, as all are."""
        if self.key is not None:
            key = jax.random.wrap_key_data(self.key[...], impl="threefry2x32")
            x = jnp.where(jax.random.bernoulli(key, 1 - self.dropout, x.shape), x / (1 - self.dropout), 0)
        a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
        return flat_dot(flat_dot(x, a), b) * self.scale


@jax.jit
def merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """The kernel [size_in, size_out] of one layer with its adapter in it, in float32."""
    return kernel.astype(jnp.float32) + scale * jnp.matmul(a, b, precision="highest")


def products(model: Qwen3VL) -> dict[str, Linear]:
    """The matrix products that can have an adapter, by name."""
    named = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    return {
        name: module
        for name, module in named.items()
        if isinstance(module, Linear) and any(matches(name, patterns) for patterns in _PARTS.values())
    }


def adapters(model: Qwen3VL) -> dict[str, Adapter]:
    """The adapters of a model, by the name of the product."""
    return {name: linear.adapter for name, linear in products(model).items() if isinstance(linear.adapter, Adapter)}


def targeted(model: Qwen3VL, config: LoraConfig) -> dict[str, Linear]:
    """The matrix products that a config adapts, by name.

    Raises:
      ConfigError: there are none, or a pattern matches none of those of the parts that are on.
    """
    parts = [pattern for part, patterns in _PARTS.items() if getattr(config, part) for pattern in patterns]
    eligible = {name: linear for name, linear in products(model).items() if matches(name, parts)}
    if not parts:
        raise ConfigError("config.lora has decoder, merger and vision all False; one of them must be True")
    for index, pattern in enumerate(config.targets):
        if not any(_targets(name, (pattern,)) for name in eligible):
            raise ConfigError(
                f"config.lora.targets[{index}] is {pattern!r}, which is no product of the parts that are on; there "
                f"are: {', '.join(eligible)}"
            )
    if not config.targets:
        raise ConfigError("config.lora.targets is (); it must have a pattern, such as '*'")
    return {name: linear for name, linear in eligible.items() if _targets(name, config.targets)}


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted name matches one of the patterns (`fnmatch`)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _targets(name: str, patterns: Sequence[str]) -> bool:
    return matches(name, patterns) or matches(name.rpartition(".")[2], patterns)


def add_adapters(
    model: Qwen3VL, config: LoraConfig, seed: int, values: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None
) -> None:
    """Puts new adapters onto a model: A uniform within 1 / sqrt(size_in), as PEFT's, and B = 0.

    Args:
      seed: of A; an adapter's values depend on the seed and the product's name only.
      values: (a, b) of each product, to begin with these.

    Raises:
      ConfigError: as `targeted`.
    """
    for name, linear in targeted(model, config).items():
        kernel = linear.kernel
        *stack, size_in, size_out = kernel.shape
        if values is None:
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(name.encode()))
            bound = size_in**-0.5
            a = jax.random.uniform(key, (*stack, size_in, config.rank), jnp.float32, -bound, bound)
            b = jnp.zeros((*stack, config.rank, size_out), jnp.float32)
        else:
            a, b = map(jnp.asarray, values[name])
        linear.adapter = Adapter(a, b, kernel.get_metadata("out_sharding"), config.scale, config.dropout)


def draw_dropout(model: Qwen3VL, key: jax.Array | None) -> None:
    """Lets the adapters leave out a part of their inputs, drawn by key, product and layer; nothing without a key."""
    if key is None:
        return
    for name, adapter in adapters(model).items():
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        stack = adapter.a.shape[:-2]
        data = jax.random.key_data(jax.random.split(own, stack) if stack else own)
        adapter.key = _DropoutKey(data, **axes(*("layers",) * len(stack), None))
