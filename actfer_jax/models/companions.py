"""The files of a Hugging Face directory other than weights: config, tokenizer, chat template, processor."""

import json
import re
import shutil
from pathlib import Path

import numpy as np

from actfer_jax.models.qwen3_vl import Qwen3VL

COMPANION = re.compile(
    r"(added_tokens|generation_config|preprocessor_config|processor_config|special_tokens_map|tokenizer"
    r"|tokenizer_config|video_preprocessor_config|vocab|actfer)\.json|chat_template\.(jinja|json)|tokenizer\.model"
    r"|(merges|vocab)\.txt"
)
"""Files of a policy other than its config and its weights."""
DOCUMENT = re.compile(r"README\.md|prompt\.json|(?:LICEN[CS]E|NOTICE)(?:[.-][\w.-]+)?")
"""Files of a policy or an adapter for those who use it."""

_PROCESSORS = ("processor_config.json", "video_preprocessor_config.json")


def write_companions(model: Qwen3VL, directory: Path) -> None:
    """Writes `config.json`, and copies the companion files of the model's source."""
    config, source = model.config.to_json(), None if model.source is None else Path(model.source)
    if source is not None and source.is_dir():
        for file in sorted(source.iterdir()):
            if file.is_file() and COMPANION.fullmatch(file.name):
                shutil.copyfile(file, directory / file.name)
        write_processor_config(directory)
        before = json.loads((source / "config.json").read_text())
        for part in ("text_config", "vision_config"):
            config[part] = before.get(part, {}) | config[part]
        config["text_config"].pop("rope_parameters", None)  # Every version reads rope_theta and rope_scaling.
        config = before | config
    config["dtype"] = np.dtype(model.execution.param_dtype).name
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def copy_licences(source: str | None, directory: Path) -> None:
    """Copies the licence files of a model's source."""
    for file in sorted(Path(source).iterdir()) if source is not None and Path(source).is_dir() else ():
        if file.is_file() and DOCUMENT.fullmatch(file.name) and file.name.startswith(("LICEN", "NOTICE")):
            shutil.copyfile(file, directory / file.name)


def write_processor_config(directory: Path) -> None:
    """Adds the file from which `transformers.AutoProcessor` makes Qwen3-VL's processor, to a directory with an image
    processor. Some sources do not declare the video processor that it needs."""
    there = directory / "preprocessor_config.json"
    if not there.exists() or any((directory / name).exists() for name in _PROCESSORS):
        return
    images = json.loads(there.read_text())
    same = ("patch_size", "temporal_patch_size", "merge_size", "size", "image_mean", "image_std")
    videos = {name: images[name] for name in same if name in images}
    config = {
        "processor_class": "Qwen3VLProcessor",
        "video_processor": {"video_processor_type": "Qwen3VLVideoProcessor"} | videos,
    }
    (directory / _PROCESSORS[0]).write_text(json.dumps(config, indent=2) + "\n")
