"""What every training config has: the model, the data, how episodes run, and what a machine takes at a time.

A config of training begins with `common.get_config(variant)` and adds what it trains by. The values are for
Qwen3-VL-4B on a pod; "demo" is the small model of the package on two CPU cores, "demo_2" the same on the second edition
of the rendered faces, and "disfa" a fold of DISFA in place of rendered faces.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("demo", "demo_2", "disfa", "ferbench", "lora", "one_device")


def names(variant: str) -> list[str]:
    """The variants that one names: "ferbench+lora" is both."""
    found = variant.split("+") if variant else []
    for name in found:
        if name not in VARIANTS:
            raise ValueError(
                f"there is no variant {name!r}; there are: {', '.join(VARIANTS)}, and several with + between"
            )
    return found


def is_demo(variant: str) -> bool:
    """Whether the model is the small one of the package."""
    return bool({"demo", "demo_2"} & set(names(variant)))


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.path = ""  # of a Qwen3-VL: a Hugging Face directory, a name on the hub, gs://..., or "demo"
    config.model.adapter = ""  # a directory with an adapter to begin with
    config.model.initialise = "pretrained"
    config.model.frozen = ()  # patterns of parameters: ("visual.*",) leaves the vision tower as it is
    config.model.dtype = "bfloat16"  # of the computation
    config.model.param_dtype = "float32"
    config.model.remat = "full"
    config.model.landmarks = ""  # dlib's 68 landmarks: a file, or what is installed

    config.data = ConfigDict()
    config.data.name = "synth_faces"
    config.data.split = "train"
    config.data.size = 16_000
    config.data.directory = ""  # of a data set with files of its own; rendered faces have none
    config.data.exclude = ()  # data sets whose pictures are left out: ("raf_db:DIR,split=test",)
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of what is rendered, and of the faces found

    config.faces = ConfigDict()  # each step where those before it found nothing; "imported" is another
    config.faces.steps = ("hog", "hog_enlarged", "rotated", "cnn")
    config.faces.hog_pixels = 2**20
    config.faces.cnn_pixels = 2**18

    config.views = ConfigDict()  # in pixels; a token of Qwen3-VL is 32 x 32
    config.views.multiple = 32
    config.views.scene_min_pixels = 256 * 256
    config.views.scene_max_pixels = 512 * 32 * 32
    config.views.aligned_side = 256
    config.views.zoom_min_pixels = 256 * 256
    config.views.zoom_max_pixels = 256 * 32 * 32

    config.rollout = ConfigDict()
    config.rollout.format = "actfer"
    config.rollout.prompt_style = "full"
    config.rollout.ask_aus = True  # as evidence of the emotion
    config.rollout.images = 1  # most images of a sample
    config.rollout.max_turns = 4
    config.rollout.prompt_tokens = 1280
    config.rollout.turn_tokens = 192
    config.rollout.reply_tokens = 320
    config.rollout.max_length = 3072  # all turns fit at their full length, after the largest prompt
    config.rollout.chunk = 64
    config.rollout.fill_rows = 32
    config.rollout.tool_threads = 16
    config.rollout.temperature = 1.0

    config.batch = ConfigDict()
    config.batch.queries = 32
    config.batch.rollouts = 8
    config.batch.length = 3072
    config.batch.length_buckets = (1792, 2304)  # tried first, where all episodes of a step fit after 1280 for prompts
    config.batch.microbatches = 4
    config.batch.updates = 1
    config.batch.chunk = 1024

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
    # A step of 256 episodes takes up to 150 MiB, by its pictures: 500 steps stay under 4 GiB.
    config.logging.records_every = 20
    config.logging.profile_start = 10
    config.logging.profile_steps = 0
    config.logging.memory_profile_step = 0

    config.alarms = ConfigDict()  # limits beyond which the log says that the run is broken (docs/metrics.md)
    config.alarms.window = 10
    config.alarms.trend_steps = 50
    config.alarms.quiet_steps = 20
    config.alarms.zoom_rate = 0.02
    config.alarms.truncated = 0.1
    config.alarms.no_answer = 0.5
    config.alarms.equal_rewards = 0.9
    config.alarms.tool_success = 0.5
    config.alarms.mismatch = 0.1
    config.alarms.kl = 10.0
    config.alarms.entropy_left = 0.5
    config.alarms.format = 0.95
    config.alarms.accuracy = 0.8
    config.alarms.accuracy_rise = 0.01
    config.alarms.sensitivity = 1e-3
    config.alarms.vision_every = 50
    config.alarms.skipped = 2
    config.alarms.skipped_in_a_row = 20

    config.evaluation = ConfigDict()  # before and after training
    config.evaluation.data = ConfigDict()
    config.evaluation.data.name = "synth_faces"
    config.evaluation.data.split = "test"
    config.evaluation.data.size = 700
    config.evaluation.data.directory = ""
    config.evaluation.data.exclude = ()
    config.evaluation.data.cache_directory = "~/.cache/actfer_jax/data"
    config.evaluation.controls = ("no_tools", "blank_crop", "low_res_crop")
    config.evaluation.queries = 64
    config.evaluation.every = 0  # steps between two evaluations while training, on `size` of the samples; 0 for none
    config.evaluation.size = 128

    uses = {
        "demo": use_demo,
        "demo_2": use_demo_2,
        "disfa": use_disfa,
        "ferbench": use_ferbench,
        "lora": use_lora,
        "one_device": use_one_device,
    }
    for name in names(variant):
        uses[name](config)
    return config


def use_lora(config: ConfigDict) -> None:
    """Adapters are trained, and the model's own parameters are frozen (docs/lora.md). The learning rate of a config is
    then ten times that of all parameters (https://thinkingmachines.ai/blog/lora)."""
    config.lora = ConfigDict()
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.lora.rslora = False
    config.lora.dropout = 0.0  # leaves every update of reinforcement learning on policy
    config.lora.targets = ("*",)  # or ("q_proj", "v_proj"), or ("*.mlp.*",)
    config.lora.decoder = True
    config.lora.merger = False
    config.lora.vision = False


def use_one_device(config: ConfigDict) -> None:
    """Adapters on one device of 24 GB: all that has to be smaller, together. docs/hardware.md has larger devices."""
    use_lora(config)
    config.batch.queries = 2
    config.batch.microbatches = 2
    config.rollout.fill_rows = 8
    config.mesh.rollout = (-1, 1, 1)
    config.evaluation.queries = 8


def use_disfa(config: ConfigDict) -> None:
    """Trains on the people of two folds of DISFA, and evaluates on those of the third.

    Neighbouring frames of its videos show nearly the same: a stride leaves them out.
    """
    for data, split, stride in ((config.data, "train", 10), (config.evaluation.data, "test", 100)):
        data.name = "disfa"
        data.split = split
        del data.size  # every frame of the stride
        data.size = placeholder(int)
        data.fold = 1
        data.aus = "evaluated"  # or "coded": 12
        data.stride = stride
        data.frames = "frames"  # below the directory
    config.evaluation.controls = ("no_tools",)


def use_ferbench(config: ConfigDict) -> None:
    """The training parts of RAF-DB, FER+ and AffectNet, without the pictures of FERBench, on which it is evaluated."""
    cache = config.data.cache_directory
    config.data = ConfigDict()
    config.data.name = "mixture"
    config.data.split = "train"
    config.data.size = placeholder(int)  # all
    config.data.directory = ""
    config.data.exclude = ("ferbench:",)  # a directory has to follow, and ",questions=DIR" if that is another
    config.data.cache_directory = cache

    config.data.parts = ConfigDict()
    for name in ("raf_db", "fer_plus", "affectnet"):
        config.data.parts[name] = ConfigDict()
        config.data.parts[name].name = name
        config.data.parts[name].split = "train"
        config.data.parts[name].directory = ""
        config.data.parts[name].cache_directory = cache
    config.data.parts.raf_db.pictures = "aligned"  # as in FERBench
    config.data.parts.fer_plus.labels = "most_votes"
    config.data.parts.affectnet.release = "first"

    # AffectNet has 23 times as many pictures as RAF-DB, and half of them are happy.
    config.data.limits = ConfigDict({"raf_db": 40_000, "fer_plus": 40_000, "affectnet": 40_000})
    config.data.class_limit = 5000  # of each part
    config.data.weights = ConfigDict({"raf_db": 1.0, "fer_plus": 1.0, "affectnet": 1.0})
    config.data.class_weights = ConfigDict({"disgust": 2.0, "fear": 2.0, "contempt": 2.0})
    config.data.weight_seed = 0
    config.data.labels = "own"  # a sample has the labels of its data set, as in FERBench

    config.evaluation.data.name = "ferbench"
    config.evaluation.data.directory = ""


def use_demo(config: ConfigDict) -> None:
    """The small model, its small views, and a budget for two CPU cores; tuned on the validation split."""
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
    config.batch.length_buckets = (144, 160)
    config.batch.microbatches = 1
    config.batch.chunk = 2048

    config.mesh.rollout = (-1, 1, 1)

    config.logging.records_every = 1

    config.evaluation.data.size = 210
    config.evaluation.queries = 72


def use_demo_2(config: ConfigDict) -> None:
    """The small model on the second edition of the rendered faces."""
    use_demo(config)
    for data in (config.data, config.evaluation.data):
        data.name = "synth_faces_2"
        data.subtle = 0.5
    config.rollout.prompt_tokens = 40  # "Read the face on the right."
    config.rollout.reply_tokens = 48  # of two faces, with their places
    config.rollout.max_length = 240
    config.batch.length = 240
    config.batch.length_buckets = (160, 192)
    config.evaluation.data.size = 240
