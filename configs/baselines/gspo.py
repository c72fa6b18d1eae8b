"""GSPO (arXiv 2507.18071): ratio and clip of whole rollouts.

    python -m actfer_jax.train --config=configs/baselines/gspo.py --config.model.path=DIR --workdir=DIR

Published: curves only. `rl/estimators/gspo.py` has formulas and settings. What differs: rewards, prices, steps and
batch are this project's, so that methods compare; each of the four updates of a batch takes the whole of it, not a
quarter.
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.estimator = ConfigDict({"name": "gspo", "std": "group", "std_ddof": 1, "eps": 1e-6, "forced_arm_rate": 0.0})
    config.batch.updates = 4
    config.loss.ratio = "sequence"
    config.loss.aggregation = "sequence"
    config.loss.clip_low, config.loss.clip_high = 3e-4, 4e-4
    config.loss.kl = 0.0
    return config
