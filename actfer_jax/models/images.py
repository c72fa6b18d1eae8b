"""Prepares images and positions on the host: all that Qwen3-VL computes from grids alone, as static-shape arrays.

Patches are in the order of the Hugging Face processor: merge block by merge block, row-major within a block. Each
`merge**2` consecutive patches become one token of the decoder.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from actfer_jax.models.config import Qwen3VLConfig


class ImageInputs(NamedTuple):
    """Images as the vision tower takes them, P patches each. Unused patches are zero and masked.

    There may be any leading axes. The arrays are numpy's until they are placed on devices.

    Attributes:
      patches: float32 [..., P, C], normalised pixel values (C = channels x temporal patch x patch x patch).
      position_index: int32 [..., P, 4], entries of the learned position table to interpolate between.
      position_weight: float32 [..., P, 4], their bilinear weights.
      coordinates: int32 [..., P, 2], row and column of the patch, for the rotary embedding.
      mask: bool [..., P].
    """

    patches: jax.Array
    position_index: jax.Array
    position_weight: jax.Array
    coordinates: jax.Array
    mask: jax.Array


def empty_inputs(count: int, capacity: int, config: Qwen3VLConfig, dtype: DTypeLike) -> ImageInputs:
    """Masked images [count, capacity, ...] with patches of a dtype.

    Raises:
      ValueError: the capacity is no number of whole tokens.
    """
    if capacity % config.vision.merge_unit:
        raise ValueError(f"capacity {capacity} is not a multiple of the {config.vision.merge_unit} patches of a token")

    def zeros(dtype: DTypeLike, *shape: int) -> Any:
        return np.zeros((count, capacity, *shape), jnp.dtype(dtype))

    return ImageInputs(
        patches=zeros(dtype, config.vision.patch_dim),
        position_index=zeros(np.int32, 4),
        position_weight=zeros(np.float32, 4),
        coordinates=zeros(np.int32, 2),
        mask=zeros(bool),
    )


def image_inputs(
    patches: Sequence[np.ndarray], grids: np.ndarray | Sequence[Sequence[int]], capacity: int, config: Qwen3VLConfig
) -> ImageInputs:
    """Pads N images to a common number of patches.

    Args:
      patches: N arrays [p_i, C]: the Hugging Face processor's `pixel_values`, split by image.
      grids: int [N, 3]: the processor's `image_grid_thw`, with frames (1), rows and columns of patches.
      capacity: patches per image in the result, a multiple of merge**2.
      config: of the model.

    Raises:
      ValueError: an image does not match its grid, does not fit, or its grid is not one frame of whole merge blocks.
    """
    grids = np.asarray(grids, np.int64).reshape(-1, 3)
    if len(patches) != len(grids):
        raise ValueError(f"{len(patches)} pictures, but {len(grids)} grids")
    result = empty_inputs(len(grids), capacity, config, np.float32)
    for index, (picture, grid) in enumerate(zip(patches, grids.tolist(), strict=True)):
        write_image(result, index, picture, grid, config)
    return result


def write_image(
    images: ImageInputs, index: Any, patches_PxC: np.ndarray, grid: Sequence[int], config: Qwen3VLConfig
) -> None:
    """Writes an image into its place among `empty_inputs`, in the dtype that these have.

    Args:
      index: of the place, a number for each leading axis.
      patches_PxC: the processor's `pixel_values`.
      grid: the processor's `image_grid_thw`.

    Raises:
      ValueError: it does not match its grid, does not fit, or its grid is not one frame of whole merge blocks.
    """
    vision, capacity = config.vision, images.mask.shape[-1]
    coordinates_Px2, index_Px4, weight_Px4 = _places(
        tuple(grid), vision.spatial_merge_size, round(vision.num_position_embeddings**0.5)
    )
    used = len(coordinates_Px2)
    if patches_PxC.shape != (shape := (used, vision.patch_dim)):
        raise ValueError(f"picture {index}: patches {patches_PxC.shape}, but grid {list(grid)} means {shape}")
    if used > capacity:
        raise ValueError(f"picture {index}: {used} patches do not fit into {capacity}")
    written: tuple[Any, ...] = patches_PxC, index_Px4, weight_Px4, coordinates_Px2, True
    for target, values in zip(images, written, strict=True):
        np.asarray(target)[index][:used] = values


@lru_cache(maxsize=64)
def _places(grid: tuple[int, ...], merge: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `ImageInputs` has of a grid alone: coordinates [p, 2], and the entries of a side x side table with their
    weights [p, 4]. Nobody may change them."""
    coordinates_Px2 = patch_coordinates(grid, merge)
    return coordinates_Px2, *_interpolation(coordinates_Px2, np.array(grid[1:]), side)


def patch_coordinates(grid: np.ndarray | Sequence[int], merge: int) -> np.ndarray:
    """Row and column of each patch of one image, int [rows * columns, 2], in the processor's order."""
    frames, rows, columns = (int(size) for size in grid)
    if frames != 1 or rows < merge or columns < merge or rows % merge or columns % merge:
        raise ValueError(
            f"grid {[frames, rows, columns]}: one frame, rows and columns in multiples of {merge} are needed"
        )
    grid_RxCx2 = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    blocks = grid_RxCx2.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2)


def _interpolation(coordinates_Px2: np.ndarray, size: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The four entries of the side x side table around each patch, and their weights (corners aligned with corners)."""
    source_Px2 = coordinates_Px2.astype(np.float32) * np.float32(side - 1) / np.maximum(size - 1, 1).astype(np.float32)
    low = np.floor(source_Px2)
    fraction = source_Px2 - low
    taps_Px2x2 = np.minimum(np.stack([low, low + 1], -1), side - 1).astype(np.int32)  # [patch, axis, low or high]
    weights_Px2x2 = np.stack([1 - fraction, fraction], -1)
    index = taps_Px2x2[:, 0, :, None] * side + taps_Px2x2[:, 1, None, :]
    weight = weights_Px2x2[:, 0, :, None] * weights_Px2x2[:, 1, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)


def mrope_positions(
    token_ids_L: np.ndarray | Sequence[int],
    grids: np.ndarray | Sequence[Sequence[int]],
    config: Qwen3VLConfig,
    start: int = 0,
) -> tuple[np.ndarray, int]:
    """Positions in time, height and width of one row of tokens without padding.

    A text token advances all three by one. The tokens of an image share one time, and count rows and columns from it.
    The text after them continues past the larger of the two (Qwen2-VL, section 2.1; transformers' `get_rope_index`).

    Args:
      token_ids_L: the tokens; image tokens are placeholders for the images of `grids`, in order.
      grids: int [N, 3], in patches.
      config: of the model.
      start: position of the first token.

    Returns:
      int32 [L, 3] and the position of the next token.

    Raises:
      ValueError: images and their tokens do not match.
    """
    token_ids_L = np.asarray(token_ids_L)
    merge = config.vision.spatial_merge_size
    positions = np.empty((len(token_ids_L), 3), np.int32)
    is_image = token_ids_L == config.image_token_id
    here, index = start, 0
    for grid in np.asarray(grids, np.int64).reshape(-1, 3):
        coordinates = patch_coordinates(grid, merge)[:: merge**2] // merge  # Each merge block is one token.
        ahead = np.flatnonzero(is_image[index:])
        begin = index + int(ahead[0]) if len(ahead) else len(token_ids_L)
        end = begin + len(coordinates)
        if end > len(token_ids_L) or not is_image[begin:end].all():
            raise ValueError(f"grid {grid.tolist()} needs a run of {len(coordinates)} image tokens, which is not there")
        positions[index:begin] = (here + np.arange(begin - index))[:, None]
        here += begin - index
        positions[begin:end, 0] = here
        positions[begin:end, 1:] = here + coordinates
        here += int(max(grid[1:])) // merge
        index = end
    if is_image[index:].any():
        raise ValueError(f"{int(is_image[index:].sum())} image tokens are left over: a picture's grid is missing")
    positions[index:] = (here + np.arange(len(token_ids_L) - index))[:, None]
    return positions, here + len(token_ids_L) - index
