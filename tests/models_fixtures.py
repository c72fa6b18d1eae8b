"""A small Qwen3-VL checkpoint with reproducible weights, and batches for it. Needs neither torch nor transformers."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden" / "models.npz"
PICTURE_TOKENS = IMAGE, VIDEO, VISION_START, VISION_END = [150, 151, 152, 153]
TEXT_TOKENS = 150

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
    },
    "vision_config": {
        "model_type": "qwen3_vl_vision",
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 48,
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": [0, 2],
    },
}
PATCH_DIM = 3 * 2 * 4 * 4

Layout = list[list[int | tuple[int, int]]]
"""Rows of pieces: a number is so many text tokens, a pair a picture of so many rows and columns of patches."""


def random_config(seed: int) -> dict[str, Any]:
    """A configuration of other sizes; four seeds in a row have every combination of tied head and biases."""
    random = np.random.RandomState(seed)
    key_heads, head_dim, depth = random.choice([1, 2]), random.choice([8, 16, 24]), random.randint(2, 6)
    height, width = random.randint(1, head_dim // 6 + 1, 2)  # as many frequencies as interleaving has places for
    vision_heads, side = random.randint(1, 4), random.randint(3, 8)
    deepstack = np.sort(random.choice(depth, random.randint(1, min(depth, 3) + 1), replace=False))
    text = {
        "hidden_size": 8 * random.randint(3, 9),
        "intermediate_size": 8 * random.randint(4, 12),
        "num_hidden_layers": max(len(deepstack), random.randint(1, 4)),
        "num_attention_heads": key_heads * random.randint(1, 5),
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "attention_bias": seed // 2 % 2 == 1,
        "rope_theta": random.choice([1e4, 5e6]),
        "rope_scaling": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [head_dim // 2 - height - width, height, width],
        },
    }
    vision = {
        "depth": depth,
        "hidden_size": vision_heads * random.choice([8, 16]),
        "intermediate_size": 8 * random.randint(3, 9),
        "num_heads": vision_heads,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": side**2,
        "deepstack_visual_indexes": deepstack,
    }
    config = CONFIG | {
        "tie_word_embeddings": seed % 2 == 0,
        "text_config": CONFIG["text_config"] | text,
        "vision_config": CONFIG["vision_config"] | vision,
    }
    return json.loads(json.dumps(config, default=lambda value: value.tolist()))


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights large enough that logits differ by nats; the same on every machine (a frozen generator)."""
    result = {}
    for name, shape in shapes.items():
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        is_norm = "norm" in name and name.endswith("weight")
        scale = 0.1 if is_norm or name.endswith("bias") else 0.2 if "embed" in name or "lm_head" in name else 0.3
        result[name] = (values * scale + is_norm).astype(np.float32)
    return result


def write_checkpoint(directory: Path, *, tied: bool = True) -> Path:
    """Writes config.json and model.safetensors; names and shapes of tensors are those that transformers gave."""
    directory.mkdir(parents=True, exist_ok=True)
    with np.load(GOLDEN) as golden:
        shapes = json.loads(str(golden["shapes"]))
    if tied:
        del shapes["lm_head.weight"]
    (directory / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": tied}))
    save_file(weights(shapes), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@dataclass
class Batch:
    """Rows of tokens without padding, and the pictures in them."""

    rows: list[list[int]]
    grids: np.ndarray  # [N, 3]
    pixel_values: np.ndarray  # [patches, C]

    def padded(self, side: str, extra: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask with padding "left", "right", or "mixed" from row to row."""
        length = max(map(len, self.rows)) + extra
        ids, mask = np.zeros((2, len(self.rows), length), np.int64)
        for index, row in enumerate(self.rows):
            left = side == "left" or (side == "mixed" and index % 2 == 0)
            begin = length - len(row) if left else 0
            ids[index, begin : begin + len(row)] = row
            mask[index, begin : begin + len(row)] = 1
        return ids, mask


def make_batch(layout: Layout, seed: int = 0) -> Batch:
    """Rows of random tokens, and the pictures in them."""
    random = np.random.RandomState(seed)
    rows, grids = [], []
    for pieces in layout:
        row: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                row += random.randint(0, TEXT_TOKENS, piece).tolist()
            else:
                grids.append([1, *piece])
                row += [VISION_START, *[IMAGE] * (piece[0] * piece[1] // 4), VISION_END]
        rows.append(row)
    grid_array = np.array(grids, np.int64).reshape(-1, 3)
    pixels = random.standard_normal((int(grid_array.prod(-1).sum()), PATCH_DIM)).astype(np.float32)
    return Batch(rows, grid_array, pixels)


LAYOUT: Layout = [
    [3, (4, 6), 5, (2, 2), 4],  # two pictures of different size, the second in the middle of a conversation
    [7],  # no picture
    [1, (8, 4), 4, (6, 6), 2, (2, 10), 3],
    [(4, 4)],  # a picture and nothing else
]


def random_layout(seed: int) -> Layout:
    """Rows with three pictures, none and one, of any sizes."""
    random = np.random.RandomState(seed)
    layout: Layout = []
    for pictures in (3, 0, 1):
        row: list[int | tuple[int, int]] = []
        for height, width in 2 * random.randint(1, 6, (pictures, 2)):
            row += [int(random.randint(0, 5)), (int(height), int(width))]
        layout.append([*row, int(random.randint(1, 6))])
    return layout
