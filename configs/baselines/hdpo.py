"""HDPO (arXiv 2604.08545): few tool calls, learned from right answers alone.

    python -m actfer_jax.train --config=configs/baselines/hdpo.py --config.model.path=DIR --workdir=DIR

Published: tool calls fell from 98% to 2% (Qwen3-VL-8B). `rl/estimators/hdpo.py` has formulas and settings. What
differs: the label is right or wrong, where a language model judged; steps, batch and the tools are this project's, so
that methods compare. The reward is the published one, without action units and without a price.
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.reward.w_format, config.reward.w_emotion = 0.1, 0.9
    config.reward.w_tool = config.reward.w_au = config.reward.w_region = config.reward.zoom_price = 0.0
    config.estimator = ConfigDict(
        {"name": "hdpo", "w_accuracy": 1.0, "w_tool": 0.1, "eps": 1e-6, "forced_arm_rate": 0.0}
    )
    config.loss.clip_high = 0.2
    config.loss.kl = 0.0
    return config
