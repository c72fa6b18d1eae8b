"""Plain GRPO: the config of UC-GRPO with calibration, gain and the later start of the decision switched off.

python -m actfer_jax.train --config=configs/grpo.py:demo --workdir=runs/grpo
"""

from ml_collections import ConfigDict

from configs import ucgrpo


def get_config(variant: str = "") -> ConfigDict:
    config = ucgrpo.get_config(variant)
    config.estimator.beta = 0.0
    config.estimator.gain = 1.0
    config.estimator.decision_start = 1
    return config
