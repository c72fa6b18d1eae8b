"""Evaluation on micro-expressions, onset and apex as two pictures: CASME II, SAMM and SMIC pooled, as in MEGC 2019.

python -m actfer_jax.evaluate --config=configs/eval/micro.py --config.data.parts.casme2.directory=CASME2 \
    --config.data.parts.samm.directory=SAMM --config.data.parts.smic.directory=SMIC --checkpoint=POLICY --out=micro

This is for a policy that has learnt from none of them. Leaving one subject out, there is a policy for each person,
which learnt from all others. Each is evaluated on its person alone, and then all runs are counted as one:

python -m actfer_jax.evaluate --config=configs/eval/micro.py --config.data.name=casme2 --config.data.directory=CASME2 \
    --config.data.classes=composite --config.data.subject=sub01 --config.data.split=test --checkpoint=POLICY \
    --out=folds/sub01
python -m actfer_jax.table folds/* --pool
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces


def get_config() -> ConfigDict:
    config = synth_faces.get_config()
    cache = config.data.cache_directory  # of the faces found
    config.data = ConfigDict()
    config.data.name = "mixture"
    config.data.split = "all"
    config.data.size = None
    config.data.directory = ""
    config.data.cache_directory = cache
    config.data.parts = ConfigDict()
    for name in ("casme2", "samm", "smic"):
        config.data.parts[name] = ConfigDict()
        config.data.parts[name].name = name
        config.data.parts[name].split = "all"
        config.data.parts[name].directory = ""
        config.data.parts[name].cache_directory = cache
        config.data.parts[name].classes = "composite"
    config.data.parts.casme2.pictures = "cropped"  # or "raw"
    config.images = 2  # the onset and the apex
    config.controls = ("no_tools",)
    config.benchmark.name = "micro"
    config.benchmark.absent_class = "left_out"  # or "zero"
    return config
