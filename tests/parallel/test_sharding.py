"""Meshes: what of the state lies on which device, and sizes that a mesh refuses."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from actfer_jax.config import ConfigError, read_config
from actfer_jax.models import Qwen3VL, Qwen3VLConfig, demo_checkpoint
from actfer_jax.parallel.sharding import ONE_DEVICE, MeshConfig, in_memory, make_meshes, shardings, shared_rows
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.optimizer import OptimizerConfig, make_optimizer
from configs import ucgrpo


def test_one_device_has_no_mesh() -> None:
    assert make_meshes(MeshConfig(update=(1, -1, 1), rollout=(-1, 1, 1)), None) == ONE_DEVICE or jax.device_count() > 1


@pytest.mark.parametrize("update", [(8, 1, 1), (2, 4, 1), (1, 2, 4), (2, 2, 2)])
def test_every_device_holds_its_part(update: tuple[int, int, int]) -> None:
    config = Qwen3VLConfig.from_json(Path(demo_checkpoint()) / "config.json")
    params = nnx.state(nnx.eval_shape(lambda: Qwen3VL(config, rngs=nnx.Rngs(0))), nnx.Param)
    optimizer = jax.eval_shape(make_optimizer(OptimizerConfig(), 1).init, params)
    mesh = make_meshes(MeshConfig(update=update), [Device(index) for index in range(8)]).update
    _, fsdp, tensor = update
    for tree in (params, optimizer):
        leaves, divided = jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh))
        held = sum(math.prod(part.shard_shape(leaf.shape)) for leaf, part in zip(leaves, divided, strict=True))
        # Norms are held whole, and "tensor" does not divide the patch embedding: under 3% of the small model.
        assert 1 / (fsdp * tensor) <= held / sum(leaf.size for leaf in leaves) < 1 / (fsdp * tensor) + 0.03


class Device:
    """As much of a device as a mesh looks at."""

    device_kind, process_index = "cpu", 0

    def __init__(self, id: int, slice_index: int = 0, platform: str = "cpu"):
        self.id, self.slice_index, self.platform = id, slice_index, platform


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(update=(1, -1, 3)), r"config\.mesh\.update is \(1, -1, 3\), but there are 16 devices"),
        (MeshConfig(rollout=(2, 1, 4)), r"config\.mesh\.rollout is \(2, 1, 4\), but there are 16 devices"),
        (MeshConfig(slices=2), r"config\.mesh\.update is \(1, 16, 1\): its first size must be a multiple of 2 slices"),
        (MeshConfig(update=(2, -1, 1), slices=2), r"config\.mesh\.slices is 2, but slices of devices found: 1"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(config: MeshConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_meshes(config, [Device(index) for index in range(16)])


def test_slices_of_a_tpu_are_not_taken_for_one() -> None:
    devices = [Device(index, slice_index=index // 8, platform="tpu") for index in range(16)]
    with pytest.raises(ConfigError, match=r"config\.mesh\.slices is 1, but slices of devices found: 2"):
        make_meshes(MeshConfig(), devices)


@pytest.mark.parametrize("update", [(1, -1, -1), (0, 1, 1), (1, -2, 1)])
def test_sizes_that_mean_nothing_are_refused(update: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"^update.* is .*; it must"):
        MeshConfig(update=update)


def test_both_meshes_have_one_order_of_devices_and_slices_stay_together() -> None:
    devices = [Device(index, slice_index=index % 2) for index in range(16)]
    meshes = make_meshes(MeshConfig(update=(2, -1, 1), rollout=(-1, 1, 4), slices=2), devices)
    assert meshes.update.devices.ravel().tolist() == meshes.rollout.devices.ravel().tolist()
    assert meshes.update.devices.shape == (2, 8, 1) and meshes.rollout.devices.shape == (4, 1, 4)
    for part in meshes.update.devices:
        assert len({device.slice_index for device in part.ravel()}) == 1


def test_arrays_go_to_host_memory_and_back() -> None:
    values = jnp.arange(8.0)
    offloaded = in_memory({"x": values}, "pinned_host")
    assert offloaded["x"].sharding.memory_kind == "pinned_host"
    back = in_memory(offloaded, "device")["x"]
    assert back.sharding.memory_kind == "device"
    np.testing.assert_array_equal(back, values)


def config(**changes: Any) -> TrainConfig:
    raw: ml_collections.ConfigDict = ucgrpo.get_config("demo")
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return read_config(raw, TrainConfig, "config")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Eight rows a query: 12 queries are 96 rows, 24 a microbatch, which 16 parts cannot share evenly.
        ({"batch__queries": 12}, "config.batch.queries is 12, .*config.mesh.update .* 8 or 16 would do"),
        ({"batch__queries": 4}, "config.batch.queries is 4, .*config.mesh.rollout .* 8 would do"),
        ({"rollout__fill_rows": 30}, "config.rollout.fill_rows is 30, .* 28 or 32 would do"),
        ({"evaluation__queries": 70}, "config.evaluation.queries is 70, .* 68 or 72 would do"),
    ],
)
def test_batches_that_a_mesh_cannot_divide_are_refused_with_those_that_would_do(
    changes: dict[str, int], message: str
) -> None:
    devices = [Device(index) for index in range(16)]
    meshes = make_meshes(MeshConfig(update=(1, -1, 1), rollout=(-1, 1, 4)), devices)
    config(batch__microbatches=4, batch__queries=8).check_meshes(meshes)
    with pytest.raises(ConfigError, match=message):
        config(**{"batch__microbatches": 4, "batch__queries": 8} | changes).check_meshes(meshes)


def test_meshes_that_cut_the_devices_at_other_places_are_refused() -> None:
    meshes = make_meshes(MeshConfig(update=(1, 2, 3), rollout=(3, 1, 2)), [Device(index) for index in range(6)])
    with pytest.raises(ConfigError, match=r"config.mesh.update \(1, 2, 3\) and config.mesh.rollout \(3, 1, 2\) cut"):
        config(batch__queries=6).check_meshes(meshes)


def test_scenes_divide_as_rows_do() -> None:
    mesh = make_meshes(MeshConfig(), [Device(index) for index in range(16)]).update
    assert shared_rows(8, 256, None) == 8
    assert shared_rows(8, 256, mesh) == 8  # 32 scenes for 16 parts
    assert shared_rows(8, 64, mesh) == 4  # 16 scenes, each of them twice
    assert shared_rows(8, 16, mesh) == 1
