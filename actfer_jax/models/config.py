"""Sizes of a Qwen3-VL model, from a Hugging Face `config.json`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from etils import epath

from actfer_jax.config import ConfigError, Count, FieldError, above, at_least, check_fields, read_config

_MODEL_TYPE = "qwen3_vl"

_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")

Part = TypeVar("Part")


@dataclass(frozen=True)
class VisionConfig:
    """The vision transformer.

    `num_position_embeddings` is the size of a square table. `deepstack_visual_indexes` are the layers whose output goes
    to the first decoder layers as well.
    """

    depth: Count
    hidden_size: Count
    intermediate_size: Count
    num_heads: Count
    in_channels: Count
    patch_size: Count
    temporal_patch_size: Count
    spatial_merge_size: Count
    out_hidden_size: Count
    num_position_embeddings: Count
    deepstack_visual_indexes: tuple[int, ...]
    rope_theta: Annotated[float, above(0)] = 10_000.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.hidden_size % (4 * self.num_heads):
            raise FieldError(
                "num_heads",
                f"is {self.num_heads}; it must divide hidden_size, {self.hidden_size}, into heads of a multiple of 4",
            )
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise FieldError("num_position_embeddings", f"is {self.num_position_embeddings}; it must be a square")
        indexes = self.deepstack_visual_indexes
        if not indexes or list(indexes) != sorted({index for index in indexes if 0 <= index < self.depth}):
            raise FieldError(
                "deepstack_visual_indexes", f"is {list(indexes)}; it must be increasing layers of the {self.depth}"
            )

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


_Turned = Annotated[int, at_least(0)]


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section`: how many of the `head_dim / 2` frequencies belong to time, height and width."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    max_position_embeddings: Count
    rms_norm_eps: Annotated[float, above(0)]
    attention_bias: bool
    rope_theta: Annotated[float, above(0)]
    mrope_section: tuple[_Turned, _Turned, _Turned]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise FieldError(
                "num_key_value_heads",
                f"is {self.num_key_value_heads}; it must divide num_attention_heads, which is "
                f"{self.num_attention_heads}",
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise FieldError(
                "mrope_section",
                f"is {list(self.mrope_section)}; it must sum to half of head_dim, {self.head_dim / 2:g}",
            )


@dataclass(frozen=True)
class Qwen3VLConfig:
    """A whole model: vision, decoder, and the token ids that mark images."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        check_fields(self)
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise FieldError(
                "vision_config.out_hidden_size",
                f"is {self.vision.out_hidden_size}; it must be text_config.hidden_size, "
                f"which is {self.text.hidden_size}",
            )
        if (layers := len(self.vision.deepstack_visual_indexes)) > self.text.num_hidden_layers:
            raise FieldError(
                "text_config.num_hidden_layers",
                f"is {self.text.num_hidden_layers}; it must be at least {layers}, as "
                "many as vision_config.deepstack_visual_indexes",
            )
        for name in _TOKENS:
            if not 0 <= getattr(self, name) < self.text.vocab_size:
                raise FieldError(
                    name,
                    f"is {getattr(self, name)}; it must be a token of the vocabulary, from 0 to "
                    f"{self.text.vocab_size - 1}",
                )
        if self.image_token_id == self.video_token_id:
            raise FieldError(
                "image_token_id", f"is {self.image_token_id}; it must be another token than video_token_id"
            )

    @classmethod
    def from_json(cls, path: epath.PathLike) -> "Qwen3VLConfig":
        """Reads a `config.json` from a disk or an object store.

        Raises:
          FileNotFoundError: the file does not exist.
          ValueError: it is not JSON, has another architecture, lacks a key, contradicts itself, or needs something
            that is not supported.
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
        """The content of a `config.json` that transformers loads, with the rope keys of the published checkpoints."""
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
    """Reads the parts of one `config.json` as transformers does; errors name the file and the key."""

    path: epath.Path

    def expect(self, data: Mapping[str, Any], key: str, where: str, *values: Any) -> None:
        """Raises ValueError unless a key has one of these values or is absent."""
        found = data.get(key, values[0])
        if found not in values:
            raise ValueError(f"{self.path}: {where}{key} = {found!r} is not supported; only {values[0]!r} is")

    def read(self, data: Mapping[str, Any], cls: type[Part], where: str) -> Part:
        """An instance of a class of sizes, from the keys that belong to it."""
        try:
            return read_config({one.name: data[one.name] for one in fields(cls) if one.name in data}, cls, where)  # type: ignore[arg-type]
        except ConfigError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def model(self, data: Any) -> Qwen3VLConfig:
        found = data.get("model_type") if isinstance(data, dict) else None
        if found != _MODEL_TYPE:
            raise ValueError(f"{self.path}: model_type is {found!r}; this package runs {_MODEL_TYPE!r} models only")
        text, vision = (self.part(data, name) for name in ("text_config", "vision_config"))
        for part, where in ((data, ""), (text, "text_config.")):
            if part.get("quantization_config"):
                raise ValueError(
                    f"{self.path}: {where}quantization_config says that the weights are quantized; give the model in "
                    "bfloat16, float16 or float32"
                )
        for key in ("rope_scaling", "rope_parameters", "transformers_weights"):
            self.expect(data, key, "", None)
        return self.read(data | {"text": self.text(text), "vision": self.vision(vision)}, Qwen3VLConfig, "")

    def part(self, data: Mapping[str, Any], name: str, where: str = "") -> dict[str, Any]:
        if not isinstance(data.get(name), dict):
            raise ValueError(f"{self.path}: {where}{name} is {data.get(name)!r}; it must be a section with keys")
        return data[name]

    def text(self, data: Mapping[str, Any]) -> TextConfig:
        where = "text_config."
        self.expect(data, "model_type", where, "qwen3_vl_text")
        self.expect(data, "hidden_act", where, "silu")
        self.expect(data, "attention_dropout", where, 0.0)
        rope = self.rope(data, where, "default")
        self.expect(rope, "mrope_interleaved", f"{where}rope_parameters.", True)
        config = self.read({**data, **rope}, TextConfig, "text_config")
        pad = data.get("pad_token_id")
        # This package does not use it, but transformers would not load the model.
        if pad is not None and not (isinstance(pad, int) and -config.vocab_size <= pad < config.vocab_size):
            raise ValueError(
                f"{self.path}: text_config.pad_token_id is {pad!r}; it must be a token of the vocabulary, from 0 to "
                f"{config.vocab_size - 1}, or null"
            )
        return config

    def vision(self, data: Mapping[str, Any]) -> VisionConfig:
        where = "vision_config."
        self.expect(data, "model_type", where, "qwen3_vl_vision", _MODEL_TYPE)
        self.expect(data, "hidden_act", where, "gelu_pytorch_tanh")
        return self.read({**data, **self.rope(data, where, "default", "axial")}, VisionConfig, "vision_config")

    def rope(self, data: Mapping[str, Any], where: str, *types: str) -> dict[str, Any]:
        """The settings of rotary positions. transformers 4 writes rope_scaling and a separate rope_theta, version 5
        writes rope_parameters with both. If a config has both forms, the older one counts."""
        key = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
        rope = dict(self.part(data, key, where)) if data.get(key) else {}
        rope.setdefault("rope_type", rope.get("type", types[0]))
        self.expect(rope, "rope_type", f"{where}rope_parameters.", *types)
        return rope
