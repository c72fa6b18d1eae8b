"""Sizes of a Qwen3-VL model, as a Hugging Face `config.json` states them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

_MODEL_TYPE = "qwen3_vl"


@dataclass(frozen=True)
class VisionConfig:
    """The vision transformer.

    `num_position_embeddings` is the size of a square table; `deepstack_visual_indexes` are the layers after which
    features are handed to the first decoder layers.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that are merged into one token of the decoder."""
        return self.spatial_merge_size**2


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section`: how many of the `head_dim / 2` frequencies turn with time, height and width."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    attention_bias: bool
    rope_theta: float
    mrope_section: tuple[int, int, int]


@dataclass(frozen=True)
class Qwen3VLConfig:
    """A whole model: vision, decoder, and the token ids by which pictures are marked."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tie_word_embeddings: bool

    @classmethod
    def from_json(cls, path: epath.PathLike) -> "Qwen3VLConfig":
        """Reads a `config.json`, here or in an object store.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is not JSON, of another architecture, lacks a key, or asks for something that is not supported.
        """
        path = epath.Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; give a Hugging Face model directory with its config.json")
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from error
        return _Reader(path).model(data)

    def to_json(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers loads (the rope keys as in the published checkpoints)."""
        text, vision = dict(vars(self.text)), dict(vars(self.vision))
        mrope_section = list(text.pop("mrope_section"))
        text |= {
            "model_type": "qwen3_vl_text",
            "hidden_act": "silu",
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": mrope_section},
        }
        vision |= {
            "model_type": "qwen3_vl_vision",
            "hidden_act": "gelu_pytorch_tanh",
            "deepstack_visual_indexes": list(self.vision.deepstack_visual_indexes),
        }
        top = {key: value for key, value in vars(self).items() if key not in ("text", "vision")}
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": _MODEL_TYPE,
            "text_config": text,
            "vision_config": vision,
            **top,
        }


@dataclass(frozen=True)
class _Reader:
    """Reads the parts of one `config.json`; errors name the file and the key."""

    path: epath.Path

    def get(self, data: Mapping[str, Any], key: str, kind: Any, where: str = "") -> Any:
        name = f"{where}.{key}" if where else key
        if key not in data:
            raise ValueError(f"{self.path}: the key {name!r} is missing")
        try:
            return kind(data[key])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: {name} = {data[key]!r} is not usable: {error}") from error

    def expect(self, data: Mapping[str, Any], key: str, value: Any, where: str) -> None:
        found = data.get(key, value)
        if found != value:
            raise ValueError(f"{self.path}: {where}.{key} = {found!r} is not supported; only {value!r} is")

    def model(self, data: Any) -> Qwen3VLConfig:
        found = data.get("model_type") if isinstance(data, dict) else None
        if found != _MODEL_TYPE:
            raise ValueError(f"{self.path}: model_type is {found!r}; this package runs {_MODEL_TYPE!r} models only")
        tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return Qwen3VLConfig(
            text=self.text(self.get(data, "text_config", dict)),
            vision=self.vision(self.get(data, "vision_config", dict)),
            tie_word_embeddings=self.get(data, "tie_word_embeddings", bool),
            **{key: self.get(data, key, int) for key in tokens},
        )

    def text(self, data: Mapping[str, Any]) -> TextConfig:
        where = "text_config"
        self.expect(data, "hidden_act", "silu", where)
        # transformers 4 writes rope_scaling and rope_theta side by side, 5 one dictionary of both.
        rope = {"rope_theta": data.get("rope_theta")} | (data.get("rope_parameters") or data.get("rope_scaling") or {})
        rope = {key: value for key, value in rope.items() if value is not None}
        self.expect(rope, "rope_type", "default", f"{where}.rope_parameters")
        self.expect(rope, "mrope_interleaved", True, f"{where}.rope_parameters")
        sizes = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "head_dim max_position_embeddings"
        )
        return TextConfig(
            **{key: self.get(data, key, int, where) for key in sizes.split()},
            rms_norm_eps=self.get(data, "rms_norm_eps", float, where),
            attention_bias=self.get(data, "attention_bias", bool, where),
            rope_theta=self.get(rope, "rope_theta", float, where),
            mrope_section=self.get(rope, "mrope_section", tuple, f"{where}.rope_parameters"),
        )

    def vision(self, data: Mapping[str, Any]) -> VisionConfig:
        where = "vision_config"
        self.expect(data, "hidden_act", "gelu_pytorch_tanh", where)
        sizes = (
            "depth hidden_size intermediate_size num_heads in_channels patch_size temporal_patch_size "
            "spatial_merge_size out_hidden_size num_position_embeddings"
        )
        rope = {"rope_theta": data.get("rope_theta", 10_000.0)} | (data.get("rope_parameters") or {})
        config = VisionConfig(
            **{key: self.get(data, key, int, where) for key in sizes.split()},
            deepstack_visual_indexes=self.get(data, "deepstack_visual_indexes", tuple, where),
            rope_theta=self.get(rope, "rope_theta", float, where),
        )
        indexes = list(config.deepstack_visual_indexes)
        if not indexes or indexes != sorted({index for index in indexes if 0 <= index < config.depth}):
            name = f"{where}.deepstack_visual_indexes"
            raise ValueError(f"{self.path}: {name} = {indexes} are not increasing layers of {config.depth}")
        return config
