"""Supervised cold start: traces that teach how to look.

Qwen3-VL-4B on a pod:

    python -m actfer_jax.train --config=configs/sft.py --config.model.path=DIR --workdir=DIR

On RAF-DB, FER+ and AffectNet, which need action units of an annotator or `--config.rollout.ask_aus=False`
(docs/data.md has the whole command):

    python -m actfer_jax.train --config=configs/sft.py:ferbench --config.data.parts.raf_db.directory=DIR ...

The small model from nothing, over an hour on two CPU cores:

    python -m actfer_jax.train --config=configs/sft.py:demo --workdir=runs/sft

The same on the second edition of the rendered faces:

    python -m actfer_jax.train --config=configs/sft.py:demo_2 --workdir=runs/sft_2
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.get_config(variant)
    config.algorithm = "sft"
    config.steps = 2000

    config.traces = ConfigDict()
    config.traces.readings_steps = 0
    config.traces.readings_views = ("aligned", "brows", "eyes", "nose", "cheeks", "mouth", "chin")
    config.traces.readings_length = 48
    config.traces.readings_stratum = ""
    config.traces.no_zoom = 0.3
    config.traces.answer_now = 0.05
    config.traces.instructed_answer = 0.05
    config.traces.two_zooms = 0.3
    config.traces.instructed_zoom = 0.1
    config.traces.zoom_regions = "any"
    config.traces.file = ""  # of `python -m actfer_jax.traces`, or of your own (docs/cold_start.md)
    config.traces.loss_on_prompt = False

    config.batch.queries = 64
    config.batch.rollouts = 1
    config.batch.length = 2304  # a trace of two zooms has short turns; `rehearse` says how long its row is
    config.batch.length_buckets = ()
    if "one_device" in common.names(variant):
        config.batch.microbatches = 32  # two rows at a time
    config.optimizer.learning_rate = 1e-4 if "lora" in config else 1e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50

    if common.is_demo(variant):
        config.steps = 2200
        config.model.initialise = "pretrained" if "lora" in config else "random"
        config.data.size = 12_000
        config.traces.readings_steps = 1200
        config.batch.queries = 32
        config.batch.microbatches = 2
        config.batch.length = 192
        config.rollout.max_turns = 4  # traces take up to two zooms
        config.rollout.max_length = 224
        config.rollout.temperature = 1.0
        config.optimizer.learning_rate = 2e-3
        config.optimizer.weight_decay = 0.01
        config.optimizer.b1, config.optimizer.eps = 0.9, 1e-8
        config.checkpoint.every = 100
        config.logging.every = 10
    if "demo_2" in common.names(variant):
        config.traces.readings_views = ("aligned", "busy")
        config.traces.answer_now = 0.15  # what is plain is to be read from the scene
        config.rollout.max_length = 272
        config.batch.length = 224
    return config
