"""The rows of ActFER's tables (arXiv 2604.08990), with the same pictures and budget for each, Qwen3-VL-4B on a pod.

    python -m actfer_jax.study --config=studies/actfer:/data --workdir=runs/actfer --dry_run
    python -m actfer_jax.study --config=studies/actfer:/data --workdir=runs/actfer "--cells=base_*/*"

The first prints every command and runs none; the second gives the rows without training.

`/data` has RAF-DB, FERPlus, AffectNet and SFEW-2.0 as docs/data.md says of FERBench and of each set, DISFA, and UniFER
with the questions of FERBench. RAF-DB, FER+ and AffectNet have no action units: those of LibreFace are read, from
`libreface/` in each, and every row that learns from them carries that mark. All rows train on the same pictures,
without those of FERBench.

Budget of a seed: supervised rows take 2,000 steps of 64 pictures at a learning rate of 1e-5 (128,000 traces); rows from
rollouts begin with the traces' policy and take 500 steps of 32 pictures x 8 rollouts at 1e-6 (128,000 episodes). Hours
are not known, since nothing here was run at this size: `compile_check` estimates the seconds of a step on a topology,
before anyone pays. Each policy then answers FERBench's 11,072 questions and reads every tenth frame of DISFA.

Published: 73.89 on FERBench and 58.2 on DISFA for ActFER, with the faces of InsightFace (here: dlib); 38.1 on DISFA for
its base, which the row of the untrained base is to meet first. A pitch is original pixels per hundred pixels of a zoom:
the crops of RAF-DB and FER+ are 100 and 48 pixels wide, so that a zoom shows nothing new there.

The base without tools is asked through a server (docs/endpoint.md) that has the checkpoint under this name:

    vllm serve Qwen/Qwen3-VL-4B-Instruct --port 8000
"""

from ml_collections import ConfigDict

from configs import common
from configs.studies.common import method

BASE = "Qwen/Qwen3-VL-4B-Instruct"
SERVER = "http://localhost:8000/v1"
SETS = {"raf_db": "RAF-DB", "fer_plus": "FERPlus", "affectnet": "AffectNet"}
SUBSETS = ("rafdb", "ferplus", "affectnet", "sfew_2.0")

SUPERVISED = ("steps=2000", "batch.queries=64", "optimizer.learning_rate=1e-5")
FROM_ROLLOUTS = ("steps=500", "batch.queries=32", "batch.rollouts=8", "optimizer.learning_rate=1e-6")
LABEL_ALONE = (
    *("rollout.format=passive", "rollout.max_turns=1", "rollout.ask_aus=False"),
    *("traces.no_zoom=1.0", "traces.answer_now=1.0", "traces.instructed_answer=0.0"),
)


def get_config(data: str = "/data") -> ConfigDict:
    config = ConfigDict()
    config.question = "Does looking, learned by UC-GRPO, read faces better than the same model without?"
    config.seeds = (10, 11, 12)
    config.settings = ("data.name=mixture", f"data.exclude=('ferbench:{data},questions={data}/UniFER',)")
    plain, marked = _parts(data), _parts(data, annotations={"name": "libreface", "file": "libreface"})
    model = f"model.path={BASE}"
    passive = ("endpoint.passive=True", "endpoint.ask_aus=False", "controls=()")
    config.methods = (
        method("base_passive", "base, passive", policy=BASE, endpoint=SERVER, evaluate=passive, seeds=(10,)),
        method("base_tools", "base with tools", policy=BASE, seeds=(10,)),
        method("labels", "SFT, label alone", "sft:ferbench", model, plain, *SUPERVISED, *LABEL_ALONE),
        method("traces", "SFT, traces", "sft:ferbench", model, *SUPERVISED, marked),
        method("grpo", "GRPO", "grpo:ferbench", *FROM_ROLLOUTS, marked, start="traces"),
        method("ucgrpo", "UC-GRPO", "ucgrpo:ferbench", *FROM_ROLLOUTS, marked, start="traces"),
    )
    config.evaluations = (
        _evaluation("ferbench", f"data.directory={data}", f"data.questions={data}/UniFER"),
        _evaluation("disfa", f"data.directory={data}/DISFA"),
    )
    config.figures = (
        ("FERBench", "ferbench/normal/overall/accuracy"),
        ("macro-F1", "ferbench/normal/overall/macro_f1"),
        *(
            (f"{subset}{words}", f"ferbench/normal/subsets/{subset}/{key}")
            for subset in SUBSETS
            for words, key in (("", "accuracy"), (", zoom", "zoom_rate"), (", pitch", "zoom_pitch"))
        ),
        ("DISFA, F1", "disfa/normal/f1"),
    )
    config.primary = "FERBench"
    config.contrasts = (
        ("ucgrpo", "grpo"),
        ("ucgrpo", "traces"),
        ("traces", "labels"),
        ("ucgrpo", "base_passive"),
        ("ucgrpo", "base_tools"),
    )
    config.curves = ("reward/total", "reward/emotion", "zoom_rate/raf_db", "zoom_rate/affectnet", "policy/entropy")
    return config


def _parts(data: str, **more: object) -> str:
    """The setting of the training sets' directories, with more keys for each."""
    parts = common.get_config("ferbench").data.parts.to_dict()
    for name, folder in SETS.items():
        parts[name] |= {"directory": f"{data}/{folder}", **more}
    return f"data.parts={parts}"


def _evaluation(name: str, *settings: str) -> ConfigDict:
    return ConfigDict({"name": name, "config": f"eval/{name}", "settings": ("dtype=bfloat16", *settings)})
