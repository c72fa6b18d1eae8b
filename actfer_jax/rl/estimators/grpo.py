"""GRPO (arXiv 2402.03300): the reward against the mean of its group, in units of the group's spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actfer_jax.config import above, between, one_of
from actfer_jax.rl.estimators import EstimatorConfig, Groups


@dataclass(frozen=True)
class Config(EstimatorConfig):
    """Constants of GRPO.

    Attributes:
      std: what the advantage is divided by: the spread of the "group", or nothing ("none", Dr. GRPO, arXiv 2503.20783).
      std_ddof: the variance in it is divided by the number of rollouts less this: 0 or 1.
      eps: added to that spread, above 0.
    """

    name: str = "grpo"
    std: Annotated[str, one_of("group", "none")] = "group"
    std_ddof: Annotated[int, between(0, 1)] = 0
    eps: Annotated[float, above(0)] = 1e-4


class Result(NamedTuple):
    """Advantages, float32 [B, G]."""

    advantage: jax.Array


def init_state(num_classes: int) -> tuple[()]:
    """Nothing is remembered."""
    del num_classes
    return ()


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    """Advantages of the valid rollouts of each group; 0 where there are fewer than two."""
    del step
    count_Bx1 = groups.valid_BxG.sum(axis=1, keepdims=True)
    valid_BxG = groups.valid_BxG & (count_Bx1 >= 2)
    reward_BxG = jnp.asarray(groups.reward_BxG, jnp.float32)
    # Below the highest, so that equal rewards are exactly 0, which no mean can spoil.
    highest_Bx1 = jnp.max(reward_BxG, axis=1, keepdims=True, where=valid_BxG, initial=-jnp.inf)
    reward_BxG = jnp.where(valid_BxG, reward_BxG - highest_Bx1, 0)
    mean_Bx1 = reward_BxG.sum(axis=1, keepdims=True) / np.maximum(count_Bx1, 1)
    centred_BxG = jnp.where(valid_BxG, reward_BxG - mean_Bx1, 0)
    if config.std == "group":
        squares_Bx1 = (centred_BxG**2).sum(axis=1, keepdims=True)
        centred_BxG /= jnp.sqrt(squares_Bx1 / np.maximum(count_Bx1 - config.std_ddof, 1)) + config.eps
    return Result(centred_BxG), state


def token_advantages(result: Result, groups: Groups, loss_mask_NxL: jax.Array, *, config: Config) -> jax.Array:
    """The advantage of its rollout on every policy token."""
    del groups, config
    return jnp.where(jnp.asarray(loss_mask_NxL).astype(bool), result.advantage.reshape(-1, 1), 0)


def diagnostics(result: Result, state: tuple[()], groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
    """None: what the step reports of every estimator is enough."""
    del result, state, groups, class_names
    return {}
