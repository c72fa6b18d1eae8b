"""How an update divides its batch and keeps its memory small changes no gradient."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import models_fixtures as fixtures
import numpy as np
import pytest
from flax import nnx
from jax.typing import DTypeLike

from actfer_jax.models import Qwen3VL, Qwen3VLConfig
from actfer_jax.rollout.batch import EpisodeBatch, ImageSlots, abstract_batch, episode_log_probs
from actfer_jax.train_step import accumulate, split_batch

ROWS, GROUP, LENGTH = 4, 2, 24
SLOTS = ImageSlots(scene=8, crop=4, crops=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Qwen3VLConfig:
    directory: Path = fixtures.write_checkpoint(tmp_path_factory.mktemp("model") / "model")
    return Qwen3VLConfig.from_json(directory / "config.json")


def random_batch(config: Qwen3VLConfig) -> EpisodeBatch:
    """Text with the tokens of a scene (2) and two crops (1 each) at fixed places."""
    random = np.random.default_rng(0)

    def values(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.dtype == jnp.bool:
            return random.random(x.shape) < 0.7
        integers = np.issubdtype(x.dtype, np.integer)
        return random.integers(0, 20, x.shape, x.dtype) if integers else random.normal(size=x.shape).astype(x.dtype)

    batch: EpisodeBatch = jax.tree.map(values, abstract_batch(ROWS, GROUP, LENGTH, SLOTS, config))
    image_index = np.full((ROWS, LENGTH), -1, np.int32)
    image_index[:, [3, 4, 11, 17]] = range(4)
    return batch._replace(image_index=image_index, segment_ids=np.ones((ROWS, LENGTH), np.int32))


def split(config: Qwen3VLConfig, remat: str, dtype: DTypeLike = jnp.float32) -> tuple[Any, nnx.State]:
    return nnx.split(Qwen3VL(config, dtype=dtype, remat=remat, rngs=nnx.Rngs(0)), nnx.Param)


def test_pieces_add_up_to_the_gradient_of_the_batch(config: Qwen3VLConfig) -> None:
    batch = random_batch(config)

    def gradient(remat: str, pieces: int) -> tuple[nnx.State, dict[str, np.ndarray]]:
        graph, params = split(config, remat)

        def loss(params: nnx.State, piece: EpisodeBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
            log_prob, entropy = episode_log_probs(
                nnx.merge(graph, params), piece, temperature=1.0, banned_V=None, chunk=16
            )
            return -jnp.where(piece.policy, log_prob, 0).sum(), {"sum": entropy.sum(), "entropy_max": entropy.max()}

        return jax.device_get(jax.jit(partial(accumulate, loss))(params, split_batch(batch, pieces)))

    expected, expected_metrics = gradient("none", pieces=1)
    for remat in ("none", "full"):  # the second encodes crops slot by slot
        found, metrics = gradient(remat, pieces=2)
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=2e-4, atol=2e-5 * np.abs(other).max())
        assert metrics.keys() == expected_metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(value, expected_metrics[name], rtol=1e-5)


def test_pixels_sent_in_the_dtype_of_the_model_are_the_same_pixels(config: Qwen3VLConfig) -> None:
    batch = random_batch(config)
    graph, params = split(config, "none", jnp.bfloat16)
    encode = jax.jit(lambda params, images: nnx.merge(graph, params).encode_images(images))
    short = batch.scenes._replace(patches=batch.scenes.patches.astype(jnp.bfloat16))
    assert np.any(short.patches.astype(np.float32) != batch.scenes.patches)
    for found, expected in zip(encode(params, short), encode(params, batch.scenes), strict=True):
        np.testing.assert_array_equal(found, expected)


ON_A_MESH = """
import sys
from functools import partial
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from actfer_jax.models import Qwen3VLConfig, on_mesh
from actfer_jax.rollout.batch import episode_log_probs
from actfer_jax.sharding import MeshConfig, make_meshes, place_parameters
from actfer_jax.train_step import accumulate, split_batch
from test_train_step import random_batch, split

config = Qwen3VLConfig.from_json(Path(sys.argv[1]))
batch = random_batch(config)

def gradient(dtype, mesh):
    graph, params = split(config, "full", dtype)
    graph, params = on_mesh(graph, params, mesh), place_parameters(params, mesh)

    def loss(params, piece):
        log_prob, _ = episode_log_probs(nnx.merge(graph, params), piece, temperature=1.0, banned_V=None, chunk=16)
        return -jnp.where(piece.policy, log_prob, 0).sum(), {}

    grads, _ = jax.jit(partial(accumulate, loss, mesh=mesh))(params, split_batch(batch, 2, mesh))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, grads)))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(grads))])

exact = gradient(jnp.float32, None)
for mesh in (None, make_meshes(MeshConfig(update=(1, 2, 2))).update):
    print(np.linalg.norm(gradient(jnp.bfloat16, mesh) - exact) / np.linalg.norm(exact))
"""


def test_bfloat16_is_no_less_exact_on_a_mesh(config: Qwen3VLConfig, tmp_path: Path) -> None:
    """Weights are rounded before they are gathered, and gradients are summed over devices in the short type."""
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": "tests"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of machine code: compiles faster
    command = [sys.executable, "-c", ON_A_MESH, str(tmp_path / "config.json")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, together = map(float, done.stdout.split())
    assert 1e-3 < alone < 0.05
    assert together < 1.5 * alone
