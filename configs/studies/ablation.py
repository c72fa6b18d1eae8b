"""What each part of UC-GRPO brings, on rendered faces.

    python -m actfer_jax.study --config=studies/ablation --workdir=runs/ablation --processes=2

A row adds one part to the row above it, and has its own best learning rate of {0.5, 1, 2, 4} x that of the demo. The
gain comes with the later start of the decision, before which it is 0. UC-GRPO and what it differs from by the
calibration alone have eight seeds, the others five. 61 cells of up to 15 minutes on one core.
"""

from ml_collections import ConfigDict

from configs.studies import common
from configs.studies.common import method, searched

EMOTION_ALONE = ("reward.w_au=0.0", "reward.w_region=0.0", "reward.w_emotion=0.85")
MORE_SEEDS = tuple(range(10, 18))


def get_config() -> ConfigDict:
    config = common.get_config()
    config.question = "What does each part of UC-GRPO bring?"
    rate = searched()
    config.methods = (
        method("start", "start", policy="demo", seeds=(10,)),
        method("passive", "passive (no tools)", "grpo:demo", "rollout.max_turns=1", search=rate),
        method("grpo", "GRPO", "grpo:demo", *EMOTION_ALONE, search=rate),
        method("gain", "+ gain", "ucgrpo:demo", *EMOTION_ALONE, "estimator.beta=0.0", search=rate),
        method("levels", "+ AU levels", "ucgrpo:demo", "estimator.beta=0.0", search=rate, seeds=MORE_SEEDS),
        method("ucgrpo", "+ calibration = UC-GRPO", "ucgrpo:demo", search=rate, seeds=MORE_SEEDS),
        method("forced", "+ forced arms", "ucgrpo:demo", "estimator.forced_arm_rate=0.25", search=rate),
    )
    config.contrasts = (
        ("gain", "grpo"),
        ("levels", "gain"),
        ("ucgrpo", "levels"),
        ("forced", "ucgrpo"),
        ("ucgrpo", "passive"),
    )
    return config
