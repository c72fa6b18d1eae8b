"""Chunked log-probabilities and rematerialised layers change memory, never values."""

from pathlib import Path

import jax
import jax.numpy as jnp
import models_fixtures as fixtures
import numpy as np
import pytest
from flax import nnx

from actfer_jax.models import Qwen3VL, load_pretrained, token_log_probs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Qwen3VL:
    return load_pretrained(checkpoint)


def brute_force(
    model: Qwen3VL, hidden: np.ndarray, targets: np.ndarray, temperature: float, banned: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In float64, over the tokens that may be chosen."""
    table = np.asarray(model.language_model.embed_tokens[...], np.float64)
    logits = hidden.astype(np.float64) @ table[~banned].T / temperature
    log_probs = logits - logits.max(-1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    place = np.cumsum(~banned) - 1
    return log_probs[np.arange(len(targets)), place[targets]], -(np.exp(log_probs) * log_probs).sum(-1)


@pytest.mark.parametrize("chunk", [1000, 23, 8])  # one piece; exactly one; a last piece that is not full
def test_equals_brute_force(model: Qwen3VL, chunk: int) -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(23, 48)).astype(np.float32)
    banned = np.isin(np.arange(160), [3, 150, 151])
    targets = random.choice(np.flatnonzero(~banned), 23)
    expected = brute_force(model, hidden, targets, 0.7, banned)
    for rows in (1, 2):  # a piece holds the same positions of every row
        repeated = (np.repeat(x[None], rows, axis=0) for x in (hidden, targets))
        found = token_log_probs(model, *repeated, temperature=0.7, banned_V=banned, chunk=chunk)
        for values, row in zip(found, expected, strict=True):
            assert values.dtype == jnp.float32
            np.testing.assert_allclose(values, [row] * rows, atol=2e-5)


def test_a_banned_target_is_impossible_and_harms_no_gradient(model: Qwen3VL) -> None:
    hidden = np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32)
    targets, banned = np.array([1, 2, 3]), np.arange(160) == 2

    def loss(hidden: jax.Array) -> jax.Array:
        log_prob, entropy = token_log_probs(model, hidden[None], targets[None], banned_V=banned, chunk=2)
        return jnp.where(np.array([True, False, True]), log_prob, 0).sum() + entropy.sum()

    log_prob, _ = token_log_probs(model, hidden[None], targets[None], banned_V=banned)
    assert np.exp(log_prob[0, 1]) == 0
    assert np.isfinite(jax.grad(loss)(hidden)).all()


def test_chunks_and_remat_policies_give_the_same_gradients(checkpoint: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, fixtures.TEXT_TOKENS, (2, 9))
    positions = np.broadcast_to(np.arange(9)[:, None], (2, 9, 3))

    def gradient(chunk: int, **options: str | int) -> nnx.State:
        graph, params = nnx.split(load_pretrained(checkpoint, **options), nnx.Param)

        @jax.jit
        @jax.grad
        def run(params: nnx.State) -> jax.Array:
            model = nnx.merge(graph, params)
            hidden, _ = model.hidden(*model.embed(tokens), positions, np.ones((2, 9), np.int32))
            return token_log_probs(model, hidden, tokens, chunk=chunk)[0].sum()

        return run(params)

    expected = gradient(1000)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 1
    for options in ({"remat": "full"}, {"remat": "dots", "unroll": 1}):
        for found, leaf in zip(jax.tree.leaves(gradient(5, **options)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(found, leaf, atol=1e-4)


def test_unknown_choices_are_named(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="remat policy 'most' is not one of none, full, dots"):
        load_pretrained(checkpoint, remat="most")
    with pytest.raises(ValueError, match="attention 'flash' is not one of auto, xla"):
        load_pretrained(checkpoint, attention="flash")
