"""Episodes as arrays: the one layout that supervised training, policy updates and log-probabilities share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from actfer_jax.config import ConfigError
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.models.images import ImageInputs, image_inputs, mrope_positions
from actfer_jax.models.log_probs import token_log_probs
from actfer_jax.models.qwen3_vl import ImageFeatures, Qwen3VL
from actfer_jax.parallel.sharding import map_pieces

Patches = tuple[np.ndarray, tuple[int, int, int]]
"""One picture as the image processor leaves it: patches [p, C] float32 and the grid (1, rows, columns).

There are no patches, [0, 0], where the picture belongs to rows that lie on other processes only.
"""


@dataclass(frozen=True)
class Sequence:
    """One episode, compact: no gaps, no padding.

    Attributes:
      tokens: ids [l].
      policy: bool [l], true where the policy chose the token.
      pictures: the pictures in the order of their placeholders; the first is the scene.
    """

    tokens: list[int]
    policy: list[bool]
    pictures: list[Patches]


class EpisodeBatch(NamedTuple):
    """R = Q * G rows padded on the right to L tokens; row r belongs to query r // G, whose scene it shares.

    Attributes:
      tokens: int32 [R, L].
      positions: rotary positions int32 [R, L, 3].
      segment_ids: int32 [R, L]: 1 at tokens, 0 at padding.
      policy: bool [R, L]: the tokens that the policy chose; nothing else is ever trained on.
      image_index: int32 [R, L]: -1 at text, else an index into the row's image tokens (scene, then S crops).
      scenes: [Q, P0, ...]; crops: [R, S, P1, ...].
    """

    tokens: Any
    positions: Any
    segment_ids: Any
    policy: Any
    image_index: Any
    scenes: ImageInputs
    crops: ImageInputs


@dataclass(frozen=True)
class ImageSlots:
    """Capacities of the pictures of a row, in patches, and the type of their pixels.

    Attributes:
      scene: patches of the scene.
      crop: patches of one aligned or zoomed view.
      crops: views a row can hold beside the scene.
      dtype: of the patches. The vision tower computes in the model's; sent in it, 16-bit patches take half the memory.
    """

    scene: int
    crop: int
    crops: int
    dtype: DTypeLike = np.float32

    def token_index(self, image_tokens: list[int], merge: int) -> np.ndarray:
        """Where the tokens of each image lie among the image tokens of a row, int32 [sum(image_tokens)].

        Args:
          image_tokens: the number of tokens of each image: the scene, then the views.
        """
        starts = [0] + [self.scene // merge**2 + i * (self.crop // merge**2) for i in range(self.crops)]
        return np.concatenate(
            [start + np.arange(count, dtype=np.int32) for start, count in zip(starts, image_tokens, strict=False)]
        )


def placed_inputs(
    pictures: Mapping[Any, Patches], shape: tuple[int, ...], capacity: int, config: Qwen3VLConfig, dtype: DTypeLike
) -> ImageInputs:
    """Pictures at their indices (tuples) in an array of pictures [*shape, capacity, ...].

    All other places are masked, and so are those of pictures whose patches other processes have.
    """
    here = {index: picture for index, picture in pictures.items() if len(picture[0])}
    placed = empty_inputs(math.prod(shape), capacity, config, dtype)
    placed = ImageInputs(*(x.reshape(*shape, *x.shape[1:]) for x in placed))
    if here:
        patches, grids = zip(*here.values(), strict=True)
        index = tuple(np.array(list(here)).T)
        for target, values in zip(placed, image_inputs(patches, np.array(grids), capacity, config), strict=True):
            target[index] = values
    return placed


def empty_inputs(count: int, capacity: int, config: Qwen3VLConfig, dtype: DTypeLike) -> ImageInputs:
    """Masked pictures [count, capacity, ...], their patches in a dtype."""
    channels = config.vision.in_channels * config.vision.temporal_patch_size * config.vision.patch_size**2
    return ImageInputs(
        patches=np.zeros((count, capacity, channels), jnp.dtype(dtype)),
        position_index=np.zeros((count, capacity, 4), np.int32),
        position_weight=np.zeros((count, capacity, 4), np.float32),
        coordinates=np.zeros((count, capacity, 2), np.int32),
        mask=np.zeros((count, capacity), bool),
    )


def make_batch(
    rows: list[Sequence],
    group: int,
    length: int,
    slots: ImageSlots,
    config: Qwen3VLConfig,
    *,
    length_key: str = "batch.length",
) -> EpisodeBatch:
    """Pads episodes into a batch; rows of one group follow one another and share the scene of the first.

    Rows that lie on other processes only may be empty.

    Args:
      length_key: where the config has `length`, for the message.

    Raises:
      ConfigError: an episode is longer than `length`.
    """
    longest = max(len(row.tokens) for row in rows)
    if longest > length:
        raise ConfigError(f"a row has {longest} tokens: raise config.{length_key} (now {length})")
    merge = config.vision.spatial_merge_size
    shape = (len(rows), length)
    tokens, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    positions, policy = np.zeros((*shape, 3), np.int32), np.zeros(shape, bool)
    image_index = np.full(shape, -1, np.int32)
    for r, row in enumerate(rows):
        count = len(row.tokens)
        if not count:
            continue
        tokens[r, :count] = row.tokens
        policy[r, :count] = row.policy
        segment_ids[r, :count] = 1
        grids = np.array([grid for _, grid in row.pictures])
        positions[r, :count], _ = mrope_positions(tokens[r, :count], grids, config)
        placeholders = np.flatnonzero(tokens[r, :count] == config.image_token_id)
        image_index[r, placeholders] = slots.token_index([int(np.prod(grid)) // merge**2 for grid in grids], merge)
    scene_of = {(q,): row.pictures[0] for q, row in enumerate(rows[::group]) if row.pictures}
    scenes = placed_inputs(scene_of, (len(rows) // group,), slots.scene, config, slots.dtype)
    crop_of = {(r, s): crop for r, row in enumerate(rows) for s, crop in enumerate(row.pictures[1:])}
    crops = placed_inputs(crop_of, (len(rows), slots.crops), slots.crop, config, slots.dtype)
    return EpisodeBatch(tokens, positions, segment_ids, policy, image_index, scenes, crops)


def abstract_batch(rows: int, group: int, length: int, slots: ImageSlots, config: Qwen3VLConfig) -> EpisodeBatch:
    """The shapes of `make_batch`."""

    def shape(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, length, *more), dtype)

    def pictures(*shape: int) -> ImageInputs:
        one = empty_inputs(1, shape[-1], config, slots.dtype)
        return ImageInputs(*(jax.ShapeDtypeStruct((*shape, *x.shape[2:]), x.dtype) for x in one))

    return EpisodeBatch(
        tokens=shape(jnp.int32),
        positions=shape(jnp.int32, 3),
        segment_ids=shape(jnp.int32),
        policy=shape(jnp.bool),
        image_index=shape(jnp.int32),
        scenes=pictures(rows // group, slots.scene),
        crops=pictures(rows, slots.crops, slots.crop),
    )


def encode_pictures(model: Qwen3VL, scenes: ImageInputs, crops: ImageInputs) -> ImageFeatures:
    """Image tokens of each row, scene first: tokens [R, M, D], deepstack [F, R, M, D]."""
    rows, slots = crops.mask.shape[:2]
    group = rows // scenes.mask.shape[0]
    scene = model.encode_images(scenes)
    if not slots:
        return jax.tree.map(lambda x: jnp.repeat(x, group, axis=-3), scene)
    if model.execution.remat == "full":
        # One view of every row at a time: then the backward pass keeps the tower's activations of one view only, in
        # addition to those of the decoder.
        slots_first = jax.tree.map(lambda x: x.swapaxes(0, 1), crops)
        by_slot = map_pieces(model.encode_images, slots_first, model.execution.mesh)
        crop = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -3), by_slot)
    else:
        crop = model.encode_images(jax.tree.map(lambda x: x.reshape(rows * slots, *x.shape[2:]), crops))

    def pool(scene_QxKxD: jax.Array, crop: jax.Array) -> jax.Array:
        dim = scene_QxKxD.shape[-1]
        return jnp.concatenate([jnp.repeat(scene_QxKxD, group, axis=0), crop.reshape(rows, -1, dim)], axis=1)

    return ImageFeatures(
        tokens=pool(scene.tokens, crop.tokens),
        deepstack=jax.vmap(pool)(scene.deepstack, crop.deepstack),
    )


def episode_log_probs(
    model: Qwen3VL, batch: EpisodeBatch, *, temperature: float, banned_V: jax.Array | None, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token after those before it, and the entropy there, float32 [R, L]; 0 at the first."""
    x, deepstack = model.embed(batch.tokens, batch.image_index, encode_pictures(model, batch.scenes, batch.crops))
    hidden, _ = model.hidden(x, deepstack, batch.positions, batch.segment_ids)
    log_prob, entropy = token_log_probs(
        model, hidden[:, :-1], batch.tokens[:, 1:], temperature=temperature, banned_V=banned_V, chunk=chunk
    )
    pad = ((0, 0), (1, 0))
    return jnp.pad(log_prob, pad), jnp.pad(entropy, pad)
