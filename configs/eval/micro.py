"""Evaluation on micro-expressions, onset and apex as two pictures: CASME II, SAMM and SMIC pooled, as in MEGC 2019.

python -m actfer_jax.evaluate --config=configs/eval/micro.py --config.data.parts.casme2.directory=CASME2 \
    --config.data.parts.samm.directory=SAMM --config.data.parts.smic.directory=SMIC --checkpoint=POLICY --out=micro

This is for a policy that has learnt from none of them. Leaving one subject out, there is a policy for each person,
which learnt from all others. Each is evaluated on its person alone, and then all runs are counted as one:

python -m actfer_jax.evaluate --config=configs/eval/micro.py:casme2 --config.data.directory=CASME2 \
    --config.data.subject=sub01 --config.data.split=test --checkpoint=POLICY --out=folds/sub01
python -m actfer_jax.table folds/* --pool
"""

from ml_collections import ConfigDict

from configs.eval import synth_faces

COMPOSITE = ("casme2", "samm", "smic")
VARIANTS = (*COMPOSITE, "casme3", "dfme", "mmew")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", *VARIANTS):
        raise ValueError(f"there is no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    config = synth_faces.get_config()
    cache = config.data.cache_directory  # of the faces found
    if variant:
        config.data = clips(variant, cache)
        config.data.size = None
    else:
        config.data = ConfigDict()
        config.data.name = "mixture"
        config.data.split = "all"
        config.data.size = None
        config.data.directory = ""
        config.data.cache_directory = cache
        config.data.parts = ConfigDict({name: clips(name, cache) for name in COMPOSITE})
    config.images = 2  # the onset and the apex
    config.controls = ("no_tools",)
    config.benchmark.name = "micro"
    config.benchmark.absent_class = "left_out"  # or "zero"
    return config


def clips(name: str, cache: str) -> ConfigDict:
    data = ConfigDict()
    data.name = name
    data.directory = ""
    data.cache_directory = cache
    data.split = "all"  # or "test"
    data.subject = ""  # whose clips are "test"
    data.classes = "composite"  # or "own"; of casme2 and samm also "five"
    if name == "casme2":
        data.pictures = "cropped"  # or "raw"
    if name == "dfme":
        data.file = "coding.xlsx"
    return data
