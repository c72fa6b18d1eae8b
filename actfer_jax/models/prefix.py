"""What groups of rows have in common at their start: computed once for a group, with gradients.

The rollouts of a query share its prompt. The keys and values of a shared prefix are those of every row of the group
(Prefix Grouper, arXiv 2506.05433), so that the rows compute only what follows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Prefix(NamedTuple):
    """Q prefixes as the decoder takes them (`Qwen3VL.hidden`); each belongs to B / Q successive rows.

    Attributes:
      x: [Q, P, D], from `Qwen3VL.embed`.
      deepstack: [F, Q, P, D] or None, from `Qwen3VL.embed`.
      positions: [Q, P, 3].
      segment_ids: [Q, P]; 0 is padding, at the end.
    """

    x: jax.Array
    deepstack: jax.Array | None
    positions: jax.Array
    segment_ids: jax.Array


def with_prefix(prefix_QxP: jax.Array, own_BxL: jax.Array) -> jax.Array:
    """What each row shares with its group, then what is its own: [B, P + L, ...]."""
    shared_BxP = jnp.repeat(prefix_QxP, len(own_BxL) // len(prefix_QxP), axis=0)
    return jnp.concatenate([shared_BxP, own_BxL], axis=1)
