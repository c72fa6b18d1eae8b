"""The patch embedding fitted to data: white over the patches that it was fitted to, and nothing else changed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_fixtures import CONFIG, PATCH_DIM

from actfer_jax.models import Qwen3VL, Qwen3VLConfig
from actfer_jax.models.initialise import whiten_patch_embedding


def smooth_patches(count: int) -> np.ndarray:
    """Patches whose neighbouring values are much alike, and whose two frames are the same, as those of pictures are."""
    rng = np.random.default_rng(0)
    walks = np.cumsum(rng.normal(size=(count, PATCH_DIM // 2)), axis=1) * 0.1 + rng.normal(size=(count, 1))
    return np.tile(walks, (1, 2)).astype(np.float32) + 0.3


@pytest.fixture
def model(tmp_path) -> Qwen3VL:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return Qwen3VL(Qwen3VLConfig.from_json(tmp_path / "config.json"), rngs=nnx.Rngs(0))


def test_rounding_does_not_choose_the_weights(model):
    """Fewer patches than directions: most have no variance but rounding, which the order of the sums decides."""
    params = nnx.state(model, nnx.Param)
    patches = smooth_patches(PATCH_DIM // 4)
    kernel, reversed_kernel = (
        np.asarray(dict(nnx.to_flat_state(fitted))["visual", "patch_embed", "kernel"][...])
        for fitted in (whiten_patch_embedding(params, order, seed=0) for order in (patches, patches[::-1]))
    )
    np.testing.assert_allclose(kernel, reversed_kernel, atol=1e-6 * np.abs(kernel).max())


def test_every_direction_of_the_patches_weighs_the_same(model):
    graph, params = nnx.split(model, nnx.Param)
    patches = smooth_patches(4000)
    whitened = whiten_patch_embedding(params, patches, seed=0)

    def spread(params: nnx.State) -> tuple[np.ndarray, np.ndarray]:
        output = np.asarray(nnx.merge(graph, params).visual.patch_embed(jnp.asarray(patches)))
        return output, np.linalg.eigvalsh(np.cov(output.T))

    output, variances = spread(whitened)
    np.testing.assert_allclose(output.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(output.std(0), 1, rtol=1e-3)
    # A random projection to fewer dimensions keeps the spread of the eigenvalues small; before, one direction was all.
    assert variances[-1] / variances[0] < 200
    before = spread(params)[1]
    assert before[-1] / before[0] > 2000
    changed = jax.tree.map(lambda a, b: jnp.any(a != b), params, whitened)
    assert {path for path, value in nnx.to_flat_state(changed) if value[...]} == {
        ("visual", "patch_embed", "kernel"),
        ("visual", "patch_embed", "bias"),
    }
