"""Drawn tokens against exact probabilities, in one block of the vocabulary and in many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from actfer_jax.rollout import sampling

QWEN3 = 151_936
TEMPERATURE = 0.7


def exact_log_probs(logits_V: np.ndarray, banned_V: np.ndarray | None = None) -> np.ndarray:
    logits_V = logits_V.astype(np.float64)
    if banned_V is not None:
        logits_V = np.where(banned_V, -np.inf, logits_V)
    return logits_V - logits_V.max() - np.log(np.exp(logits_V - logits_V.max()).sum())


def draw(logits_V: np.ndarray, banned_V: np.ndarray, count: int, first: int = 0) -> sampling.Drawn:
    """Tokens of `count` rows with keys of their own, at different places."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(first + jnp.arange(count))
    logits_RxV = jnp.tile(logits_V, (count, 1))
    options = {"temperature": TEMPERATURE, "banned_V": jnp.asarray(banned_V)}
    return jax.jit(lambda *arguments: sampling.sample(*arguments, **options))(
        logits_RxV, keys, jnp.arange(count) % 7, jnp.full(count, -1)
    )


def p_value(tokens: np.ndarray, probs_V: np.ndarray, order_V: np.ndarray, bins: int = 16) -> float:
    """Of a chi-square test, with tokens that are next to each other in an order in bins of about equal probability."""
    bin_V = np.empty(len(probs_V), int)
    bin_V[order_V] = np.minimum(np.cumsum(probs_V[order_V]) * bins, bins - 1)
    expected = np.bincount(bin_V, probs_V, bins) * len(tokens)
    return float(stats.chisquare(np.bincount(bin_V[tokens], minlength=bins), expected).pvalue)


@pytest.mark.parametrize("block_tokens", [sampling.BLOCK_TOKENS, 4])
def test_tokens_have_their_exact_probabilities(monkeypatch, block_tokens):
    """24 tokens in one block, and in blocks of three of which one is banned whole."""
    monkeypatch.setattr(sampling, "BLOCK_TOKENS", block_tokens)
    assert sampling.block_count(24) == (1 if block_tokens > 24 else 8)
    logits_V = np.random.default_rng(0).normal(size=24).astype(np.float32)
    banned_V = np.isin(np.arange(24), (1, 9, 10, 11, 23))
    probs_V = np.exp(exact_log_probs(logits_V / TEMPERATURE, banned_V))
    drawn = draw(logits_V, banned_V, 40_000)
    token = np.asarray(drawn.token)
    assert not banned_V[token].any()
    allowed = np.flatnonzero(~banned_V)
    seen = np.bincount(token, minlength=24)[allowed]
    assert stats.chisquare(seen, probs_V[allowed] * len(token)).pvalue > 1e-3
    # The test notices a shift of one part in twelve.
    shifted = probs_V[allowed] * (1 + (-1.0) ** np.arange(allowed.size) / 12)
    assert stats.chisquare(seen, shifted / shifted.sum() * len(token)).pvalue < 1e-3
    np.testing.assert_allclose(drawn.log_prob, np.log(probs_V[token]), atol=1e-5)
    np.testing.assert_allclose(drawn.raw_log_prob, exact_log_probs(logits_V)[token], atol=1e-5)


def test_tokens_of_the_whole_vocabulary_have_their_exact_probabilities():
    """Blocks of 1,187 tokens; what is banned is likelier than all else, and a whole block of it."""
    assert sampling.block_count(QWEN3) == 128
    logits_V = (np.random.default_rng(1).normal(size=QWEN3) + np.linspace(-1, 1, QWEN3)).astype(np.float32)
    banned_V = (np.arange(QWEN3) >= 151_643) | (np.arange(QWEN3) // 1187 == 5)
    logits_V[banned_V] += 20
    probs_V = np.exp(exact_log_probs(logits_V / TEMPERATURE, banned_V))
    parts = [draw(logits_V, banned_V, 128, first) for first in range(0, 1536, 128)]
    drawn = sampling.Drawn(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    assert not banned_V[drawn.token].any()
    for order_V in (np.arange(QWEN3), np.argsort(probs_V)):
        assert p_value(drawn.token, probs_V, order_V) > 1e-3
        # The test notices another temperature.
        assert p_value(drawn.token, np.exp(exact_log_probs(logits_V, banned_V)), order_V) < 1e-3
    np.testing.assert_allclose(drawn.log_prob, np.log(probs_V[drawn.token]), atol=2e-5)
    np.testing.assert_allclose(drawn.raw_log_prob, exact_log_probs(logits_V)[drawn.token], atol=2e-5)


def test_a_draw_depends_on_its_key_and_place_alone():
    rng = np.random.default_rng(2)
    logits_RxV = rng.normal(size=(6, 6000)).astype(np.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(6))
    place_R, told_R = np.arange(6), np.array([-1, -1, 5, -1, 5_000, -1])
    options = {"temperature": 1.0, "banned_V": jnp.zeros(6000, bool)}
    whole = sampling.sample(logits_RxV, keys, place_R, told_R, **options)
    assert whole.token[2] == 5 and whole.token[4] == 5_000
    order = np.array([4, 1, 3])
    part = sampling.sample(logits_RxV[order], keys[order], place_R[order], told_R[order], **options)
    for found, expected in zip(part, whole, strict=True):
        np.testing.assert_array_equal(found, np.asarray(expected)[order])
    elsewhere = sampling.sample(logits_RxV, keys, place_R + 1, told_R, **options)
    assert (np.asarray(elsewhere.token) != np.asarray(whole.token)).sum() == 4
