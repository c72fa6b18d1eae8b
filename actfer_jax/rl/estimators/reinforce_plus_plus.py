"""REINFORCE++ (arXiv 2501.03262): advantages in units of the spread of the whole batch, not of one group.

    A = (A' - mean A') / std A',  mean and std over the batch
    A' = R - mean R of the group ("REINFORCE++ w/ Baseline", the paper's choice for groups), or A' = R ("REINFORCE++")

Published: with the baseline the KL to the reference is a term of the loss with the estimator k2 (`loss.kl_estimator`);
without, it is within the reward of each token (k1). Tool use, mean of the paper's benchmarks: 24.10 with the baseline,
22.58 by GRPO.

What differs: the KL is a term of the loss in both. Mean and std are over rollouts, where the public trainers take every
token of a batch, so that long rollouts weigh more in them.
"""

from dataclasses import dataclass
from typing import Annotated

from actfer_jax.config import above, one_of
from actfer_jax.rl.estimators import EstimatorConfig, Groups
from actfer_jax.rl.group_relative import (
    Result,
    centred,
    compared,
    diagnostics,
    init_state,
    spread,
    token_advantages,
)

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


@dataclass(frozen=True)
class Config(EstimatorConfig):
    """Constants of REINFORCE++.

    Attributes:
      baseline: the mean that is taken off a reward: of its "group", or of the "batch".
      eps: added to the spread, above 0.
    """

    name: str = "reinforce_plus_plus"
    baseline: Annotated[str, one_of("group", "batch")] = "group"
    eps: Annotated[float, above(0)] = 1e-4


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    """Advantages of the valid rollouts; with the baseline of the group, 0 where that has fewer than two."""
    del step
    shape = groups.valid_BxG.shape
    by = shape if config.baseline == "group" else (1, -1)
    reward, valid = groups.reward_BxG.reshape(by), groups.valid_BxG.reshape(by)
    # Where each group's mean is 0, so is the batch's.
    centred_1xN = centred(reward, valid).reshape(1, -1)
    scaled_1xN = centred_1xN / (spread(centred_1xN, compared(valid).reshape(1, -1), ddof=0) + config.eps)
    return Result(scaled_1xN.reshape(shape)), state
