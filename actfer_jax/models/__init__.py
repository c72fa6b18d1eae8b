"""Qwen3-VL in Flax NNX. Reads and writes Hugging Face directories."""

from pathlib import Path

from actfer_jax.models.cache import KVCache, Past, init_cache, write_cache
from actfer_jax.models.config import Qwen3VLConfig, TextConfig, VisionConfig
from actfer_jax.models.huggingface import (
    config_file,
    is_hub_name,
    load_pretrained,
    local_directory,
    save_pretrained,
    words_directory,
)
from actfer_jax.models.images import ImageInputs, image_inputs, mrope_positions
from actfer_jax.models.inference import logits
from actfer_jax.models.log_probs import token_log_probs
from actfer_jax.models.qwen3_vl import ImageFeatures, Qwen3VL, on_mesh

__all__ = [
    "ImageFeatures",
    "ImageInputs",
    "KVCache",
    "Past",
    "Qwen3VL",
    "Qwen3VLConfig",
    "TextConfig",
    "VisionConfig",
    "config_file",
    "demo_checkpoint",
    "image_inputs",
    "init_cache",
    "is_hub_name",
    "load_pretrained",
    "local_directory",
    "logits",
    "mrope_positions",
    "on_mesh",
    "save_pretrained",
    "token_log_probs",
    "words_directory",
    "write_cache",
]


def demo_checkpoint() -> str:
    """The directory of the package's small model, in Hugging Face format with its tokenizer.

    Raises:
      FileNotFoundError: the model has not been made yet; the message says how to make it.
    """
    directory = Path(__file__).parent / "demo"
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory}: the demo model is not there; `python -m actfer_jax.make_demo --out={directory}` writes all "
            "but its weights, which `python -m actfer_jax.train --config=configs/sft.py:demo` trains"
        )
    return str(directory)
