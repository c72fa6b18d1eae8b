"""The configs of examples/reproduce.sh: training as ActFER's, with action units of LibreFace (docs/reproduce.md).

    python -m actfer_jax.train --config=examples/reproduce.py:sft:/data --workdir=runs/reproduce/sft

`/data` has the sets in the folders that docs/data.md says of FERBench, and `libreface/` in each training set.
"""

from ml_collections import ConfigDict

from configs import sft, ucgrpo
from configs.studies.actfer import SETS

ALGORITHMS = {"sft": sft, "ucgrpo": ucgrpo}


def get_config(variant: str) -> ConfigDict:
    algorithm, _, data = variant.partition(":")
    config = ALGORITHMS[algorithm].get_config("ferbench")
    config.seed = 10
    questions = f"{data}/UniFER"
    config.data.exclude = (f"ferbench:{data},questions={questions}",)
    for name, folder in SETS.items():
        config.data.parts[name].directory = f"{data}/{folder}"
        config.data.parts[name].annotations = ConfigDict({"name": "libreface", "file": "libreface"})
    config.evaluation.data.directory = data
    config.evaluation.data.questions = questions
    return config
