"""RLOO (arXiv 2402.14740): REINFORCE with the mean of the other rollouts of the group as its baseline.

A rollout is one action, so that its log-probability is a sum over its tokens: `loss.aggregation` "sequence_norm", whose
constant `loss.norm_length` only scales the loss.

    A = R - mean of the other R in the group
    loss = -1 / rollouts * sum over rollouts of A * sum over tokens of log policy

Published: 2 or 4 rollouts, one update, the KL to the reference within the reward. The paper reports how often a judge
prefers its summaries and dialogues, which nothing here compares with.

What differs: the KL is a term of the loss (`loss.kl`). With one update a batch (`batch.updates` 1) the ratio is 1, and
the clipped surrogate has the gradient of REINFORCE.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from actfer_jax.rl.estimators import EstimatorConfig, Groups
from actfer_jax.rl.group_relative import Result, centred, diagnostics, init_state, token_advantages

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


@dataclass(frozen=True)
class Config(EstimatorConfig):
    """It has no constants."""

    LOSS: ClassVar[dict[str, tuple[str, ...]]] = {"aggregation": ("sequence_norm",)}

    name: str = "rloo"


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    """Advantages of the valid rollouts of each group; 0 where there are fewer than two."""
    del config, step
    count_Bx1 = groups.valid_BxG.sum(axis=1, keepdims=True)
    # The mean of the others lies below that of all, seen from R, by n / (n - 1).
    factor_Bx1 = (count_Bx1 / np.maximum(count_Bx1 - 1, 1)).astype(np.float32)
    return Result(centred(groups.reward_BxG, groups.valid_BxG) * factor_Bx1), state
