"""The cheapest studies there are, on rendered faces, three steps each: two methods and two seeds, or two cells."""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.question = "Does a study work?"
    config.seeds = (1, 2)
    method = {
        "train": "configs/ucgrpo.py:demo",
        "settings": ("estimator.decision_start=1", "estimator.n_min=0", "estimator.ramp=0"),
    }
    config.methods = (
        ConfigDict({"name": "grpo", "title": "GRPO", "train": "configs/grpo.py:demo"}),
        ConfigDict(
            {
                "name": "ucgrpo",
                "title": "UC-GRPO",
                **method,
                "search": {"key": "optimizer.learning_rate", "values": (8e-4, 16e-4)},
            }
        ),
        ConfigDict({"name": "start", "policy": "demo", "seeds": (1,)}),
    )
    config.evaluations = (
        ConfigDict(
            {
                "name": "greedy",
                "config": "configs/eval/synth_faces.py",
                "settings": ("data.size=7", "queries=7", "controls=('blank_crop',)"),
            }
        ),
    )
    config.figures = (
        ("accuracy", "greedy/normal/accuracy"),
        ("AU-F1", "greedy/normal/au_f1_sample"),
        ("zoom", "greedy/normal/zoom/rate"),
    )
    config.primary = "accuracy"
    config.contrasts = (("ucgrpo", "grpo"), ("ucgrpo", "start"))
    config.curves = ("reward/total", "zoom_rate/subtle")
    config.utility = "greedy/blank_crop"
    config.settings = (
        *("steps=3", "batch.queries=2", "batch.rollouts=4", "rollout.fill_rows=4", "data.size=14"),
        *("checkpoint.every=1", "optimizer.warmup_steps=0"),
    )
    config.selection = ConfigDict({"seeds": (100,), "settings": ("data.split=validation",)})
    if variant == "two_cells":
        config.methods = (ConfigDict({"name": "sft", "train": "configs/sft.py:demo"}),)
        config.evaluations[0].settings = ("data.size=4", "queries=4", "controls=()")
        config.contrasts, config.curves, config.utility = (), ("sft/loss",), ""
        config.settings = (
            *("steps=3", "batch.queries=4", "batch.microbatches=1", "data.size=14", "traces.readings_steps=0"),
            *("checkpoint.every=1", "logging.every=1", "model.initialise=pretrained"),
        )
    return config
