"""DAPO (arXiv 2503.14476): groups without spread are sampled again, and the clip is wider above.

    python -m actfer_jax.train --config=configs/baselines/dapo.py --config.model.path=DIR --workdir=DIR

Published: 50 points on AIME 2024 (Qwen2.5-32B). `rl/estimators/dapo.py` has formulas and settings. What differs:
rewards, prices, steps and batch are this project's, so that methods compare; one update a batch, not 16; no penalty on
long answers. A step samples up to ten times as much as one of GRPO.
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.estimator = ConfigDict(
        {"name": "dapo", "std": "group", "std_ddof": 1, "eps": 1e-6, "refills": 9, "forced_arm_rate": 0.0}
    )
    config.loss.kl = 0.0
    return config
