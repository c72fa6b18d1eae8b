"""Every attention backend, of segments and of a cache, against a brute-force computation in numpy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actfer_jax.models.attention import attention
from actfer_jax.models.cache import Past
from actfer_jax.models.cached_attention import cached_attention

CUDNN = ("cudnn",) if jax.default_backend() == "gpu" else ()


def brute_force(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, segments: np.ndarray, causal: bool
) -> np.ndarray:
    """One query at a time, in float64."""
    output = np.zeros(query.shape)
    group = query.shape[2] // key.shape[2]
    for row, at, head in np.ndindex(query.shape[:3]):
        allowed = segments[row] == segments[row, at]
        if causal:
            allowed &= np.arange(len(allowed)) <= at
        scores = key[row, allowed, head // group].astype(np.float64) @ query[row, at, head] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        output[row, at, head] = weights / weights.sum() @ value[row, allowed, head // group]
    return output


def inputs(length: int, heads: int = 4, kv_heads: int = 2, dim: int = 8) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    query, key, value = (
        random.normal(size=(2, length, count, dim)).astype(np.float32) for count in (heads, kv_heads, kv_heads)
    )
    segments = np.stack([np.arange(length) * 3 // length + 1, np.where(np.arange(length) < length - 20, 1, 0)])
    return query, key, value, segments.astype(np.int32)


@pytest.mark.parametrize(("causal", "before"), [(True, 0), (False, 0), (True, 128)])
@pytest.mark.parametrize("backend", ["xla", "tiled", "splash_interpret"])
def test_backend_equals_brute_force(backend: str, causal: bool, before: int) -> None:
    """With the queries of all keys, or of those after the first."""
    query, key, value, segments = inputs(128 + before)
    found = attention(query[:, before:], key, value, segments, causal=causal, backend=backend)
    np.testing.assert_allclose(found, brute_force(query, key, value, segments, causal)[:, before:], atol=2e-6)


def test_tiles_need_not_fill_the_length() -> None:
    query, key, value, segments = inputs(150)
    found = attention(query, key, value, segments, causal=True, backend="tiled")
    np.testing.assert_allclose(found, brute_force(query, key, value, segments, True), atol=2e-6)


@pytest.mark.parametrize("backend", ["tiled", "splash_interpret"])
def test_gradients_agree_with_xla(backend: str) -> None:
    query, key, value, segments = inputs(256)
    query = query[:, 128:]
    used = (segments != 0)[:, 128:, None, None]

    def gradients(backend: str) -> tuple[jax.Array, ...]:
        def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            output = attention(query, key, value, segments, causal=True, backend=backend)
            return jnp.sum(jnp.where(used, jnp.sin(output), 0))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(query, key, value)

    with jax.default_matmul_precision("highest"):
        found_expected = list(zip(gradients(backend), gradients("xla"), strict=True))
    for found, expected in found_expected:
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(not CUDNN, reason="needs a GPU")
def test_gradients_of_cudnn_are_those_of_xla_in_half_precision() -> None:
    query, key, value, segments = inputs(128)
    used = (segments != 0)[..., None, None]

    def gradients(backend: str, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
        def loss(*arguments: jax.Array) -> jax.Array:
            output = attention(*arguments, segments, causal=True, backend=backend)
            return jnp.sum(jnp.where(used, jnp.sin(output.astype(jnp.float32)), 0))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*(jnp.asarray(x, dtype) for x in (query, key, value)))

    with jax.default_matmul_precision("highest"):
        exact = gradients("xla", jnp.dtype(jnp.float32))
    half = {backend: gradients(backend, jnp.dtype(jnp.bfloat16)) for backend in ("xla", "cudnn")}
    for name, values in half.items():
        for found, expected in zip(values, exact, strict=True):
            error = np.sqrt(np.mean((np.asarray(found, np.float32) - expected) ** 2))
            assert error < 0.01 * np.sqrt(np.mean(np.asarray(expected) ** 2)), name


def test_half_precision_keeps_softmax_in_float32() -> None:
    query, key, value, segments = inputs(128)
    expected = brute_force(query, key, value, segments, True)
    for backend in ("xla", "tiled", *CUDNN):
        half = (jnp.asarray(x, jnp.bfloat16) for x in (query, key, value))
        found = attention(*half, segments, causal=True, backend=backend)
        assert found.dtype == jnp.bfloat16
        # Inputs and weights rounded to 8 bits give errors of this size; a softmax in bfloat16 doubles them.
        assert np.sqrt(np.mean((np.asarray(found, np.float32) - expected) ** 2)) < 4e-3


def test_splash_says_which_lengths_it_takes() -> None:
    query, key, value, segments = inputs(100)
    with pytest.raises(ValueError, match="multiples of 128, not 100"):
        attention(query, key, value, segments, causal=True, backend="splash_interpret")


CACHED = ("rows", "blocks", "ragged_interpret")
LAYERS, ROWS, KV_HEADS, HEADS, DIM = 2, 6, 2, 4, 8
LAYER = 1


def cached_case(
    capacity: int, lengths: list[int], rows: list[int], new: int, prompts: Sequence[int] = ()
) -> tuple[dict[str, Any], np.ndarray]:
    """Arguments for rows with so many positions in the cache, and what must come of them.

    Args:
      prompts: how many positions successive rows share before those.
    """
    random = np.random.default_rng(0)
    batch, most = len(lengths), max(prompts, default=0) + max(lengths) + new
    query, key, value = (
        random.normal(size=(batch, most, heads, DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    # What is past a length, in another row or layer must not count.
    cache = np.full((2, LAYERS, ROWS, KV_HEADS, capacity, DIM), 1e3, np.float32)
    of_prompts = np.full((2, LAYERS, max(len(prompts), 1), KV_HEADS, capacity, DIM), 1e3, np.float32)
    before_B = np.zeros(batch, int)
    for q, before in enumerate(prompts):
        group = slice(q * batch // len(prompts), (q + 1) * batch // len(prompts))
        before_B[group] = before
        for x in (key, value):
            x[group, :before] = x[group, :before][:1]
        of_prompts[:, LAYER, -1 - q, :, :before] = np.stack([x[group, :before][0] for x in (key, value)]).swapaxes(1, 2)
    last = [np.empty((batch, new, heads, DIM), np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    expected = np.empty((batch, new, HEADS, DIM))
    for b, (before, length, row) in enumerate(zip(before_B, lengths, rows, strict=True)):
        end = before + length
        whole = [x[b : b + 1, : end + new] for x in (query, key, value)]
        expected[b] = brute_force(*whole, np.ones((1, end + new)), True)[0, end:]
        cache[:, LAYER, row, :, :length] = np.stack([x[b, before:end] for x in (key, value)]).swapaxes(1, 2)
        for part, x in zip(last, (query, key, value), strict=True):
            part[b] = x[b, end : end + new]
    own = Past(*cache, np.array(lengths, np.int32), np.array(rows, np.int32), LAYER)
    shared = Past(*of_prompts, np.array(prompts, np.int32), np.arange(len(prompts), dtype=np.int32)[::-1], LAYER)
    arguments = dict(zip(("query_BxLxHxD", "key_BxLxKxD", "value_BxLxKxD"), last, strict=True))
    pasts = [shared, own] if prompts else [own]
    return arguments | {"segment_ids_BxL": np.ones((batch, new), np.int32), "pasts": pasts}, expected


@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("backend", CACHED)
def test_every_length_in_any_row_equals_brute_force(backend: str, new: int) -> None:
    """No block, part of one, whole ones, and all of the capacity."""
    arguments, expected = cached_case(768, [0, 700, 1, 0, 256, 768], [3, 0, 5, 1, 4, 2], new)
    found = cached_attention(**arguments, backend=backend)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(("new", "prompts"), [(1, [0, 700, 256]), (5, [300, 1])])
@pytest.mark.parametrize("backend", CACHED)
def test_what_rows_share_equals_brute_force(
    backend: str, new: int, prompts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in any row, of every length, and none; three rows in a step of the kernel's grid, or one."""
    monkeypatch.setattr("actfer_jax.models.ragged_attention._QUERIES", 8)
    arguments, expected = cached_case(768, [0, 257, 1, 0, 0, 300], [3, 0, 5, 1, 4, 2], new, prompts)
    found = cached_attention(**arguments, backend=backend)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("backend", ["rows", "blocks"])
def test_blocks_need_not_fill_the_capacity(backend: str) -> None:
    for capacity in (20, 600):
        arguments, expected = cached_case(capacity, [17, capacity, 5], [0, 1, 2], 4)
        found = cached_attention(**arguments, backend=backend)
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("backend", CACHED)
def test_the_lengths_of_others_change_no_bit_of_a_row(backend: str) -> None:
    arguments, _ = cached_case(768, [300, 40, 768], [0, 1, 2], 1, [200])
    prompt, own = arguments.pop("pasts")
    found = []
    for others in ([40, 768], [0, 0], [768, 1]):
        pasts = prompt, own._replace(length_B=np.array([300, *others]))
        found.append(cached_attention(**arguments, pasts=pasts, backend=backend)[0])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("backend", CACHED)
def test_half_precision_keeps_softmax_over_a_cache_in_float32(backend: str) -> None:
    arguments, expected = cached_case(768, [700, 300, 768], [0, 1, 2], 3, [200])
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16) if np.asarray(x).dtype == np.float32 else x, arguments)
    found = cached_attention(**half, backend=backend)
    assert found.dtype == jnp.bfloat16
    # Inputs and weights rounded to 8 bits give errors of this size; a softmax in bfloat16 doubles them.
    assert np.sqrt(np.mean((np.asarray(found, np.float32) - expected) ** 2)) < 2e-3
