"""Training and rollouts on eight devices against one, in a process of its own; sizes that a mesh refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from actfer_jax.config import ConfigError, read_config
from actfer_jax.settings import TrainConfig
from actfer_jax.sharding import ONE_DEVICE, MeshConfig, in_memory, make_meshes, shared_rows
from configs import ucgrpo

ROOT = Path(__file__).parents[1]
IN_ORDER, PERMUTED = list(range(8)), [3, 6, 0, 5, 2, 7, 1, 4]
# By name: the update mesh, the rollout mesh (None: nothing is played on it), the order of the devices.
LAYOUTS: dict[str, tuple[list[int], list[int] | None, list[int]]] = {
    "8-1-1": ([8, 1, 1], None, IN_ORDER),
    "2-4-1": ([2, 4, 1], [2, 2, 2], IN_ORDER),
    "1-2-4": ([1, 2, 4], None, IN_ORDER),  # two key heads do not divide by four
    "2-2-2": ([2, 2, 2], [2, 1, 4], PERMUTED),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    if "ACTFER_MESHES" not in os.environ:
        pytest.skip("eight devices on two cores take over five minutes a mesh: set ACTFER_MESHES=1 (CONTRIBUTING.md)")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Eight devices on few cores may wait long for each other.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=900",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "tests" / "sharded_training.py"), json.dumps(LAYOUTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algorithm", ["sft", "rl"])
def test_training_is_that_of_one_device(outcomes: dict[str, Any], layout: str, algorithm: str) -> None:
    found, expected = outcomes[layout], outcomes["one"]
    np.testing.assert_allclose(found["advantages"], expected["advantages"], rtol=1e-5)
    np.testing.assert_allclose(found["log_probs"], expected["log_probs"], rtol=1e-5)
    for step, other in zip(found[algorithm]["steps"], expected[algorithm]["steps"], strict=True):
        for name, value in other.items():
            # The gap to the sampler is a difference of nearly equal numbers.
            assert step[name] == pytest.approx(value, rel=1e-5, abs=1e-6 if "mismatch" not in name else 1e-5), name
    norms, others = found[algorithm]["norms"], expected[algorithm]["norms"]
    assert norms.keys() == others.keys()
    for name, value in others.items():
        # Biases begin at zero and are sums of a few small steps.
        tolerance = {"abs": 1e-5} if name.endswith("bias") else {"rel": 1e-5}
        assert norms[name] == pytest.approx(value, **tolerance), name


@pytest.mark.parametrize("layout", [name for name, (_, rollout, _) in LAYOUTS.items() if rollout])
def test_episodes_are_those_of_one_device(outcomes: dict[str, Any], layout: str) -> None:
    assert len(outcomes["one"]["tokens"]) == 16
    assert outcomes[layout]["tokens"] == outcomes["one"]["tokens"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_device_holds_its_part(outcomes: dict[str, Any], layout: str) -> None:
    whole, held = outcomes["one"]["held"], outcomes[layout]["held"]
    _, fsdp, tensor = LAYOUTS[layout][0]
    for name in ("params", "sft_after", "rl_after", "optimizer"):
        share = held[name] / whole[name]
        # Norms are held whole; they are under 1% of the small model.
        assert 1 / (fsdp * tensor) <= share < 1 / (fsdp * tensor) + 0.01, name


def test_nothing_compiles_after_the_first_update(outcomes: dict[str, Any]) -> None:
    for name, outcome in outcomes.items():
        assert not outcome["sft_compiled_again"] and not outcome["rl_compiled_again"], name


def test_one_device_has_no_mesh() -> None:
    assert make_meshes(MeshConfig(update=(1, -1, 1), rollout=(-1, 1, 1)), None) == ONE_DEVICE or jax.device_count() > 1


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
    with pytest.raises(ValueError, match="update is"):
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
        # Eight rows a query: 24 queries are 192 rows, 48 a microbatch, and a part of 16 gets 3 of them.
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


def test_scenes_divide_as_rows_do() -> None:
    mesh = make_meshes(MeshConfig(), [Device(index) for index in range(16)]).update
    assert shared_rows(8, 256, None) == 8
    assert shared_rows(8, 256, mesh) == 8  # 32 scenes for 16 parts
    assert shared_rows(8, 64, mesh) == 4  # 16 scenes, each of them twice
    assert shared_rows(8, 16, mesh) == 1
