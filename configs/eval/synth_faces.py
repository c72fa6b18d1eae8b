"""Evaluation on held-out rendered faces, 100 of each emotion.

python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --checkpoint=demo --out=evaluation
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "synth_faces"
    config.data.split = "test"
    config.data.size = 700
    config.data.directory = ""  # of a data set with files of its own; rendered faces have none
    config.data.cache_directory = "~/.cache/actfer_jax/data"  # of what is rendered
    config.faces = ConfigDict()  # each step where those before it found nothing; "imported" is another
    config.faces.steps = ("hog", "hog_enlarged", "rotated", "cnn")
    config.faces.hog_pixels = 2**20
    config.faces.cnn_pixels = 2**18
    # Beside the policy as it is: told to answer at once; zoomed views greyed; zoomed views without their finer pixels.
    # Others are "always_zoom" and "never_zoom": told so in the reply with the aligned face, as in training.
    config.controls = ("no_tools", "blank_crop", "low_res_crop")
    config.queries = 64  # samples at a time
    config.images = 1  # most pictures of a sample
    config.seed = 0  # of the bootstrap intervals, and of the sampling
    config.greedy = True  # or sample, as in training
    config.dtype = "float32"
    config.benchmark = ConfigDict()  # what is measured
    config.benchmark.name = "recognition"
    use_endpoint(config)
    return config


def use_endpoint(config: ConfigDict) -> None:
    """How a model on a server is asked (docs/endpoint.md); only `--endpoint` uses it."""
    config.endpoint = ConfigDict()
    config.endpoint.api_key_variable = "ACTFER_API_KEY"  # the environment variable that has the API key
    config.endpoint.parallel = 8  # requests at a time
    config.endpoint.timeout = 300.0  # seconds
    config.endpoint.attempts = 6  # of each request
    config.endpoint.prompt_price = 0.0  # of a million tokens
    config.endpoint.completion_price = 0.0
    config.endpoint.passive = False  # no tools, one turn, and the data set's own prompt where it has one
    config.endpoint.format = "actfer"
    config.endpoint.prompt_style = "full"
    config.endpoint.ask_aus = True
    config.endpoint.max_turns = 4
    config.endpoint.turn_tokens = 192
    config.endpoint.tool_choice = "auto"  # or "none": the server leaves calls in the text
    config.endpoint.images_in = "user"  # the role of the message with the view of a call; or "tool"
    config.endpoint.request = "{}"  # further keys of a request, as JSON; null leaves out one of ours
    config.endpoint.views = ConfigDict()  # in pixels; a token of Qwen3-VL is 32 x 32
    config.endpoint.views.multiple = 32
    config.endpoint.views.scene_min_pixels = 256 * 256
    config.endpoint.views.scene_max_pixels = 512 * 32 * 32
    config.endpoint.views.aligned_side = 256
    config.endpoint.views.zoom_min_pixels = 256 * 256
    config.endpoint.views.zoom_max_pixels = 256 * 32 * 32
