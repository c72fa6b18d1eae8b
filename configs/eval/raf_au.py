"""Evaluation on RAF-AU: F1 of the action units that occur, over all of its pictures.

python -m actfer_jax.evaluate --config=configs/eval/raf_au.py --config.data.directory=DIR --checkpoint=POLICY --out=DIR

A policy that was trained on its training part is evaluated on the others: --config.data.split=test
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces


def get_config() -> ConfigDict:
    config = synth_faces.get_config()
    config.data = ConfigDict()
    config.data.name = "raf_au"
    config.data.split = "all"
    config.data.size = None
    config.data.directory = ""
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of the faces found
    config.data.pictures = "aligned"  # or "original"
    config.data.raf_ml = ""  # RAF-ML's folder, to ask for emotions too
    config.data.validation_share = 0.1
    config.data.test_share = 0.2
    config.data.split_seed = 0
    config.controls = ("no_tools",)
    config.benchmark.name = "raf_au"
    return config
