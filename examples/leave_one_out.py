"""An estimator of your own: each reward against the mean of the others in its group (RLOO, arXiv 2402.14740).

    python -m actfer_jax.train --config=configs/ucgrpo.py:demo --config.estimator.name=examples.leave_one_out \\
        --workdir=runs/leave_one_out
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from actfer_jax.rl.estimators import EstimatorConfig as Config
from actfer_jax.rl.estimators import Groups

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


class Result(NamedTuple):
    advantage: jax.Array


def init_state(num_classes: int) -> tuple[()]:
    return ()


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    reward_BxG = jnp.asarray(groups.reward_BxG, jnp.float32)
    others = reward_BxG.shape[1] - 1
    centred_BxG = reward_BxG - reward_BxG.mean(axis=1, keepdims=True)
    return Result(centred_BxG * (others + 1) / others), state


def token_advantages(result: Result, groups: Groups, loss_mask_NxL: jax.Array, *, config: Config) -> jax.Array:
    return jnp.where(jnp.asarray(loss_mask_NxL).astype(bool), result.advantage.reshape(-1, 1), 0)


def diagnostics(result: Result, state: tuple[()], groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
    return {"adv/largest": float(jnp.abs(result.advantage).max())}
