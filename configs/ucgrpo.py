"""UC-GRPO: reinforcement learning of when and where to look.

Qwen3-VL-4B on a pod:

    python -m actfer_jax.train --config=configs/ucgrpo.py --config.model.path=DIR --workdir=DIR

The small model of the package on two CPU cores, in minutes:

    python -m actfer_jax.train --config=configs/ucgrpo.py:demo --workdir=runs/ucgrpo
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "demo"):
        raise ValueError(f"configs/ucgrpo.py has no variant {variant!r}; it has: demo")
    config = ConfigDict()
    config.algorithm = "rl"
    config.seed = 0
    config.steps = 500

    config.model = ConfigDict()
    config.model.path = ""  # of a Qwen3-VL: a Hugging Face directory, a name on the hub, gs://..., or "demo"
    config.model.initialise = "pretrained"
    config.model.dtype = "bfloat16"  # of the computation
    config.model.param_dtype = "float32"
    config.model.remat = "full"
    config.model.landmarks = ""  # dlib's 68 landmarks: a file, or what is installed

    config.data = ConfigDict()
    config.data.name = "synth_faces"
    config.data.split = "train"
    config.data.size = 16_000
    config.data.directory = ""  # of a data set with files of its own; rendered faces have none
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of what is rendered, and of the faces found

    config.views = ConfigDict()  # in pixels; a token of Qwen3-VL is 32 x 32
    config.views.multiple = 32
    config.views.scene_min_pixels = 256 * 256
    config.views.scene_max_pixels = 512 * 32 * 32
    config.views.aligned_side = 256
    config.views.zoom_min_pixels = 256 * 256
    config.views.zoom_max_pixels = 256 * 32 * 32

    config.rollout = ConfigDict()
    config.rollout.prompt_style = "full"
    config.rollout.max_turns = 4
    config.rollout.prompt_tokens = 1280
    config.rollout.turn_tokens = 192
    config.rollout.reply_tokens = 320
    config.rollout.max_length = 2048
    config.rollout.chunk = 64
    config.rollout.fill_rows = 32
    config.rollout.tool_threads = 4
    config.rollout.temperature = 1.0

    config.batch = ConfigDict()
    config.batch.queries = 32
    config.batch.rollouts = 8
    config.batch.length = 2048
    config.batch.shorter_lengths = (1280, 1664)  # tried first, where all episodes of a step fit
    config.batch.microbatches = 4
    config.batch.updates = 1
    config.batch.chunk = 1024

    config.reward = ConfigDict()
    config.reward.name = "actfer"
    config.reward.w_format = 0.1
    config.reward.w_tool = 0.05
    config.reward.w_au = 0.3
    config.reward.w_region = 0.15
    config.reward.w_emotion = 0.4
    config.reward.zoom_price = 0.03

    config.estimator = ConfigDict()
    config.estimator.name = "ucgrpo"
    config.estimator.kappa = 2.0
    config.estimator.kappa_g = 20.0
    config.estimator.ema_rate = 0.05
    config.estimator.beta = 0.5
    config.estimator.gain = 2.0
    config.estimator.decision_start = 1
    config.estimator.u_max = 0.5
    config.estimator.cost = 0.03
    config.estimator.n_min = 20.0
    config.estimator.ramp = 50
    config.estimator.std = "group"
    config.estimator.eps = 1e-4
    config.estimator.credit = "trajectory"
    config.estimator.forced_arm_rate = 0.0

    config.loss = ConfigDict()
    config.loss.clip_low = 0.2
    config.loss.clip_high = 0.28
    config.loss.dual_clip = placeholder(float)
    config.loss.aggregation = "token"
    config.loss.norm_length = 0
    config.loss.ratio = "token"
    config.loss.kl = 0.0
    config.loss.reference_offload = False
    config.loss.kl_estimator = "k3"
    config.loss.entropy_bonus = 0.0
    config.loss.importance_cap = placeholder(float)

    config.mesh = ConfigDict()  # sizes of the axes (data, fsdp, tensor); -1: the devices that are left
    config.mesh.update = (1, -1, 1)
    config.mesh.rollout = (-1, 1, 4)
    config.mesh.slices = 1

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-6
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 10
    config.optimizer.final_fraction = 0.1
    config.optimizer.weight_decay = 0.0
    config.optimizer.max_grad_norm = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 20
    config.checkpoint.keep = 2
    config.checkpoint.best = 1
    config.checkpoint.best_metric = ""  # "reward/total", say: its best steps stay beside the newest

    config.logging = ConfigDict()
    config.logging.every = 1
    config.logging.episodes_every = 10
    config.logging.records_every = 1
    config.logging.profile_start = 10
    config.logging.profile_steps = 0
    config.logging.memory_profile_step = 0

    config.evaluation = ConfigDict()  # before and after training
    config.evaluation.data = ConfigDict()
    config.evaluation.data.name = "synth_faces"
    config.evaluation.data.split = "test"
    config.evaluation.data.size = 700
    config.evaluation.data.directory = ""
    config.evaluation.data.cache_directory = "~/.cache/actfer_jax/data"
    config.evaluation.controls = ("no_tools", "blank_crop", "low_res_crop")
    config.evaluation.queries = 64

    if variant == "demo":
        use_demo(config)
    return config


def use_demo(config: ConfigDict) -> None:
    """The small model, its small views, and a budget for two CPU cores; tuned on the validation split."""
    config.steps = 160
    config.model.path = "demo"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.size = 1920

    config.views.scene_min_pixels = 2048
    config.views.scene_max_pixels = 96 * 96
    config.views.aligned_side = 64
    config.views.zoom_min_pixels = 2048
    config.views.zoom_max_pixels = 96 * 64

    # Three turns: align, at most one zoom, answer.
    config.rollout.prompt_style = "brief"
    config.rollout.max_turns = 3
    config.rollout.prompt_tokens = 32
    config.rollout.turn_tokens = 32
    config.rollout.reply_tokens = 40
    config.rollout.max_length = 208
    config.rollout.chunk = 16
    config.rollout.temperature = 0.8

    config.batch.queries = 16
    config.batch.length = 208
    config.batch.shorter_lengths = (144,)
    config.batch.microbatches = 1
    config.batch.chunk = 2048

    config.mesh.rollout = (-1, 1, 1)

    # The price lies between what a look brings on faces that need it (about 0.2 of reward) and on those that do not.
    config.reward.zoom_price = 0.09
    config.estimator.cost = 0.09
    config.estimator.decision_start = 25
    config.estimator.n_min = 6.0
    config.estimator.ramp = 10
    config.estimator.std = "batch"

    # A logit goes as far from the reference as its weight over this: the gap between faces opens, while what all faces
    # share stays where either answer is still sampled.
    config.loss.kl = 0.25

    # A large eps makes Adam nearly a scaled gradient: parameters that carry only noise stay where they are.
    config.optimizer.learning_rate = 8e-4
    config.optimizer.b1 = 0.8
    config.optimizer.eps = 1e-3
    config.optimizer.warmup_steps = 3

    config.evaluation.data.size = 210
    config.evaluation.queries = 72
