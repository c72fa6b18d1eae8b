"""GSPO (arXiv 2507.18071): GRPO whose ratio, and so whose clip, is that of the whole rollout.

The advantage is GRPO's. The ratio is the geometric mean over the tokens of a rollout, and rollouts count alike:
`loss.ratio` "sequence", or "sequence_token" (GSPO-token), and `loss.aggregation` "sequence".

    A = (R - mean R) / std R
    s = exp(mean over tokens of log policy - log sampler)
    loss = -mean over rollouts of min(s A, clip(s, 1 - 3e-4, 1 + 4e-4) A)

Published: clips 3e-4 and 4e-4, no KL, each batch in four mini-batches with an update each. The paper shows curves, and
no table. With one update a batch the ratio is 1 and nothing is clipped: give `batch.updates` more, each of which
takes the whole batch. Std is unbiased, as in the public trainers.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from actfer_jax.config import above, between
from actfer_jax.rl.estimators import grpo
from actfer_jax.rl.estimators.grpo import advantages, diagnostics, init_state, token_advantages

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


@dataclass(frozen=True)
class Config(grpo.Config):
    """Constants of GSPO, as those of GRPO."""

    LOSS: ClassVar[dict[str, tuple[str, ...]]] = {
        "ratio": ("sequence", "sequence_token"),
        "aggregation": ("sequence",),
    }

    name: str = "gspo"
    std_ddof: Annotated[int, between(0, 1)] = 1
    eps: Annotated[float, above(0)] = 1e-6
