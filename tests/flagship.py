"""Qwen3-VL-4B as the flagship's path sees it: its own tokenizer, template, processor and vocabulary, at small width."""

import json
import os
import shutil
from pathlib import Path

import pytest

from actfer_jax import models

WORDS = os.environ.get("ACTFER_QWEN3_VL", "")
"""A directory with the tokenizer, chat template and processor of a Qwen3-VL."""
needs_words = pytest.mark.skipif(not WORDS, reason="ACTFER_QWEN3_VL names no directory with a Qwen3-VL's tokenizer")


def write_narrow_model(directory: Path, words: Path = Path(WORDS)) -> Path:
    """Qwen3-VL-4B with its depth and width cut, and the words of a directory: for `initialise="random"`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((Path(models.__file__).parent / "qwen3_vl_4b.json").read_text())
    config["text_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
    }
    config["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "depth": 2,
        "num_heads": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }
    (directory / "config.json").write_text(json.dumps(config))
    for file in words.iterdir():
        shutil.copy(file, directory)
    return directory
