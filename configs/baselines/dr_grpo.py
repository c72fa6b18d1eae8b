"""Dr. GRPO (arXiv 2503.20783): no division by the spread of a group, nor by the length of a rollout.

    python -m actfer_jax.train --config=configs/baselines/dr_grpo.py --config.model.path=DIR --workdir=DIR

Published: 43.3% on AIME 2024 (Qwen2.5-Math-7B). `rl/estimators/dr_grpo.py` has formulas and settings. What differs:
rewards, prices, steps and batch are this project's, so that methods compare; 3000 tokens became what a rollout may
write here.
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.estimator = ConfigDict({"name": "dr_grpo", "forced_arm_rate": 0.0})
    config.loss.aggregation = "sequence_norm"
    config.loss.norm_length = config.rollout.max_turns * config.rollout.turn_tokens
    config.loss.clip_high = 0.2
    config.loss.kl = 0.0
    return config
