"""Where an estimate of the utility for each emotion pays: GRPO with gain against UC-GRPO in four corners.

    python -m actfer_jax.study --config=studies/when_calibration_helps --workdir=runs/corners --processes=2

The start looks at 5% or at half of the faces: it is the demo's policy after traces of which so many take a zoom. The
emotion says whether a look brings anything, since faces of four emotions are all subtle and the others all plain; or
the face alone does, in the world as it is, where each emotion has both. Methods differ by `estimator.beta` alone.
"""

from ml_collections import ConfigDict

from configs.studies import common
from configs.studies.common import RATES, method, searched

LOOKS = {"rarely": 0.05, "often": 0.5}
SUBTLE = ("surprise", "fear", "anger", "disgust")
PLAIN = ("neutral", "happiness", "sadness")
WORLDS: dict[str, dict[str, str]] = {
    "class": dict.fromkeys(SUBTLE, "subtle") | dict.fromkeys(PLAIN, "plain"),
    "face": {},
}


def get_config() -> ConfigDict:
    config = common.get_config()
    config.question = "Where does an estimate of the utility for each emotion pay?"
    config.seeds = (10, 11, 12)
    config.methods = tuple(_start(name, rate) for name, rate in LOOKS.items())
    config.contrasts = ()
    for looks in LOOKS:
        for world, strata in WORLDS.items():
            corner, words = f"{looks}_{world}", f"looks {looks}, by {world}"
            more = {"start": f"start_{looks}", "evaluate": _faces(strata, 2800), "search": searched(*RATES[1:3])}
            settings = _faces(strata, 6000)
            config.methods += (
                method(f"gain_{corner}", f"gain: {words}", "ucgrpo:demo", *settings, "estimator.beta=0.0", **more),
                method(f"ucgrpo_{corner}", f"UC-GRPO: {words}", "ucgrpo:demo", *settings, **more),
            )
            config.contrasts += ((f"ucgrpo_{corner}", f"gain_{corner}"),)
    return config


def _start(name: str, rate: float) -> ConfigDict:
    """The demo's policy after more traces, of which a share takes one zoom."""
    return method(
        f"start_{name}",
        f"start, looks {name}",
        "sft:demo",
        *("model.initialise=pretrained", "steps=300", "optimizer.learning_rate=5e-4", "traces.readings_steps=0"),
        *(f"traces.no_zoom={1 - rate}", "traces.two_zooms=0.0", "traces.answer_now=0.0"),
        *(
            "traces.instructed_answer=0.0",
            "traces.instructed_zoom=0.0",
            "rollout.max_turns=3",
            "rollout.max_length=208",
        ),
    )


def _faces(strata: dict[str, str], size: int) -> tuple[str, ...]:
    """Settings that choose among the first `size` faces of a split."""
    of = {"name": "synth_faces", "size": size}
    return "data.name=derived", f"data.of={of}", f"data.strata={strata}"
