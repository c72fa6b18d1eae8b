"""DeepEyes (arXiv 2505.14362): a bonus for a crop, where the answer is right.

    python -m actfer_jax.train --config=configs/baselines/deepeyes.py --config.model.path=DIR --workdir=DIR

Published: 90.1% on V* (Qwen2.5-VL-7B). `rl/rewards/deepeyes.py` has the reward, and how it is fooled. What differs: the
label is right or wrong, where a language model judged; steps, batch and the tools are this project's, so that methods
compare.
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.reward = ConfigDict(
        {"name": "deepeyes", "zoom_price": 0.0, "w_accuracy": 0.8, "w_format": 0.2, "w_tool": 1.2}
    )
    config.estimator = ConfigDict({"name": "grpo", "std": "group", "std_ddof": 1, "eps": 1e-6, "forced_arm_rate": 0.0})
    config.loss.clip_high = 0.2
    config.loss.kl = 0.0
    return config
