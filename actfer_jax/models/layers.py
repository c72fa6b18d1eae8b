"""Building blocks of Qwen3-VL: linear layers with sharding names, norms, rotary embeddings, and stacks of layers.

Attribute names follow the Hugging Face checkpoint, so that weights map by name. The `out_sharding` metadata of every
parameter has the names of its axes, which rules map to mesh axes. Without a mesh they are not used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from actfer_jax.models.attention import BACKENDS, attention
from actfer_jax.parallel import sharding

_INITIAL = jax.nn.initializers.normal(0.02)  # The initializer_range of every published size.


REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_UNROLL_UP_TO = 8  # Layers. A longer stack takes too long to compile.

Params = nnx.State[Any, Any]
"""The parameters of a model, as `nnx.split(model, nnx.Param)` gives them, or a tree like it: gradients, for example."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Execution:
    """How a model is run. Except for rounding it does not change what the model computes.

    Attributes:
      dtype: of activations and matrix products; norms, softmax and rotations are always float32.
      param_dtype: of the parameters.
      remat: what a layer keeps for its backward pass: "none" (everything; on a mesh the gathered weights too), "dots"
        (matrix products), "full" (its input).
      unroll: layers per iteration of the scan over layers; None unrolls small stacks on one CPU, where that is faster.
      attention: one of `attention.BACKENDS`.
      mesh: the mesh that divides parameters and activations; None on one device.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str = "none"
    unroll: int | None = None
    attention: str = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.attention not in BACKENDS:
            raise ValueError(f"attention {self.attention!r} is not one of {', '.join(BACKENDS)}")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat policy {self.remat!r} is not one of {', '.join(REMAT_POLICIES)}")

    def scan(
        self,
        function: Callable[[Any, Any, Any], tuple[Any, Any]],
        stacked: nnx.Module,
        carry: Any,
        inputs: Any,
        begin: int = 0,
        end: int | None = None,
        unroll: int | None = None,
    ) -> tuple[Any, Any]:
        """`lax.scan` of function(layer, carry, input) over the layers from `begin` to `end` of a stack.

        Args:
          inputs: arrays with a leading axis of layers.
          unroll: used if `self.unroll` is None.
        """
        graph, weights = nnx.split(stacked)
        count = jax.tree.leaves(weights)[0].shape[0]
        if (begin, end or count) != (0, count):
            # Not `weight[begin:end]`: jax 0.10 cannot add its gradient to a ref (`training.update.accumulate`).
            weights = jax.tree.map(lambda weight: jax.lax.slice_in_dim(weight, begin, end), weights)
            count = (end or count) - begin
        unroll = unroll if self.unroll is None else self.unroll
        if unroll is None:
            unroll = 1 if self.rolled(count) else count

        def body(carry: Any, xs: tuple[Any, Any]) -> tuple[Any, Any]:
            weights = sharding.gather(xs[0], self.mesh, self.dtype)
            return function(nnx.merge(graph, weights), carry, xs[1])

        if policy := REMAT_POLICIES[self.remat]:
            body = jax.checkpoint(body, policy=policy, prevent_cse=unroll > 1)
        return jax.lax.scan(body, carry, (weights, inputs), length=count, unroll=max(1, min(unroll, count)))

    def rolled(self, count: int) -> bool:
        """Whether a stack of `count` layers is compiled as a loop by default."""
        loops = jax.default_backend() != "cpu" if self.mesh is None else sharding.loops(self.mesh)
        return loops or count > _UNROLL_UP_TO

    def gathered(self, part: Part) -> Part:
        """A module or parameter outside the stacks, gathered for the computation (`sharding.gather`)."""
        return sharding.gather(part, self.mesh, self.dtype)

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """Activations, divided over the mesh by the names of their first axes (`sharding.RULES`)."""
        return sharding.constrain(x, self.mesh, *names)

    def attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, causal: bool
    ) -> jax.Array:
        """`attention.attention` with this backend on this mesh."""
        return attention(query, key, value, segment_ids, causal=causal, backend=self.attention, mesh=self.mesh)


def axes(*names: str | None) -> dict[str, Any]:
    """Metadata of a parameter with these axis names."""
    return {"out_sharding": names, "eager_sharding": False}


def flat_dot(x: jax.Array, kernel: jax.Array, dimension_numbers: Any = None, **options: Any) -> jax.Array:
    """A product over the last axis, as a product of two matrices. On CPU it takes half the time of a batched one."""
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nnx.Linear):
    """A linear layer, to which an adapter may add (`models.lora`)."""

    def __init__(self, *sizes: int, **options: Any):
        super().__init__(*sizes, **options)
        self.adapter: nnx.Module | None = nnx.data(None)

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        y = super().__call__(x, out_sharding)
        return y if self.adapter is None else y + self.adapter(x.astype(y.dtype))


def linear(
    size_in: int,
    size_out: int,
    names: tuple[str | None, str | None],
    *,
    bias: bool,
    execution: Execution,
    rngs: nnx.Rngs,
) -> Linear:
    """A linear layer with kernel [size_in, size_out]."""
    return Linear(
        size_in,
        size_out,
        use_bias=bias,
        dtype=execution.dtype,
        param_dtype=execution.param_dtype,
        dot_general=flat_dot,
        kernel_init=_INITIAL,
        kernel_metadata=axes(*names),
        bias_metadata=axes(names[1]),
        rngs=rngs,
    )


def table(
    size: int, features: int, names: tuple[str | None, str | None], execution: Execution, rngs: nnx.Rngs
) -> nnx.Param[jax.Array]:
    """A table of embeddings [size, features]."""
    return nnx.Param(_INITIAL(rngs.params(), (size, features), execution.param_dtype), **axes(*names))


def _over_last(vector: nnx.Param[jax.Array], ndim: int) -> jax.Array:
    """A vector in float32, to be broadcast over the last of `ndim` axes."""
    return jnp.expand_dims(vector[...].astype(jnp.float32), tuple(range(ndim - 1)))


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32, result in the input's dtype."""

    def __init__(self, size: int, epsilon: float, execution: Execution):
        self.scale = nnx.Param(jnp.ones(size, execution.param_dtype), **axes(None))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.epsilon)
        return (_over_last(self.scale, x.ndim) * wide).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with epsilon 1e-6, computed in float32, result in the input's dtype."""

    def __init__(self, size: int, execution: Execution):
        self.scale = nnx.Param(jnp.ones(size, execution.param_dtype), **axes(None))
        self.bias = nnx.Param(jnp.zeros(size, execution.param_dtype), **axes(None))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, -1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
        return (_over_last(self.scale, x.ndim) * wide + _over_last(self.bias, x.ndim)).astype(x.dtype)


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """float32 [dim / 2]: theta ** (-2 i / dim)."""
    return np.float32(1) / np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))


def rotate(x_BxLxHxD: jax.Array, angles_BxLxF: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + D / 2) by the angles (F = D / 2), in float32 (RoFormer, half-split layout)."""
    cos, sin = jnp.cos(angles_BxLxF)[:, :, None], jnp.sin(angles_BxLxF)[:, :, None]
    first, second = jnp.split(x_BxLxHxD.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x_BxLxHxD.dtype)


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers as one module whose parameters have a leading axis "layers"."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def create(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return create(rngs)
