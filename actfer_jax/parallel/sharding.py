"""How arrays are divided over devices: meshes, and one table from axis names to mesh axes.

A mesh has the axes ("data", "fsdp", "tensor"). Two meshes cover the same devices in the same order. The *update* mesh
divides parameters and optimizer state over "fsdp", the *rollout* mesh divides heads, MLP and vocabulary over "tensor".
A single device has no mesh (None), and the functions here return its arrays unchanged.

The layout rules follow "Scaling Up Models and Data with t5x" (arXiv 2203.17189), section 2. FSDP is as in ZeRO stage 3
(arXiv 1910.02054).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from actfer_jax.config import ConfigError, Count, Domain, FieldError, check_fields

AXES = ("data", "fsdp", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    # Parameters; "layers" is the axis of a stack, which is never divided.
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor", "fsdp"),
    # Activations, batches and the KV cache: rows are divided over "data" and "fsdp", and never cut.
    "rows": ("data", "fsdp"),
    # Rows and vocabulary during look-up in an embedding table or a product with it: "fsdp" divides another axis there.
    "row_groups": ("data",),
    "vocab_groups": ("tensor",),
}


_AxisSize = Annotated[int, Domain("at least 1, or -1 for the devices that are left", lambda n: n == -1 or n >= 1)]


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes (data, fsdp, tensor), at least 1. One of them may be -1, for all remaining devices.

    Attributes:
      update: the mesh for training.
      rollout: the mesh for sampling episodes.
      slices: slices of a multi-slice TPU, at least 1; "data" is divided over them first.
    """

    update: tuple[_AxisSize, _AxisSize, _AxisSize] = (1, -1, 1)
    rollout: tuple[_AxisSize, _AxisSize, _AxisSize] = (-1, 1, 1)
    slices: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("update", "rollout"):
            sizes = getattr(self, name)
            if sizes.count(-1) > 1:
                raise FieldError(name, f"is {sizes}; it must have -1, for the devices that are left, no more than once")


class Meshes(NamedTuple):
    """The meshes of a run; None on a single device."""

    update: Mesh | None = None
    rollout: Mesh | None = None


ONE_DEVICE = Meshes()


def make_meshes(config: MeshConfig, devices: Sequence[Any] | None = None) -> Meshes:
    """The update and the rollout mesh over the same order of devices, with the devices of "tensor" next to each other.

    Args:
      devices: if None, all devices of this run; a single one then has no mesh.

    Raises:
      ConfigError: the sizes do not fit the number of devices, or of slices.
    """
    found = jax.devices() if devices is None else list(devices)
    update = _sizes("update", config.update, len(found), config.slices)
    rollout = _sizes("rollout", config.rollout, len(found), config.slices)
    slices = len({getattr(device, "slice_index", 0) for device in found})
    # On GPUs each host may count as a slice of its own.
    if slices != config.slices and (config.slices > 1 or found[0].platform == "tpu"):
        raise ConfigError(
            f"config.mesh.slices is {config.slices}, but slices of devices found: {slices}; set it to that"
        )
    if devices is None and len(found) == 1:
        return ONE_DEVICE
    if config.slices > 1:
        inner = (rollout[0] // config.slices, *rollout[1:])
        outer = (config.slices, 1, 1)
        ordered = mesh_utils.create_hybrid_device_mesh(inner, outer, found, allow_split_physical_axes=True)
    else:
        ordered = mesh_utils.create_device_mesh(rollout, found, allow_split_physical_axes=True)
    return Meshes(Mesh(ordered.reshape(update), AXES), Mesh(ordered, AXES))


def _sizes(name: str, sizes: tuple[int, ...], devices: int, slices: int) -> tuple[int, ...]:
    given = math.prod(size for size in sizes if size != -1)
    full = tuple(devices // given if size == -1 else size for size in sizes)
    if math.prod(full) != devices:
        raise ConfigError(
            f"config.mesh.{name} is {sizes}, but there are {devices} devices; the product of its sizes must be that "
            f"number, or a divisor of it beside a -1"
        )
    if full[0] % slices:
        raise ConfigError(f"config.mesh.{name} is {full}: its first size must be a multiple of {slices} slices")
    return full


def row_shards(mesh: Mesh | None) -> int:
    """The number of parts that the rows of a batch are divided into."""
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in RULES["rows"])


def check_multiple(key: str, value: int, unit: int, why: str) -> None:
    """Raises ConfigError unless a setting is a multiple of `unit`. The message names values that work.

    Args:
      key: the config key.
      why: what divides the value, for the message.
    """
    if value % unit:
        below, above = value // unit * unit, -(-value // unit) * unit
        would_do = f"{below} or {above}" if below else str(above)
        raise ConfigError(f"{key} is {value}, but {why}: it must be a multiple of {unit}; {would_do} would do")


def shared_rows(group_size: int, rows: int, mesh: Mesh | None) -> int:
    """The most rows of a group that can share a scene while the scenes of `rows` rows still divide over the mesh."""
    parts = row_shards(mesh)
    return next(size for size in range(group_size, 0, -1) if group_size % size == 0 and rows // size % parts == 0)


def platform(mesh: Mesh | None) -> str:
    """The platform that programs are compiled for: "tpu", "gpu" or "cpu"."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def loops(mesh: Mesh | None) -> bool:
    """Whether a loop may contain collectives.

    It may not on CPU devices of several processes. XLA's CPU runtime does not wait for a loop to end: a collective
    inside of the loop and one after it can run at the same time, and a process can mistake one for the other.
    """
    return platform(mesh) != "cpu" or jax.process_count() == 1


def map_in_turn(function: Callable[[Any], Any], parts: Any, mesh: Mesh | None) -> Any:
    """`jax.lax.map`, unrolled where a loop must not contain collectives (`loops`)."""
    return jax.lax.scan(lambda _, part: (None, function(part)), None, parts, unroll=1 if loops(mesh) else True)[1]


def block_on_cpu(x: Any, mesh: Mesh | None) -> Any:
    """The results of a program. On a mesh of CPU devices, waits until they are computed.

    CPU devices share a pool of threads. Two programs with collectives that run at the same time can deadlock.
    """
    return jax.block_until_ready(x) if mesh is not None and platform(mesh) == "cpu" else x


def spec(
    mesh: Mesh, names: Sequence[str | None], shape: Sequence[int], rules: dict[str, tuple[str, ...]] = RULES
) -> PartitionSpec:
    """The mesh axes over which each array axis is divided.

    If the mesh axes do not divide the size of an array axis, fewer of them are used, or none. For example, 2 key heads
    are replicated over 4 devices of "tensor".

    Args:
      names: one for each array axis, from `RULES`; None for a replicated axis.
    """
    parts: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        axes = _dividing(mesh, rules[name], size) if name else ()
        parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*parts)


def constrain(x: jax.Array, mesh: Mesh | None, *names: str | None) -> jax.Array:
    """Constrains an array's sharding by the names of its first axes; the other axes are replicated."""
    if mesh is None:
        return x
    names += (None,) * (x.ndim - len(names))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(mesh, names, x.shape)))


def holders(mesh: Mesh | None, rows: int, microbatches: int = 1) -> list[frozenset[int]]:
    """The processes that hold each row of a batch. The batch is cut into microbatches, each divided over the mesh."""
    if mesh is None:
        return [frozenset({0})] * rows
    size = rows // microbatches
    held: list[set[int]] = [set() for _ in range(size)]
    sharding = NamedSharding(mesh, spec(mesh, ("rows",), (size,)))
    devices: dict[Any, Any] = dict(sharding.devices_indices_map((size,)))
    for device, (part,) in devices.items():
        for row in range(*part.indices(size)):
            held[row].add(device.process_index)
    return [frozenset(processes) for processes in held] * microbatches


def fetch(tree: Any, mesh: Mesh | None) -> Any:
    """The mesh's arrays as complete numpy arrays on every process; every process must call this at the same point."""
    if not all(x.is_fully_addressable for x in jax.tree.leaves(tree)):
        tree = _replicate(mesh)(tree)
    return jax.device_get(tree)


def local(tree: Any, mesh: Mesh | None) -> Any:
    """The mesh's arrays, complete, on a device of this process (`fetch`). Without a mesh, the arrays unchanged."""
    return tree if mesh is None else jax.tree.map(jnp.asarray, fetch(tree, mesh))


@lru_cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def place(tree: Any, mesh: Mesh | None, *names: str | None) -> Any:
    """Places arrays on the mesh by the names of their first axes: host arrays, device arrays or abstract ones.

    Of a host array, or one on this process's devices, only the parts that this process will hold are read. Without a
    mesh, arrays go to the default device: a program that is given host arrays would send them anew at every call.
    """

    def put(x: Any) -> Any:
        if mesh is None:
            return x if isinstance(x, jax.ShapeDtypeStruct) else jax.device_put(x)
        axes = (*names, *(None,) * x.ndim)[: x.ndim]
        return _put(x, NamedSharding(mesh, spec(mesh, axes, x.shape)))

    return jax.tree.map(put, tree)


def _put(x: Any, sharding: NamedSharding) -> Any:
    """The only place where an array of one process becomes a global one."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    if isinstance(x, jax.Array) and (sharding.is_fully_addressable or not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    # Numpy has no random keys.
    host = x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: host[index])


def shardings(tree: Any, mesh: Mesh, rules: dict[str, tuple[str, ...]] = RULES) -> Any:
    """The sharding of each leaf of a pytree: parameters by their axis names, everything else replicated.

    An optimizer's state of a parameter has the parameter's axis names.
    """

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        return leaf.replace(NamedSharding(mesh, spec(mesh, leaf.get_metadata("out_sharding"), leaf.shape, rules)))

    return jax.tree.map(of, tree, is_leaf=_is_parameter)


def place_parameters(tree: Any, mesh: Mesh | None) -> Any:
    """Places a pytree with parameters, concrete or abstract, by its `shardings`.

    Without a mesh it is committed to the first device, as an update's results are. Else programs would compile twice.
    """
    if mesh is None:
        return jax.device_put(tree, jax.devices()[0])
    return jax.tree.map(_put, tree, shardings(tree, mesh))


def constrain_parameters(tree: Any, mesh: Mesh | None) -> Any:
    """`place_parameters` inside a program."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def gather(weights: Any, mesh: Mesh | None, dtype: DTypeLike) -> Any:
    """Parameters as a layer uses them: in the computation's dtype, and not divided over "fsdp".

    They are cast before they are gathered, so that the smaller dtype is sent. Gradients are reduce-scattered.
    Parameters that no rule divides (norms) are returned unchanged.
    """
    if mesh is None:
        return weights
    whole = {name: tuple(axis for axis in axes if axis != "fsdp") for name, axes in RULES.items()}

    def one(leaf: Any) -> Any:
        if not _is_divided(leaf):
            return leaf
        value = leaf[...]
        # In the body of a scan over a stack, the layers axis is gone but its name is not.
        names = leaf.get_metadata("out_sharding")[-value.ndim :]
        divided, gathered = (NamedSharding(mesh, spec(mesh, names, value.shape, rules)) for rules in (RULES, whole))
        return leaf.replace(_gather(value, np.dtype(dtype), value.dtype, divided, gathered))

    return jax.tree.map(one, weights, is_leaf=_is_parameter)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(
    x: jax.Array, dtype: DTypeLike, stored: DTypeLike, divided: NamedSharding, gathered: NamedSharding
) -> jax.Array:
    if x.dtype != dtype:
        # The compiler would move a cast alone out of the loop over the layers, and keep a copy of all of them. It does
        # not move the rounding; after that the cast changes no value.
        x = jax.lax.reduce_precision(x, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    x = jax.lax.with_sharding_constraint(x.astype(dtype), divided)
    return jax.lax.with_sharding_constraint(x, gathered)


def _gather_forward(x: jax.Array, *options: Any) -> tuple[jax.Array, None]:
    return _gather(x, *options), None


def _gather_backward(
    dtype: DTypeLike, stored: DTypeLike, divided: NamedSharding, gathered: NamedSharding, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    # The compiler fuses a sum and its later division into one reduce-scatter. If the gradient were divided at once, it
    # would turn each matrix product into a loop over the devices.
    gradient = jax.lax.with_sharding_constraint(gradient, gathered)
    return (jax.lax.with_sharding_constraint(gradient, divided).astype(stored),)


_gather.defvjp(_gather_forward, _gather_backward)


def cast(params: Any, dtype: DTypeLike) -> Any:
    """A copy of the parameters in the dtype of the computation. Parameters that no rule divides keep their dtype."""

    def one(leaf: Any) -> Any:
        return leaf.replace(jnp.array(leaf[...], dtype if _is_divided(leaf) else leaf.dtype, copy=True))

    return jax.tree.map(one, params, is_leaf=_is_parameter)


def same_division(leaf: nnx.Variable[Any], mesh: Mesh | None, other: Mesh | None) -> bool:
    """Whether every device has the same part of a parameter on two meshes."""
    if mesh is None or other is None:
        return mesh is other
    names = leaf.get_metadata("out_sharding")
    one, two = (NamedSharding(each, spec(each, names, leaf.shape)) for each in (mesh, other))
    return bool(one.is_equivalent_to(two, leaf.ndim))


def in_memory(tree: Any, kind: str) -> Any:
    """The arrays, divided as before, in the memory of their devices ("device") or of the hosts ("pinned_host")."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), tree)


AxisNames = tuple[str | None, ...]
"""Names, from `RULES`, of the first axes of an array. An axis without a name, or with None, is replicated."""


def shard_mapped(function: Callable[..., Any], mesh: Mesh | None, names: Sequence[AxisNames], result: AxisNames) -> Any:
    """A function that every device applies to its own parts of the arguments.

    An axis name is divided over a mesh axis only if that divides its size in every argument.

    Args:
      names: of the axes of each argument.
      result: names of the axes of the result, or of each of several.
    """
    if mesh is None:
        return function

    def run(*arguments: jax.Array) -> jax.Array:
        rules: dict[str | None, tuple[str, ...]] = {None: ()}
        rules.update(RULES)
        for axes, x in zip(names, arguments, strict=True):
            for name, size in zip(axes, x.shape, strict=False):
                rules[name] = _dividing(mesh, rules[name], size)
        specs = [PartitionSpec(*(rules[name] or None for name in axes)) for axes in (*names, result)]
        # Kernels do not declare how their results vary over the mesh, so that cannot be checked.
        mapped = jax.shard_map(function, mesh=mesh, in_specs=tuple(specs[:-1]), out_specs=specs[-1], check_vma=False)
        return mapped(*arguments)

    return run


def _dividing(mesh: Mesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The longest prefix of the mesh axes whose product divides a size."""
    axes = tuple(axis for axis in axes if axis in mesh.shape)
    while axes and size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def _is_divided(leaf: nnx.Variable[Any]) -> bool:
    return any(RULES[name] for name in leaf.get_metadata("out_sharding") if name)


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
