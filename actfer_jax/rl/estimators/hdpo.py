"""HDPO (arXiv 2604.08545, Metis): few tool calls, among right answers only.

A price on tools within the reward is drowned by the spread of being right, or keeps a policy from tools that it needs.
HDPO compares accuracy among all rollouts of a group, and economy among those alone that were right, the qualifying set
Q; the two advantages are added with weights. So a rollout is never reinforced for being cheap and wrong.

    A = w_accuracy (R - mean R) / std R + w_tool [in Q] (E - mean E) / std E,  E = 1 / (calls + 1),  both over Q

The second term is 0 where Q has fewer than two.

Published: R = 0.9 right + 0.1 format, w_accuracy 1, w_tool 0.1, 16 rollouts of each of 128 questions a step, learning
rate 1e-6, no KL. With Qwen3-VL-8B, tool calls fell from 98% to 2%.

What differs: the paper adds two losses, each with its own clip; with one update a batch (`batch.updates` 1) nothing is
clipped, and the gradient is the same. Right is a right emotion in the right format, where a judge said so; every call
counts, executed or not. Std is unbiased, as in the public trainers; which one the paper takes was not to be found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import numpy as np

from actfer_jax.config import above, at_least
from actfer_jax.rl.estimators import EstimatorConfig, Groups
from actfer_jax.rl.group_relative import init_state, standardised, token_advantages

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


@dataclass(frozen=True)
class Config(EstimatorConfig):
    """Constants of HDPO.

    Attributes:
      w_accuracy, w_tool: weights of the two advantages, at least 0.
      eps: added to both spreads, above 0.
    """

    name: str = "hdpo"
    w_accuracy: Annotated[float, at_least(0)] = 1.0
    w_tool: Annotated[float, at_least(0)] = 0.1
    eps: Annotated[float, above(0)] = 1e-6


class Result(NamedTuple):
    """Advantages and their second part, float32 [B, G]."""

    advantage: jax.Array
    economy: jax.Array


def advantages(groups: Groups, state: tuple[()], *, config: Config, step: int) -> tuple[Result, tuple[()]]:
    """Advantages of the valid rollouts of each group; 0 where there are fewer than two."""
    del step
    accuracy_BxG = standardised(groups.reward_BxG, groups.valid_BxG, ddof=1, eps=config.eps)
    qualifying_BxG = groups.valid_BxG & groups.right_BxG
    economy_BxG = config.w_tool * standardised(1 / (groups.calls_BxG + 1), qualifying_BxG, ddof=1, eps=config.eps)
    return Result(config.w_accuracy * accuracy_BxG + economy_BxG, economy_BxG), state


def diagnostics(result: Result, state: tuple[()], groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
    """`adv/economy`: mean magnitude of the part from the number of calls."""
    del state, groups, class_names
    return {"adv/economy": float(np.abs(result.economy).mean())}
