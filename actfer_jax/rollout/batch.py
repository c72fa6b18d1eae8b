"""Episodes as arrays: the one layout that supervised training, policy updates and log-probabilities share."""

import math
from collections.abc import Mapping
from collections.abc import Sequence as AnySequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from actfer_jax.config import ConfigError
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.models.images import ImageInputs, empty_inputs, mrope_positions, write_image
from actfer_jax.models.log_probs import token_log_probs
from actfer_jax.models.prefix import Prefix
from actfer_jax.models.qwen3_vl import ImageFeatures, Qwen3VL
from actfer_jax.parallel.sharding import map_in_turn


class Patches(NamedTuple):
    """One view as the image processor leaves it.

    Attributes:
      values: [p, C], in the dtype in which they are sent to the devices or in float32; [0, 0] where the view belongs to
        rows that lie on other processes only.
      grid: (1, rows, columns).
    """

    values: np.ndarray
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Sequence:
    """One episode, compact: no gaps, no padding.

    Attributes:
      tokens: ids [l].
      loss_mask: bool [l], true where the policy chose the token.
      views: the views in the order of their placeholders: the scenes, then what the tools returned.
      scenes: how many of them are scenes, one for each image of the sample.
    """

    tokens: list[int]
    loss_mask: list[bool]
    views: list[Patches]
    scenes: int = 1


class EpisodeBatch(NamedTuple):
    """R = Q * G rows padded on the right to L tokens; row r belongs to query r // G, whose scenes it shares.

    The arrays are numpy's until they are placed on devices.

    Attributes:
      tokens: int32 [R, L].
      positions: rotary positions int32 [R, L, 3].
      segment_ids: int32 [R, L]: 1 at tokens, 0 at padding.
      loss_mask: bool [R, L]: the tokens that the policy chose; nothing else is ever trained on.
      suffix_index: int32 [R, S]: the positions that are computed for the row alone. Those before them, at most L - S,
        a group shares; they are computed once for it.
      policy_index: int32 [R, C]: where the policy tokens of a row are, in order; 0, where none is, past the last.
      image_index: int32 [R, L]: -1 at text, else an index into the row's image tokens (I scenes, then S views).
      scenes: [Q, I, P0, ...].
      views: [R, S, P1, ...].
    """

    tokens: jax.Array
    positions: jax.Array
    segment_ids: jax.Array
    loss_mask: jax.Array
    suffix_index: jax.Array
    policy_index: jax.Array
    image_index: jax.Array
    scenes: ImageInputs
    views: ImageInputs

    @property
    def prefix(self) -> int:
        """The room for what a group shares, L - S."""
        return self.tokens.shape[1] - self.suffix_index.shape[1]

    def padding(self) -> float:
        """Share of the positions that an update computes which have no token; the arrays are numpy's."""
        shared_R, groups = self.suffix_index[:, 0], len(self.scenes.mask)
        once = shared_R[:: len(shared_R) // groups]
        used = self.segment_ids.sum() - shared_R.sum() + once.sum()
        return 1 - float(used) / (self.suffix_index.size + groups * self.prefix)


@dataclass(frozen=True)
class ViewSlots:
    """Capacities of the views of a row, in patches, and the type of their pixels.

    Attributes:
      scene: patches of a scene.
      view: patches of an aligned or zoomed view.
      views: aligned and zoomed views that a row can hold.
      scenes: scenes that a row can hold: the most images of a sample.
      dtype: of the patches. The vision tower computes in the model's; sent in it, 16-bit patches take half the memory.
    """

    scene: int
    view: int
    views: int
    scenes: int = 1
    dtype: DTypeLike = np.float32

    def token_index(self, view_tokens: AnySequence[int], scenes: int, merge: int) -> np.ndarray:
        """Where the tokens of each view lie among the image tokens of a row, int32 [sum(view_tokens)].

        Args:
          view_tokens: the number of tokens of each view, those of the scenes first.
          scenes: how many of them are scenes.
          merge: side of the square of patches that becomes one token.
        """
        scene, view = self.scene // merge**2, self.view // merge**2
        starts = [i * scene for i in range(scenes)] + [self.scenes * scene + i * view for i in range(self.views)]
        return np.concatenate(
            [start + np.arange(count, dtype=np.int32) for start, count in zip(starts, view_tokens, strict=False)]
        )


def placed_inputs(
    views: Mapping[tuple[int, int], Patches],
    shape: tuple[int, ...],
    capacity: int,
    config: Qwen3VLConfig,
    dtype: DTypeLike,
) -> ImageInputs:
    """Views at their indices in an array of views [*shape, capacity, ...].

    All other places are masked, and so are those of views whose patches other processes have.
    """
    placed = empty_inputs(math.prod(shape), capacity, config, dtype)
    placed = ImageInputs(*(x.reshape(*shape, *x.shape[1:]) for x in placed))

    def write(item: tuple[tuple[int, int], Patches]) -> None:
        index, view = item
        if len(view.values):
            write_image(placed, index, view.values, view.grid, config)

    # Most of the time, the system finds memory for what is written: threads do that in parallel.
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, views.items()))
    return placed


def make_batch(
    rows: list[Sequence],
    group_size: int,
    length: int,
    slots: ViewSlots,
    config: Qwen3VLConfig,
    *,
    prefix: int = 0,
    policy_tokens: int | None = None,
    length_key: str = "batch.length",
) -> EpisodeBatch:
    """Pads episodes into a batch; rows of one group follow one another and share the scenes of the first.

    Rows that lie on other processes only may be empty.

    Args:
      prefix: room in `length` for what a group shares (`shared_tokens`).
      policy_tokens: most policy tokens of a row (`EpisodeConfig.policy_tokens`); None for as many as fit into it.
      length_key: where the config has `length`, for the message.

    Raises:
      ConfigError: an episode is longer than `length`, or has more policy tokens than there is room for.
    """
    if (longest := longest_row(rows, group_size, prefix)) > length:
        raise ConfigError(f"a row has {longest} tokens: raise config.{length_key} (now {length})")
    room, most = policy_room(policy_tokens, length - prefix), max(sum(row.loss_mask) for row in rows)
    if most > room:
        raise ConfigError(
            f"a row has {most} policy tokens: raise config.rollout.max_turns or config.rollout.turn_tokens, whose "
            f"product is the most (now {room})"
        )
    merge = config.vision.spatial_merge_size
    shape = (len(rows), length)
    tokens, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    positions, loss_mask = np.zeros((*shape, 3), np.int32), np.zeros(shape, bool)
    image_index = np.full(shape, -1, np.int32)
    for r, row in enumerate(rows):
        count = len(row.tokens)
        if not count:
            continue
        tokens[r, :count] = row.tokens
        loss_mask[r, :count] = row.loss_mask
        segment_ids[r, :count] = 1
        grids = np.array([view.grid for view in row.views])
        positions[r, :count], _ = mrope_positions(tokens[r, :count], grids, config)
        placeholders = np.flatnonzero(tokens[r, :count] == config.image_token_id)
        view_tokens = [int(np.prod(grid)) // merge**2 for grid in grids]
        image_index[r, placeholders] = slots.token_index(view_tokens, row.scenes, merge)
    queries = rows[::group_size]
    scene_of = {(q, i): view for q, row in enumerate(queries) for i, view in enumerate(row.views[: row.scenes])}
    scenes = placed_inputs(scene_of, (len(queries), slots.scenes), slots.scene, config, slots.dtype)
    view_of = {(r, s): view for r, row in enumerate(rows) for s, view in enumerate(row.views[row.scenes :])}
    views = placed_inputs(view_of, (len(rows), slots.views), slots.view, config, slots.dtype)
    shared = np.repeat(shared_tokens(rows, group_size, prefix), group_size)
    suffix_index = shared[:, None] + np.arange(length - prefix, dtype=np.int32)
    indices = suffix_index, policy_index(loss_mask, room), image_index
    arrays: tuple[Any, ...] = tokens, positions, segment_ids, loss_mask, *indices, scenes, views
    return EpisodeBatch(*arrays)


def shared_tokens(rows: list[Sequence], group_size: int, room: int) -> np.ndarray:
    """How many tokens the rows of each group have in common before the one that precedes their first policy token,
    int32 [Q], at most `room`."""
    counts = []
    for first in range(0, len(rows), group_size):
        group = rows[first : first + group_size]
        prompt = min(row.loss_mask.index(True) if any(row.loss_mask) else len(row.tokens) for row in group)
        most = max(min(prompt - 1, room), 0)
        columns = zip(*(row.tokens[:most] for row in group), strict=True)
        counts.append(sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)))
    return np.array(counts, np.int32)


def longest_row(rows: list[Sequence], group_size: int, prefix: int) -> int:
    """The positions that the longest row needs beside a room for what a group shares."""
    shared = np.repeat(shared_tokens(rows, group_size, prefix), group_size)
    return max(prefix + len(row.tokens) - int(count) for row, count in zip(rows, shared, strict=True))


def policy_room(policy_tokens: int | None, suffix: int) -> int:
    """Policy tokens that a row with `suffix` positions of its own has room for: the first of these is never one."""
    return suffix - 1 if policy_tokens is None else min(policy_tokens, suffix - 1)


def policy_index(loss_mask_RxL: np.ndarray, room: int) -> np.ndarray:
    """`EpisodeBatch.policy_index` of a mask, which is false at the first token of every row, int32 [R, room]."""
    order_RxC = np.argsort(~loss_mask_RxL, axis=1, kind="stable")[:, :room]
    return np.where(np.take_along_axis(loss_mask_RxL, order_RxC, axis=1), order_RxC, 0).astype(np.int32)


def abstract_batch(
    rows: int,
    group_size: int,
    length: int,
    slots: ViewSlots,
    config: Qwen3VLConfig,
    *,
    prefix: int = 0,
    policy_tokens: int | None = None,
) -> EpisodeBatch:
    """The shapes of `make_batch`."""

    def shape(dtype: DTypeLike, *more: int) -> Any:
        return jax.ShapeDtypeStruct((rows, length, *more), dtype)

    def index(count: int) -> Any:
        return jax.ShapeDtypeStruct((rows, count), jnp.int32)

    def views(*shape: int) -> ImageInputs:
        one = empty_inputs(1, shape[-1], config, slots.dtype)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[2:]), x.dtype), one)

    return EpisodeBatch(
        tokens=shape(jnp.int32),
        positions=shape(jnp.int32, 3),
        segment_ids=shape(jnp.int32),
        loss_mask=shape(jnp.bool),
        suffix_index=index(length - prefix),
        policy_index=index(policy_room(policy_tokens, length - prefix)),
        image_index=shape(jnp.int32),
        scenes=views(rows // group_size, slots.scenes, slots.scene),
        views=views(rows, slots.views, slots.view),
    )


def encode_views(model: Qwen3VL, views: ImageInputs) -> ImageFeatures:
    """Image tokens of each row: tokens [R, S * K, D], deepstack [F, R, S * K, D], from views [R, S, P, ...]."""
    rows, slots = views.mask.shape[:2]
    if slots > 1 and model.execution.remat == "full":
        # One view of every row at a time: then the backward pass keeps the tower's activations of one view only, in
        # addition to those of the decoder.
        slots_first = jax.tree.map(lambda x: x.swapaxes(0, 1), views)
        by_slot = map_in_turn(model.encode_images, slots_first, model.execution.mesh)
        features = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -3), by_slot)
    else:
        features = model.encode_images(jax.tree.map(lambda x: x.reshape(rows * slots, *x.shape[2:]), views))

    def by_row(tokens: jax.Array) -> jax.Array:
        return tokens.reshape(rows, -1, tokens.shape[-1])

    return ImageFeatures(tokens=by_row(features.tokens), deepstack=jax.vmap(by_row)(features.deepstack))


def encode_episodes(model: Qwen3VL, scenes: ImageInputs, views: ImageInputs) -> ImageFeatures:
    """Image tokens of each row, those of the scenes, which a group shares, first: [R, M, D], deepstack [F, R, M, D]."""
    group_size = len(views.mask) // len(scenes.mask)
    shared = jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=-3), encode_views(model, scenes))
    if not views.mask.shape[1]:
        return shared
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-2), shared, encode_views(model, views))


def _hidden(model: Qwen3VL, batch: EpisodeBatch) -> jax.Array:
    """Hidden states [R, S, D] at `suffix_index`."""
    features = encode_episodes(model, batch.scenes, batch.views)
    inputs = [batch.tokens, batch.image_index, batch.positions, batch.segment_ids]
    prefix = None
    if room := batch.prefix:
        groups = len(batch.scenes.mask)

        def first(x: jax.Array) -> jax.Array:
            """The first row of each group."""
            return x.reshape(groups, -1, *x.shape[1:])[:, 0]

        tokens, image_index, positions, segment_ids = (first(x)[:, :room] for x in inputs)
        shared = ImageFeatures(first(features.tokens), jax.vmap(first)(features.deepstack))
        used = jnp.arange(room)[None] < first(batch.suffix_index)[:, :1]
        prefix = Prefix(*model.embed(tokens, image_index, shared), positions, jnp.where(used, segment_ids, 0))

        def own(x: jax.Array) -> jax.Array:
            index = batch.suffix_index.reshape(*batch.suffix_index.shape, *(1,) * (x.ndim - 2))
            return jnp.take_along_axis(x, index, axis=1)

        inputs = list(map(own, inputs))
    tokens, image_index, positions, segment_ids = inputs
    x, deepstack = model.embed(tokens, image_index, features)
    return model.hidden(x, deepstack, positions, segment_ids, prefix=prefix)[0]


def episode_log_probs(
    model: Qwen3VL, batch: EpisodeBatch, *, temperature: float, banned_V: jax.Array | None, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each policy token after those before it, and the entropy there, float32 [R, L]; 0 elsewhere.

    Logits exist at policy tokens only (`EpisodeBatch.policy_index`).
    """
    index_RxC = batch.policy_index
    before_RxC = jnp.maximum(index_RxC - 1 - batch.suffix_index[:, :1], 0)
    before_RxCxD = jnp.take_along_axis(_hidden(model, batch), before_RxC[..., None], axis=1)
    targets_RxC = jnp.take_along_axis(batch.tokens, index_RxC, axis=1)
    log_prob, entropy = token_log_probs(
        model, before_RxCxD, targets_RxC, temperature=temperature, banned_V=banned_V, chunk=chunk
    )

    @jax.vmap
    def scatter(values_C: jax.Array, index_C: jax.Array) -> jax.Array:
        values_C = jnp.where(index_C > 0, values_C, 0)
        return jnp.zeros(batch.tokens.shape[1], values_C.dtype).at[index_C].add(values_C)

    return scatter(log_prob, index_RxC), scatter(entropy, index_RxC)
