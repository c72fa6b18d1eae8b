"""Do adapters learn what all parameters do? On rendered faces, by UC-GRPO.

    python -m actfer_jax.study --config=studies/adapters --workdir=runs/adapters

The learning rate of adapters is ten times that of all parameters, and was not searched for either. 7 cells of up to 25
minutes on one core.
"""

from ml_collections import ConfigDict

from configs.studies import common
from configs.studies.common import method


def get_config() -> ConfigDict:
    config = common.get_config()
    config.question = "Does UC-GRPO learn with adapters of rank 16 what it learns with all parameters?"
    config.seeds = (10, 11, 12)
    config.methods = (
        method("start", "start", policy="demo", seeds=(10,)),
        method("all", "all parameters", "ucgrpo:demo"),
        method("lora", "LoRA", "ucgrpo:demo+lora"),
    )
    config.contrasts = (("lora", "all"), ("lora", "start"))
    return config
