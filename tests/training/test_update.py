"""How an update divides its batch and keeps its memory small changes no gradient."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
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
from actfer_jax.models.log_probs import token_log_probs
from actfer_jax.parallel.finite import STATE_FINITE
from actfer_jax.rl.loss import LossConfig
from actfer_jax.rollout.batch import (
    EpisodeBatch,
    ViewSlots,
    abstract_batch,
    encode_episodes,
    encode_views,
    episode_log_probs,
    policy_index,
)
from actfer_jax.training import update as train_step
from actfer_jax.training.optimizer import OptimizerConfig, make_optimizer
from actfer_jax.training.update import (
    PolicyBatch,
    accumulate,
    init_train_state,
    make_policy_update,
    make_sft_update,
    split_batch,
)

ROWS, GROUP, LENGTH = 4, 2, 24
SLOTS = ViewSlots(scene=8, view=4, views=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Qwen3VLConfig:
    directory: Path = fixtures.write_checkpoint(tmp_path_factory.mktemp("model") / "model")
    return Qwen3VLConfig.from_json(directory / "config.json")


def random_batch(config: Qwen3VLConfig) -> EpisodeBatch:
    """Text with the tokens of a scene (2) and two crops (1 each) at fixed places.

    The rows of the first group have 8 tokens in common, those of the second 4, which end inside of the scene.
    """
    random = np.random.default_rng(0)

    def values(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.dtype == jnp.bool:
            return random.random(x.shape) < 0.7
        integers = np.issubdtype(x.dtype, np.integer)
        return random.integers(0, 20, x.shape, x.dtype) if integers else random.normal(size=x.shape).astype(x.dtype)

    batch: EpisodeBatch = jax.tree.map(values, abstract_batch(ROWS, GROUP, LENGTH, SLOTS, config, prefix=8))
    image_index = np.full((ROWS, LENGTH), -1, np.int32)
    image_index[:, [3, 4, 11, 17]] = range(4)
    shared_Rx1 = np.repeat([[8], [4]], GROUP, axis=0)
    suffix_index = shared_Rx1 + np.arange(LENGTH - 8)
    used = np.arange(LENGTH) <= suffix_index[:, -1:]
    loss_mask = batch.loss_mask & used & (np.arange(LENGTH) > shared_Rx1)
    for first, count in ((0, 8), (GROUP, 4)):
        for x in (batch.tokens, batch.positions):
            x[first : first + GROUP, :count] = x[first, :count]
    return batch._replace(
        loss_mask=loss_mask,
        suffix_index=suffix_index.astype(np.int32),
        policy_index=policy_index(loss_mask, int(loss_mask.sum(axis=1).max())),
        image_index=image_index,
        segment_ids=used.astype(np.int32),
    )


def split(config: Qwen3VLConfig, remat: str, dtype: DTypeLike = jnp.float32) -> tuple[Any, nnx.State]:
    return nnx.split(Qwen3VL(config, dtype=dtype, remat=remat, rngs=nnx.Rngs(0)), nnx.Param)


def all_log_probs(model: Qwen3VL, batch: EpisodeBatch, **options: Any) -> tuple[jax.Array, jax.Array]:
    """`episode_log_probs` with logits at every token, and every row computed alone."""
    features = encode_episodes(model, batch.scenes, batch.views)
    embedded = model.embed(batch.tokens, batch.image_index, features)
    hidden, _ = model.hidden(*embedded, batch.positions, batch.segment_ids)
    values = token_log_probs(model, hidden[:, :-1], batch.tokens[:, 1:], **options)
    log_prob, entropy = (jnp.pad(x, ((0, 0), (1, 0))) for x in values)
    return jnp.where(batch.loss_mask, log_prob, 0), jnp.where(batch.loss_mask, entropy, 0)


@pytest.mark.slow
def test_pieces_add_up_to_the_gradient_of_the_batch(config: Qwen3VLConfig) -> None:
    batch = random_batch(config)
    assert batch.policy_index.shape[1] < LENGTH - 1 and (batch.policy_index == 0).any()

    def gradient(
        remat: str, microbatches: int, log_probs: Callable[..., Any] = episode_log_probs
    ) -> tuple[nnx.State, dict[str, np.ndarray]]:
        graph, params = split(config, remat)

        def loss(params: nnx.State, microbatch: EpisodeBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
            log_prob, entropy = log_probs(
                nnx.merge(graph, params), microbatch, temperature=1.0, banned_V=None, chunk=16
            )
            return -(log_prob * jnp.arange(LENGTH)[None]).sum(), {
                "sum": entropy.sum(),
                "entropy_max": entropy.max(),
            }

        return jax.device_get(jax.jit(partial(accumulate, loss))(params, split_batch(batch, microbatches)))

    expected, expected_metrics = gradient("none", microbatches=1, log_probs=all_log_probs)
    for remat in ("none", "full"):  # the second encodes crops slot by slot
        found, metrics = gradient(remat, microbatches=2)
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=2e-4, atol=2e-5 * np.abs(other).max())
        assert metrics.keys() == expected_metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(value, expected_metrics[name], rtol=1e-5)


def test_pixels_sent_in_the_dtype_of_the_model_are_the_same_pixels(config: Qwen3VLConfig) -> None:
    batch = random_batch(config)
    graph, params = split(config, "none", jnp.bfloat16)
    encode = jax.jit(lambda params, images: encode_views(nnx.merge(graph, params), images))
    short = batch.scenes._replace(patches=batch.scenes.patches.astype(jnp.bfloat16))
    assert np.any(short.patches.astype(np.float32) != batch.scenes.patches)
    for found, expected in zip(encode(params, short), encode(params, batch.scenes), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("algorithm", ["sft", "rl"])
def test_an_update_tells_whether_the_state_that_it_leaves_is_finite(
    config: Qwen3VLConfig, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters and both moments, in the one program of the update, whose state is donated."""

    def quick(model: Qwen3VL, microbatch: EpisodeBatch, **_: Any) -> tuple[jax.Array, jax.Array]:
        total = sum(jnp.sum(x * x) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
        return jnp.full(microbatch.tokens.shape, 1e-6 * total), jnp.zeros(microbatch.tokens.shape)

    monkeypatch.setattr(train_step, "episode_log_probs", quick)  # the model's own takes a minute to compile
    graph, params = split(config, "full")
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 1)
    episodes = random_batch(config)
    if algorithm == "sft":
        update, batch = make_sft_update(graph, optimizer, chunk=16), episodes
    else:
        options = {"temperature": 1.0, "banned_V": None, "chunk": 16}
        update = make_policy_update(graph, optimizer, LossConfig(), **options)
        old = np.full((ROWS, LENGTH), -3.0, np.float32)
        batch = PolicyBatch(episodes, old, old, np.ones_like(old), None)
    microbatches = split_batch(batch, 2)

    leaves, tree = jax.tree.flatten_with_path(jax.device_get(init_train_state(params, optimizer)))

    def after(where: str, value: float) -> tuple[bool, int]:
        """An update of the state with one number changed: whether it says "finite", and how many updates it skipped."""
        arrays = []
        for path, x in leaves:
            array = np.array(x)
            if jax.tree_util.keystr(path, simple=True, separator="/") == where:
                array[1, 2, 3] = value
            arrays.append(jnp.asarray(array))
        state, metrics = update(jax.tree.unflatten(tree, arrays), microbatches)
        assert bool(metrics[STATE_FINITE]) == all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
        return bool(metrics[STATE_FINITE]), int(state.skipped)

    weights = "language_model/layers/mlp/up_proj/kernel/value"
    assert after("", np.nan) == (True, 0)
    assert after(f"opt_state/1/0/mu/{weights}", np.inf) == (False, 0)
    assert after(f"opt_state/1/0/nu/{weights}", np.inf) == (False, 0)
    assert after(f"params/{weights}", np.nan) == (False, 1)
    assert update._cache_size() == 1


ON_A_MESH = """
import sys
from functools import partial
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from actfer_jax.parallel.finite import not_finite
from actfer_jax.models import Qwen3VLConfig, on_mesh
from actfer_jax.rollout.batch import episode_log_probs
from actfer_jax.parallel.sharding import MeshConfig, make_meshes, place_parameters
from actfer_jax.training.update import accumulate, split_batch
from training.test_update import random_batch, split

config = Qwen3VLConfig.from_json(Path(sys.argv[1]))
batch = random_batch(config)

def gradient(dtype, mesh):
    graph, params = split(config, "full", dtype)
    graph, params = on_mesh(graph, params, mesh), place_parameters(params, mesh)

    def loss(params, microbatch):
        log_prob, _ = episode_log_probs(nnx.merge(graph, params), microbatch, temperature=1.0, banned_V=None, chunk=16)
        return -jnp.where(microbatch.loss_mask, log_prob, 0).sum(), {}

    grads, _ = jax.jit(partial(accumulate, loss, mesh=mesh))(params, split_batch(batch, 2, mesh))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, grads)))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(grads))])

mesh = make_meshes(MeshConfig(update=(1, 2, 2))).update
params = place_parameters(split(config, "full", jnp.float32)[1], mesh)
assert not_finite(params, mesh) == []
table = params["language_model"]["embed_tokens"]
table[...] = jax.jit(lambda x: x.at[-1, -1].set(jnp.nan), out_shardings=table[...].sharding)(table[...])
assert not_finite(params, mesh) == ["language_model/embed_tokens/value"], not_finite(params, mesh)

exact = gradient(jnp.float32, None)
for mesh in (None, make_meshes(MeshConfig(update=(1, 2, 2))).update):
    print(np.linalg.norm(gradient(jnp.bfloat16, mesh) - exact) / np.linalg.norm(exact))
"""


@pytest.mark.slow
def test_bfloat16_is_no_less_exact_on_a_mesh(config: Qwen3VLConfig, tmp_path: Path) -> None:
    """Weights are rounded before they are gathered, and gradients are summed over devices in the short type."""
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": "tests"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of machine code: compiles faster
    command = [sys.executable, "-c", ON_A_MESH, str(tmp_path / "config.json")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, together = map(float, done.stdout.split())
    assert 1e-3 < alone < 0.05
    assert together < 1.5 * alone
