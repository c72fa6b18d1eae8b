"""DAPO (arXiv 2503.14476): GRPO on groups that have something to teach.

A group whose rewards are all equal has no advantage. DAPO samples further questions until every group of the batch has
some (dynamic sampling). The clip is wider above than below, and every token of the batch counts alike:
`loss.clip_high` 0.28 above `loss.clip_low` 0.2, `loss.aggregation` "token".

    A = (R - mean R) / std R,  of groups with 0 < number of right answers < rollouts
    loss = -1 / tokens * sum over rollouts and tokens of min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A)

Published: 16 rollouts of each of 512 questions a step, 16 updates of 512 rollouts, learning rate 1e-6 constant, no KL,
at most 10 batches sampled for one that is trained on; 50 points on AIME 2024 with Qwen2.5-32B.

What differs: a group is sampled again where its rewards are equal, which is the same for the paper's reward of right or
wrong. Groups that are still without spread after `refills` further batches stay, with advantage 0, where the public
trainer stops. There is no penalty on long answers: a turn is cut at `rollout.turn_tokens`, and a cut answer has no
format. Std is unbiased, as in the public trainer.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from actfer_jax.config import above, at_least, between
from actfer_jax.rl.estimators import grpo
from actfer_jax.rl.estimators.grpo import advantages, diagnostics, init_state, token_advantages

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


@dataclass(frozen=True)
class Config(grpo.Config):
    """Constants of DAPO; those of GRPO, and more.

    Attributes:
      refills: how often a step samples again at most, other samples in place of those whose rewards were all equal.
    """

    LOSS: ClassVar[dict[str, tuple[str, ...]]] = {"aggregation": ("token",)}

    name: str = "dapo"
    std_ddof: Annotated[int, between(0, 1)] = 1
    eps: Annotated[float, above(0)] = 1e-6
    refills: Annotated[int, at_least(0)] = 9
