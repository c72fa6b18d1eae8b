"""GRPO (arXiv 2402.03300): the reward against the mean of its group, in units of the group's spread."""

from dataclasses import dataclass
from typing import Annotated

from actfer_jax.config import above, between, one_of
from actfer_jax.rl.estimators import EstimatorConfig, Groups
from actfer_jax.rl.group_relative import Result, centred, diagnostics, init_state, standardised, token_advantages

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


@dataclass(frozen=True)
class Config(EstimatorConfig):
    """Constants of GRPO.

    Attributes:
      std: what the advantage is divided by: the spread of the "group", or nothing ("none").
      std_ddof: the variance in it is divided by the number of rollouts less this: 0 or 1.
      eps: added to that spread, above 0.
    """

    name: str = "grpo"
    std: Annotated[str, one_of("group", "none")] = "group"
    std_ddof: Annotated[int, between(0, 1)] = 0
    eps: Annotated[float, above(0)] = 1e-4


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    """Advantages of the valid rollouts of each group; 0 where there are fewer than two."""
    del step
    if config.std == "none":
        return Result(centred(groups.reward_BxG, groups.valid_BxG)), state
    scaled_BxG = standardised(groups.reward_BxG, groups.valid_BxG, ddof=config.std_ddof, eps=config.eps)
    return Result(scaled_BxG), state
