"""An estimator of your own: each reward against the mean of the others in its group (RLOO, arXiv 2402.14740).

    python -m actfer_jax.train --config=configs/ucgrpo.py:demo --config.estimator.name=examples.leave_one_out \\
        --workdir=runs/leave_one_out
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actfer_jax.rl.estimators import EstimatorConfig as Config
from actfer_jax.rl.estimators import Groups

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


class Result(NamedTuple):
    advantage: jax.Array


def init_state(num_classes: int) -> tuple[()]:
    return ()


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    valid_BxG = groups.valid_BxG
    count_Bx1 = valid_BxG.sum(axis=1, keepdims=True)
    reward_BxG = jnp.where(valid_BxG, jnp.asarray(groups.reward_BxG, jnp.float32), 0)
    centred_BxG = jnp.where(valid_BxG, reward_BxG - reward_BxG.sum(axis=1, keepdims=True) / np.maximum(count_Bx1, 1), 0)
    return Result(centred_BxG * (count_Bx1 / np.maximum(count_Bx1 - 1, 1)).astype(np.float32)), state


def token_advantages(result: Result, groups: Groups, loss_mask_NxL: jax.Array, *, config: Config) -> jax.Array:
    return jnp.where(jnp.asarray(loss_mask_NxL).astype(bool), result.advantage.reshape(-1, 1), 0)


def diagnostics(result: Result, state: tuple[()], groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
    return {"adv/largest": float(jnp.abs(result.advantage).max())}
