"""A study of three methods for the stand-in of its cells (stand_in_cells.py)."""

from ml_collections import ConfigDict

SEEDS = (1, 2, 3)
RATES = (1.0, 2.0, 3.0)


def get_config(**changes) -> ConfigDict:
    evaluation = {"name": "greedy", "config": "faces", "settings": ("data.size=40",)}
    search = {"key": "optimizer.learning_rate", "values": RATES}
    methods = (
        {"name": "weak", "train": "weak"},
        {"name": "strong", "title": "Strong", "train": "strong", "settings": ("loss.kl=0.5",), "search": search},
        {"name": "later", "train": "strong", "start": "weak", "seeds": (1, 2)},
    )
    return ConfigDict(
        {
            "question": "Is strong better?",
            "seeds": SEEDS,
            "methods": tuple(map(ConfigDict, methods)),
            "evaluations": (ConfigDict(evaluation),),
            "figures": (
                ("accuracy", "greedy/normal/accuracy"),
                ("subtle", "greedy/normal/strata/subtle/accuracy"),
                ("zoom", "greedy/normal/zoom/rate"),
            ),
            "primary": "accuracy",
            "contrasts": (("strong", "weak"), ("later", "weak")),
            "curves": ("reward/total",),
            "utility": "greedy/blank_crop",
            "settings": ("steps=6",),
            "selection": ConfigDict({"seeds": (100,)}),
        }
        | changes
    )
