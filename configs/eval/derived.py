"""Evaluation on held-out rendered faces with changed pictures: `derived:blur`, and so on.

python -m actfer_jax.evaluate --config=configs/eval/derived.py:blur --config.data.strength=3 --checkpoint=demo --out=DIR
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces


def get_config(change: str = "") -> ConfigDict:
    config = synth_faces.get_config()
    faces = config.data
    del faces.split
    config.data = ConfigDict()
    config.data.name = "derived"
    config.data.split = "test"
    config.data.size = None
    config.data.cache_directory = faces.cache_directory
    del faces.cache_directory
    config.data.of = faces
    config.data.change = change
    config.data.strength = 1.0
    config.data.strata = ConfigDict()
    config.controls = ()
    return config
