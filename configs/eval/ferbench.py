"""FERBench: a policy plays the questions, and its last turns are read by the protocol (docs/benchmarks.md).

python -m actfer_jax.evaluate --config=configs/eval/ferbench.py --config.data.directory=DIR --checkpoint=PATH --out=OUT

Published: 73.89 accuracy and 67.45 macro-F1 for ActFER (arXiv 2604.08990, with the faces of InsightFace; here: dlib),
68.84 accuracy for UniFER-7B (arXiv 2511.00389).
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces


def get_config() -> ConfigDict:
    config = synth_faces.get_config()
    config.data = ConfigDict()
    config.data.name = "ferbench"
    config.data.split = "test"
    config.data.size = None
    config.data.directory = ""  # RAF-DB/, FERPlus/, AffectNet/ and SFEW-2.0/ lie there, as the questions name pictures
    config.data.questions = ""  # the files of questions, if they lie elsewhere
    config.data.subsets = ("rafdb", "ferplus", "affectnet", "sfew_2.0")
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of the faces found
    config.controls = ()
    config.benchmark.name = "ferbench"
    config.benchmark.protocol = "reference"
    return config
