"""Runs the whole model on the output of the Hugging Face processor."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from actfer_jax.models.images import ImageInputs, image_inputs, mrope_positions
from actfer_jax.models.layers import Params
from actfer_jax.models.qwen3_vl import ImageFeatures, Qwen3VL


def logits(
    model: Qwen3VL,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    pixel_values: ArrayLike | None = None,
    image_grid_thw: ArrayLike | None = None,
) -> jax.Array:
    """Logits of every token, as transformers' `Qwen3VLForConditionalGeneration` computes them.

    Args:
      model: the model.
      input_ids: int [B, L].
      attention_mask: int [B, L], 1 at tokens, 0 at padding (on either side); None if there is no padding.
      pixel_values: float [patches of all images, C], from the processor; None without images.
      image_grid_thw: int [N, 3], in the order of the images in the rows.

    Returns:
      float32 [B, L, V]; logits at padding are meaningless.

    Raises:
      ValueError: images and image tokens do not match.
    """
    tokens_BxL = np.asarray(input_ids, np.int32)
    mask_BxL = np.ones_like(tokens_BxL) if attention_mask is None else np.asarray(attention_mask, np.int32)
    config, unit = model.config, model.config.vision.merge_unit
    grids_Nx3 = np.zeros((0, 3), np.int64) if image_grid_thw is None else np.asarray(image_grid_thw, np.int64)
    sizes_N = grids_Nx3.prod(-1)
    is_image_BxL = (tokens_BxL == config.image_token_id) & (mask_BxL > 0)
    if is_image_BxL.sum() != sizes_N.sum() // unit:
        raise ValueError(f"{is_image_BxL.sum()} image tokens, but the pictures make {sizes_N.sum() // unit}")

    # Rows use images in order. In the pool of all images' tokens each image takes `capacity // unit` places.
    capacity = int(sizes_N.max(initial=unit))
    offset = np.arange(max(len(sizes_N), 1))[:, None] * (capacity // unit) + np.arange(capacity // unit)
    pool = offset[np.arange(capacity // unit) < np.append(sizes_N // unit, 0)[: len(offset), None]]
    image_index_BxL = np.full(tokens_BxL.shape, -1, np.int32)
    image_index_BxL[is_image_BxL] = pool
    positions_BxLx3 = np.zeros((*tokens_BxL.shape, 3), np.int32)
    ends_N = np.cumsum(sizes_N // unit)
    done = 0
    for row, mask in enumerate(mask_BxL > 0):
        first, done = done, done + int(is_image_BxL[row].sum())
        taken = grids_Nx3[(ends_N > first) & (ends_N <= done)]
        positions_BxLx3[row, mask], _ = mrope_positions(tokens_BxL[row, mask], taken, config)

    if pixel_values is None:
        images = None
    else:
        pictures = np.split(np.asarray(pixel_values, np.float32), np.cumsum(sizes_N)[:-1])
        images = image_inputs(pictures, grids_Nx3, capacity, config)
    graph, state = nnx.split(model)
    return _logits(graph, state, tokens_BxL, mask_BxL, image_index_BxL, positions_BxLx3, images)


@partial(jax.jit, static_argnums=0)
def _logits(
    graph: nnx.GraphDef[Qwen3VL],
    state: Params,
    tokens_BxL: jax.Array,
    mask_BxL: jax.Array,
    image_index_BxL: jax.Array,
    positions_BxLx3: jax.Array,
    images: ImageInputs | None,
) -> jax.Array:
    model = nnx.merge(graph, state)
    pool = None
    if images is not None:
        features = model.encode_images(images)  # Every row reads the pool of all images.
        pool = ImageFeatures(*(_shared(part, len(tokens_BxL)) for part in features))
    x_BxLxD, deepstack = model.embed(tokens_BxL, image_index_BxL, pool)
    hidden_BxLxD, _ = model.hidden(x_BxLxD, deepstack, positions_BxLx3, mask_BxL)
    return model.unembed(hidden_BxLxD)


def _shared(features: jax.Array, batch: int) -> jax.Array:
    """[..., N, K, D] to the pool [..., B, N K, D] that all rows share."""
    *leading, count, tokens, size = features.shape
    features = features.reshape(*leading, 1, count * tokens, size)
    return jnp.broadcast_to(features, (*leading, batch, count * tokens, size))
