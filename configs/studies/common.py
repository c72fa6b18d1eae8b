"""What the studies of the small model share: its evaluations, figures and learning rates."""

from ml_collections import ConfigDict

RATES = tuple(8e-4 * factor for factor in (0.5, 1.0, 2.0, 4.0))
"""Learning rates of a search: 8e-4 is that of configs/ucgrpo.py:demo."""


def method(name: str, title: str, train: str = "", *settings: str, **more: object) -> ConfigDict:
    """A row of a study (`studies.config.MethodConfig`)."""
    return ConfigDict({"name": name, "title": title, "train": train, "settings": settings, **more})


def searched(*rates: float) -> ConfigDict:
    """The search of a learning rate."""
    return ConfigDict({"key": "optimizer.learning_rate", "values": rates or RATES})


def get_config() -> ConfigDict:
    """A study of the small model without its question, methods and contrasts."""
    config = ConfigDict()
    config.seeds = (10, 11, 12, 13, 14)
    config.evaluations = (
        evaluation("greedy", "data.size=700"),
        evaluation("sampled", "data.size=700", "greedy=False", "controls=()"),
    )
    config.figures = (
        ("accuracy", "greedy/normal/accuracy"),
        ("sampled", "sampled/normal/accuracy"),
        ("AU-F1", "greedy/normal/au_f1_sample"),
        ("subtle", "greedy/normal/strata/subtle/accuracy"),
        ("plain", "greedy/normal/strata/plain/accuracy"),
        ("subtle, crops grey", "greedy/blank_crop/strata/subtle/accuracy"),
        ("zoom subtle", "greedy/normal/strata/subtle/zoom_rate"),
        ("zoom plain", "greedy/normal/strata/plain/zoom_rate"),
        ("gap within class", "greedy/normal/strata/subtle/zoom_gap_within_class"),
    )
    config.primary = "accuracy"
    config.curves = ("reward/total", "reward/emotion", "zoom_rate/subtle", "zoom_rate/plain", "policy/entropy")
    config.utility = "greedy/blank_crop"
    config.settings = ()
    config.selection = ConfigDict()
    config.selection.seeds = (100,)
    config.selection.settings = ("data.split=validation", "data.size=350", "controls=()")
    return config


def evaluation(name: str, *settings: str) -> ConfigDict:
    """An evaluation on rendered faces."""
    return ConfigDict({"name": name, "config": "eval/synth_faces", "settings": settings})
