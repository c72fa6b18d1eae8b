"""REINFORCE++ with the baseline of the group (arXiv 2501.03262): advantages in units of the batch's spread.

    python -m actfer_jax.train --config=configs/baselines/reinforce_plus_plus.py --config.model.path=DIR --workdir=DIR

`--config.estimator.baseline=batch` is REINFORCE++ itself. Published: 24.10 on tool use, where GRPO has 22.58.
`rl/estimators/reinforce_plus_plus.py` has formulas and settings. What differs: rewards, prices, steps, batch and the
weight of the KL are this project's, so that methods compare.
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.estimator = ConfigDict(
        {"name": "reinforce_plus_plus", "baseline": "group", "eps": 1e-4, "forced_arm_rate": 0.0}
    )
    config.loss.clip_high = 0.2
    config.loss.kl_estimator = "k2"
    return config
