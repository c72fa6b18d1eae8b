"""FEA-20K: accuracy, F1 of action units and ROUGE-L by the rules of its authors (docs/benchmarks.md).

python -m actfer_jax.evaluate --config=configs/eval/fea_20k.py --config.data.directory=DIR --checkpoint=PATH --out=OUT

ROUGE-L needs the package rouge-score: pip install 'actfer_jax[rouge]'
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces


def get_config() -> ConfigDict:
    config = synth_faces.get_config()
    config.data = ConfigDict()
    config.data.name = "fea_20k"
    config.data.split = "test"
    config.data.size = None
    config.data.directory = ""  # BP4D/, DISFA/ and so on lie there
    config.data.texts = ""  # the files of items, if they lie elsewhere
    config.data.train = "*Train*stage1*.jsonl"
    config.data.test = "*Test*.jsonl"
    config.data.folders = ConfigDict()  # by source, where its pictures are not in a folder of its name
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of the faces found
    config.controls = ("no_tools",)
    config.benchmark.name = "fea_20k"
    config.benchmark.aus_in = "think"  # as its authors read them; or "aus": as this package's grammar asks for them
    return config
