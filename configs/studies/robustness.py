"""Whether what was learned holds on changed pictures: light, blur, covered parts, turned and small faces, and where the
tools find no face.

    python -m actfer_jax.study --config=studies/robustness --workdir=runs/robustness --processes=2

Nothing is trained on changed pictures. UC-GRPO and GRPO have the learning rates of their configs: `ablation` searches.
"""

from ml_collections import ConfigDict

from configs.studies import common
from configs.studies.common import method

CHANGES = (
    *(("dark", "brightness", 0.4), ("bright", "brightness", 1.8)),
    *(("blur_2", "blur", 2.0), ("blur_4", "blur", 4.0)),
    *(("covered_20", "occlusion", 0.2), ("covered_35", "occlusion", 0.35)),
    *(("turned_20", "rotation", 20.0), ("turned_45", "rotation", 45.0)),
    *(("half", "scale", 0.5), ("third", "scale", 0.33)),
)
"""(name, change, strength) as in data/datasets/derived.py; a rendered picture is 512 pixels wide."""
SIZE = "data.of.size=350"


def get_config() -> ConfigDict:
    config = common.get_config()
    config.question = "Does what was learned hold on changed pictures?"
    config.seeds = (10, 11, 12)
    config.methods = (
        method("start", "start", policy="demo", seeds=(10,)),
        method("passive", "passive (no tools)", "grpo:demo", "rollout.max_turns=1"),
        method("grpo", "GRPO", "grpo:demo"),
        method("ucgrpo", "UC-GRPO", "ucgrpo:demo"),
    )
    config.evaluations = (
        _evaluation("clean", ""),
        *(_evaluation(name, change, f"data.strength={strength}") for name, change, strength in CHANGES),
        _evaluation("no_face", "", "faces.steps=('imported',)"),  # none was imported
    )
    config.figures = tuple((one.name.replace("_", " "), f"{one.name}/normal/accuracy") for one in config.evaluations)
    config.primary = "blur 2"  # which takes the fine lines, and leaves what moves a face
    config.contrasts = (("ucgrpo", "grpo"), ("ucgrpo", "passive"), ("ucgrpo", "start"))
    config.utility = ""
    return config


def _evaluation(name: str, change: str, *settings: str) -> ConfigDict:
    return ConfigDict(
        {"name": name, "config": f"eval/derived:{change}" if change else "eval/derived", "settings": (SIZE, *settings)}
    )
