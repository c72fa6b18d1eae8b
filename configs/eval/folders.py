"""Evaluation on pictures of one's own, in a folder for each emotion: `DIR/LABEL/*.jpg`, or `DIR/test/LABEL/*.jpg`.

python -m actfer_jax.evaluate --config=configs/eval/folders.py --config.data.directory=DIR --checkpoint=demo --out=DIR
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces


def get_config() -> ConfigDict:
    config = synth_faces.get_config()
    config.data = ConfigDict()
    config.data.name = "folders"
    config.data.split = "all"  # or "test" where the folders of classes are below folders of splits
    config.data.size = None
    config.data.directory = ""
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of the faces found
    return config
