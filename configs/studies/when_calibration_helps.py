"""Where an estimate of the utility for each emotion pays: GRPO with gain against UC-GRPO in four corners.

    python -m actfer_jax.study --config=studies/when_calibration_helps --workdir=runs/corners --processes=2

The start looks at 5% or at half of the faces: it is the demo's policy after traces of which so many take a zoom. The
emotion says whether a look brings anything, since faces of four emotions are all subtle and the others all plain; or
the face alone does, in the world as it is, where each emotion has both. Methods differ by `estimator.beta` alone.
"""

from ml_collections import ConfigDict

from configs.studies import common
from configs.studies.common import RATES, method, searched

RATE_OF_LOOKS = {"rarely": 0.05, "often": 0.5}
SUBTLE = ("surprise", "fear", "anger", "disgust")
PLAIN = ("neutral", "happiness", "sadness")
BY_CLASS = {emotion: "subtle" for emotion in SUBTLE} | {emotion: "plain" for emotion in PLAIN}
WORLDS: dict[str, dict[str, str]] = {"class": BY_CLASS, "face": {}}
SFT_STEPS = 300


def get_config() -> ConfigDict:
    config = common.get_config()
    config.question = "Where does an estimate of the utility for each emotion pay?"
    config.seeds = (10, 11, 12)
    methods, contrasts = [], []
    for often, rate in RATE_OF_LOOKS.items():
        methods.append(
            method(
                f"start_{often}",
                f"start, looks {often}",
                "sft:demo",
                *("model.initialise=pretrained", f"steps={SFT_STEPS}", "optimizer.learning_rate=5e-4"),
                *("traces.readings_steps=0", "traces.two_zooms=0.0", f"traces.no_zoom={1 - rate}"),
                *("traces.answer_now=0.0", "traces.instructed_answer=0.0", "traces.instructed_zoom=0.0"),
                *("rollout.max_turns=3", "rollout.max_length=208"),
            )
        )
    for often in RATE_OF_LOOKS:
        for world, strata in WORLDS.items():
            settings = ("data.name=derived", *_faces("train", strata), "data.size=1920", "data.of.size=6000")
            more = {
                "start": f"start_{often}",
                "evaluate": _faces("test", strata),
                "search": searched(*RATES[1:3]),
            }
            corner, words = f"{often}_{world}", f"looks {often}, by {world}"
            methods.append(method(f"gain_{corner}", f"gain: {words}", "ucgrpo:demo", "estimator.beta=0.0", *settings, **more))
            methods.append(method(f"ucgrpo_{corner}", f"UC-GRPO: {words}", "ucgrpo:demo", *settings, **more))
            contrasts.append((f"ucgrpo_{corner}", f"gain_{corner}"))
    config.methods = tuple(methods)
    config.contrasts = tuple(contrasts)
    return config
