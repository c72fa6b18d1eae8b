"""What estimators share that compare the rollouts of a group and remember nothing.

Such an estimator takes all but its `Config` and its `advantages` from here.

Shapes: B queries, G rollouts of each, N = B * G rows, L tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actfer_jax.rl.estimators import Groups


class Result(NamedTuple):
    """Advantages, float32 [B, G]."""

    advantage: jax.Array


def init_state(num_classes: int) -> tuple[()]:
    """Nothing is remembered."""
    del num_classes
    return ()


def token_advantages(result: Result, groups: Groups, loss_mask_NxL: jax.Array, *, config: Any) -> jax.Array:
    """The advantage of its rollout on every policy token."""
    del groups, config
    return jnp.where(jnp.asarray(loss_mask_NxL).astype(bool), result.advantage.reshape(-1, 1), 0)


def diagnostics(result: Result, state: tuple[()], groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
    """None: what the step reports of every estimator is enough."""
    del result, state, groups, class_names
    return {}


def compared(member_BxG: np.ndarray) -> np.ndarray:
    """The members that have another one in their group, bool [B, G]."""
    return np.asarray(member_BxG & (member_BxG.sum(axis=1, keepdims=True) >= 2))


def centred(values_BxG: np.ndarray, member_BxG: np.ndarray) -> jax.Array:
    """Values less the mean of their group, float32 [B, G]; 0 where they are not `compared`."""
    member_BxG = compared(member_BxG)
    # Below the highest, so that equal values are exactly 0, which no mean can spoil.
    highest_Bx1 = np.max(values_BxG, axis=1, keepdims=True, where=member_BxG, initial=-np.inf)
    below_BxG = jnp.where(member_BxG, jnp.asarray(values_BxG - highest_Bx1, jnp.float32), 0)
    mean_Bx1 = below_BxG.sum(axis=1, keepdims=True) / np.maximum(member_BxG.sum(axis=1, keepdims=True), 1)
    return jnp.where(member_BxG, below_BxG - mean_Bx1, 0)


def standardised(values_BxG: np.ndarray, member_BxG: np.ndarray, *, ddof: int, eps: float) -> jax.Array:
    """`centred` values in units of their group's standard deviation, to which `eps` is added."""
    centred_BxG = centred(values_BxG, member_BxG)
    return centred_BxG / (spread(centred_BxG, compared(member_BxG), ddof) + eps)


def spread(centred_BxG: jax.Array, member_BxG: np.ndarray, ddof: int) -> jax.Array:
    """The standard deviation of the members of each group, from their `centred` values, float32 [B, 1]."""
    count_Bx1 = np.maximum(member_BxG.sum(axis=1, keepdims=True) - ddof, 1)
    return jnp.sqrt((centred_BxG**2).sum(axis=1, keepdims=True) / count_Bx1)
