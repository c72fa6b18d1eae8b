"""Attention to keys that come in blocks (Milakov & Gimelshein, arXiv 1805.02867)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30
"""The score of a key that does not count: finite, so that a fully masked row stays finite."""


class Softmax(NamedTuple):
    """Attention of M queries to the keys seen so far, in float32.

    Attributes:
      top: the highest score, [..., M, 1].
      total: the sum of exp(score - top), [..., M, 1].
      output: the sum of the values, each times its exp(score - top), [..., M, D].
    """

    top: jax.Array
    total: jax.Array
    output: jax.Array

    def add(self, scores_xMxS: jax.Array, values_xSxD: jax.Array) -> "Softmax":
        """Attention to S more keys. Where all of their scores are `MASKED`, nothing changes."""
        top = jnp.maximum(self.top, scores_xMxS.max(-1, keepdims=True))
        kept, weights = jnp.exp(self.top - top), jnp.exp(scores_xMxS - top)
        total = self.total * kept + weights.sum(-1, keepdims=True)
        return Softmax(top, total, self.output * kept + _weighted(weights, values_xSxD))

    def result(self) -> jax.Array:
        """The mean of the values by their weights."""
        return self.output / self.total


def softmax(scores_xMxS: jax.Array, values_xSxD: jax.Array) -> Softmax:
    """Attention to S keys, of which at least one is not masked for each query."""
    if scores_xMxS.shape[-1] == 1:
        shape = *scores_xMxS.shape[:-1], values_xSxD.shape[-1]
        return Softmax(
            scores_xMxS, jnp.ones_like(scores_xMxS), jnp.broadcast_to(values_xSxD.astype(jnp.float32), shape)
        )
    top = scores_xMxS.max(-1, keepdims=True)
    weights = jnp.exp(scores_xMxS - top)
    return Softmax(top, weights.sum(-1, keepdims=True), _weighted(weights, values_xSxD))


def scores(query_xMxD: jax.Array, key_xSxD: jax.Array) -> jax.Array:
    """Scaled scores [..., M, S], float32."""
    return _product(query_xMxD, jnp.swapaxes(key_xSxD, -1, -2)) * query_xMxD.shape[-1] ** -0.5


def _weighted(weights_xMxS: jax.Array, values_xSxD: jax.Array) -> jax.Array:
    return _product(weights_xMxS.astype(values_xSxD.dtype), values_xSxD)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """A batched matrix product in float32. XLA's CPU backend takes long for many small ones."""
    if 1 not in y.shape[-2:]:
        return jnp.matmul(x, y, preferred_element_type=jnp.float32)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return x * y if y.shape[-2] == 1 else (x * jnp.swapaxes(y, -1, -2)).sum(-1, keepdims=True)
