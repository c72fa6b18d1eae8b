"""Evaluation on BP4D: F1 of 12 action units, over every tenth of the coded frames of 41 people.

python -m actfer_jax.evaluate --config=configs/eval/bp4d.py --config.data.directory=DIR --checkpoint=POLICY --out=DIR

A policy that was trained on a fold is evaluated on the fold's other part: --config.data.split=test --config.data.fold=1
All 146,576 frames: --config.data.stride=1, perhaps in parts, with --shard=1/8 and so on (docs/benchmarks.md).
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces


def get_config() -> ConfigDict:
    config = synth_faces.get_config()
    config.data = ConfigDict()
    config.data.name = "bp4d"
    config.data.split = "all"
    config.data.size = None
    config.data.directory = ""
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of the faces found
    config.data.fold = 1  # whose people are the test part
    config.data.aus = "evaluated"  # or "coded": all that a frame has
    config.data.stride = 10
    config.data.frames = "frames"  # below the directory
    config.controls = ("no_tools",)
    config.benchmark.name = "bp4d"
    return config
