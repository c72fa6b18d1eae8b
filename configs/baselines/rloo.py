"""RLOO (arXiv 2402.14740): REINFORCE with the mean of the other rollouts as its baseline.

    python -m actfer_jax.train --config=configs/baselines/rloo.py --config.model.path=DIR --workdir=DIR

Published: win rates of summaries and dialogues, which nothing here compares with. `rl/estimators/rloo.py` has formulas
and settings. What differs: rewards, prices, steps and batch are this project's, so that methods compare; the KL, of
this project's weight, is a term of the loss.
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.estimator = ConfigDict({"name": "rloo", "forced_arm_rate": 0.0})
    config.loss.aggregation = "sequence_norm"
    config.loss.norm_length = config.rollout.max_turns * config.rollout.turn_tokens
    return config
