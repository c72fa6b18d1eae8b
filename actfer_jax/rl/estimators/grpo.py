"""GRPO (arXiv 2402.03300): the reward against the mean of its group, in units of the group's spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from actfer_jax.config import above, one_of
from actfer_jax.rl.estimators import EstimatorConfig, Groups


@dataclass(frozen=True)
class Config(EstimatorConfig):
    """Constants of GRPO.

    Attributes:
      std: what the advantage is divided by: the spread of the "group", or nothing ("none", Dr. GRPO, arXiv 2503.20783).
      eps: added to that spread, above 0.
    """

    name: str = "grpo"
    std: Annotated[str, one_of("group", "none")] = "group"
    eps: Annotated[float, above(0)] = 1e-4


class Result(NamedTuple):
    """Advantages, float32 [B, G]."""

    advantage: jax.Array


def init_state(num_classes: int) -> tuple[()]:
    """Nothing is remembered."""
    del num_classes
    return ()


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    """Advantages of each group by itself."""
    del step
    reward_BxG = jnp.asarray(groups.reward_BxG, jnp.float32)
    centred_BxG = reward_BxG - reward_BxG.mean(axis=1, keepdims=True)
    if config.std == "group":
        centred_BxG = centred_BxG / (centred_BxG.std(axis=1, keepdims=True) + config.eps)
    return Result(centred_BxG), state


def token_advantages(result: Result, groups: Groups, loss_mask_NxL: jax.Array, *, config: Config) -> jax.Array:
    """The advantage of its rollout on every policy token."""
    del groups, config
    return jnp.where(jnp.asarray(loss_mask_NxL).astype(bool), result.advantage.reshape(-1, 1), 0)


def diagnostics(result: Result, state: tuple[()], groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
    """None: what the step reports of every estimator is enough."""
    del result, state, groups, class_names
    return {}
