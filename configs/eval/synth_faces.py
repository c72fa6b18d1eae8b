"""Evaluation on held-out rendered faces, 100 of each emotion.

python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --checkpoint=demo --out=evaluation
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "synth_faces"
    config.data.split = "test"
    config.data.size = 700
    config.data.directory = ""  # of a data set with files of its own; rendered faces have none
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of what is rendered
    config.faces = ConfigDict()  # each step where those before it found nothing; "imported" is another
    config.faces.steps = ("hog", "hog_enlarged", "rotated", "cnn")
    config.faces.hog_pixels = 2**20
    config.faces.cnn_pixels = 2**18
    # Beside the policy as it is: told to answer at once; zoomed views greyed; zoomed views without their finer pixels.
    config.controls = ("no_tools", "blank_crop", "low_res_crop")
    config.queries = 64  # pictures at a time
    config.seed = 0  # of the bootstrap intervals, and of the sampling
    config.greedy = True  # or sample, as in training
    config.dtype = "float32"
    config.benchmark = ConfigDict()  # what is measured
    config.benchmark.name = "recognition"
    return config
