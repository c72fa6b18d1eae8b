"""Estimators of the advantage, and rewards that rival the utility of a look, on rendered faces.

    python -m actfer_jax.study --config=studies/estimators --workdir=runs/estimators --processes=2

Each is a file of configs/baselines/, whose docstring has the paper and what differs. Learning rates are searched among
{0.5, 1, 2, 4} x that of the demo for GRPO, UC-GRPO and DAPO, and among {1, 2} x for the others.
"""

from ml_collections import ConfigDict

from configs.studies import common
from configs.studies.common import RATES, method, searched


def get_config() -> ConfigDict:
    config = common.get_config()
    config.question = "Which estimator of the advantage learns best when to look?"
    config.seeds = (10, 11, 12)
    widely, narrowly = searched(), searched(*RATES[1:3])
    config.methods = (
        method("start", "start", policy="demo", seeds=(10,)),
        method("grpo", "GRPO", "grpo:demo", search=widely),
        method("dr_grpo", "Dr. GRPO", "baselines/dr_grpo:demo", search=narrowly),
        method("dapo", "DAPO", "baselines/dapo:demo", search=widely),
        method("gspo", "GSPO", "baselines/gspo:demo", search=narrowly),
        method("rloo", "RLOO", "baselines/rloo:demo", search=narrowly),
        method("reinforce_plus_plus", "REINFORCE++", "baselines/reinforce_plus_plus:demo", search=narrowly),
        method("deepeyes", "DeepEyes' bonus", "baselines/deepeyes:demo", search=narrowly),
        method("hdpo", "HDPO", "baselines/hdpo:demo", search=narrowly),
        method("ucgrpo", "UC-GRPO", "ucgrpo:demo", search=widely),
        method("passive", "passive (no tools)", "grpo:demo", "rollout.max_turns=1", search=narrowly),
    )
    rivals = ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_plus_plus", "deepeyes", "hdpo")
    config.contrasts = tuple(("ucgrpo", rival) for rival in rivals)
    return config
