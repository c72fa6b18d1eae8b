"""Moves parameters from the update mesh to the rollout mesh, by collectives that hold no more than the results.

For some pairs of meshes, such as an update mesh that replicates parameters over "data", the compiler alone would first
gather every parameter on every chip. Both meshes have the same order of devices, so the axes of both are groups of the
axes of a finer mesh. Each axis of the finer mesh is moved from one array axis to another, gathered, or cut.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from actfer_jax.config import ConfigError
from actfer_jax.parallel.sharding import shardings


def reshard(params: Any, source: Mesh | None, target: Mesh | None) -> Any:
    """Inside a program, moves parameters from one mesh to another of the same devices in the same order.

    Raises:
      ConfigError: the meshes have no `common_mesh`.
    """
    if source is None or target is None:
        return params
    fine = common_mesh(source, target)
    leaves, structure = jax.tree.flatten(params)

    def fine_axes(mesh: Mesh) -> list[list[list[str]]]:
        specs = [sharding.spec for sharding in jax.tree.leaves(shardings(params, mesh))]
        return [_fine_axes(spec, x.ndim, mesh, fine) for spec, x in zip(specs, leaves, strict=True)]

    before, after = fine_axes(source), fine_axes(target)

    def move_all(*parts: jax.Array) -> list[jax.Array]:
        return [_move(x, now, goal, fine.shape) for x, now, goal in zip(parts, before, after, strict=True)]

    in_specs, out_specs = ([PartitionSpec(*map(tuple, axes)) for axes in side] for side in (before, after))
    moved = jax.shard_map(move_all, mesh=fine, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)(*leaves)
    return jax.lax.with_sharding_constraint(jax.tree.unflatten(structure, moved), shardings(params, target))


def _strides(mesh: Mesh) -> list[int]:
    """The number of all devices, then the stride of each axis in devices."""
    return list(accumulate(reversed(mesh.devices.shape), mul, initial=1))[::-1]


def common_mesh(one: Mesh, other: Mesh) -> Mesh:
    """A finer mesh: each of its axes lies within one axis of either mesh, and is named by its stride.

    Raises:
      ConfigError: no such mesh exists.
    """
    strides = sorted({*_strides(one), *_strides(other)}, reverse=True)
    if any(large % small for large, small in pairwise(strides)):
        raise ConfigError(
            f"config.mesh.update {one.devices.shape} and config.mesh.rollout {other.devices.shape} cut the devices at "
            "places that do not fit each other; choose sizes of which one divides the other, such as powers of two"
        )
    sizes = [large // small for large, small in pairwise(strides)]
    return Mesh(one.devices.reshape(sizes), tuple(map(str, strides[1:])))


def _fine_axes(spec: PartitionSpec, ndim: int, mesh: Mesh, fine: Mesh) -> list[list[str]]:
    """The axes of the finer mesh over which each array axis is divided, the slowest first."""
    within = {
        name: [axis for axis in fine.axis_names if stride <= int(axis) < larger]
        for name, (larger, stride) in zip(mesh.axis_names, pairwise(_strides(mesh)), strict=True)
    }
    entries = [*spec, *[None] * (ndim - len(spec))]
    names = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in entries]
    return [[axis for name in entry for axis in within[name]] for entry in names]


def _move(x: jax.Array, before: list[list[str]], after: list[list[str]], sizes: dict[str, int]) -> jax.Array:
    """Moves one device's part of an array from one division to another."""
    now = [list(axes) for axes in before]
    where = {axis: place for place, axes in enumerate(after) for axis in axes}

    def last(x: jax.Array, place: int, axis: str) -> jax.Array:
        """Makes a mesh axis the fastest of those that divide an array axis."""
        order = [other for other in now[place] if other != axis] + [axis]
        x = _reorder(x, now[place], order, sizes)
        now[place] = order
        return x

    # Exchange before anything is gathered, while parts are small.
    for place, axes in enumerate(before):
        for axis in reversed(axes):
            goal = where.get(axis, place)
            if goal != place and x.shape[goal] % sizes[axis] == 0:
                x = last(x, place, axis)
                x = lax.all_to_all(x, axis, split_axis=goal, concat_axis=place, tiled=True)
                now[goal].append(now[place].pop())
    for place in range(x.ndim):
        for axis in [axis for axis in reversed(now[place]) if where.get(axis) != place]:
            x = last(x, place, axis)
            x = lax.all_gather(x, now[place].pop(), axis=place, tiled=True)
    for place, axes in enumerate(after):
        for axis in axes:
            if axis not in now[place]:
                part = x.shape[place] // sizes[axis]
                x = lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * part, part, place)
                now[place].append(axis)
        x = _reorder(x, now[place], axes, sizes)
    return x


def _reorder(x: jax.Array, now: Sequence[str], order: Sequence[str], sizes: dict[str, int]) -> jax.Array:
    """Moves parts between devices so that the mesh axes divide the array in another order."""
    if list(now) == list(order):
        return x
    axes = sorted(now, key=int, reverse=True)  # Collectives number devices so, whatever order they are given.

    def parts(order: Sequence[str]) -> list[int]:
        """The part of the array that each device has."""
        numbers = np.arange(np.prod([sizes[axis] for axis in order])).reshape([sizes[axis] for axis in order])
        return numbers.transpose([order.index(axis) for axis in axes]).ravel().tolist()

    holder = {part: device for device, part in enumerate(parts(now))}
    return lax.ppermute(x, tuple(axes), [(holder[part], device) for device, part in enumerate(parts(order))])
