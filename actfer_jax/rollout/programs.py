"""The jitted programs of a rollout: prefill a batch of queries, decode a chunk of tokens, fill rows with tool replies.

Shapes never depend on what the policy does. Every row has cursors of its own and no gaps: a row's tokens, its KV cache
and its rotary positions are those of the same episode run alone. The last token of a row is always *pending*: it is in
`tokens`, but its keys and values are not in the cache yet. So every program starts from the same state, and only
decoding computes logits.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from actfer_jax.models.cache import KVCache, Past, init_cache, write_cache
from actfer_jax.models.images import ImageInputs
from actfer_jax.models.layers import Params
from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.parallel import sharding
from actfer_jax.parallel.resharding import reshard
from actfer_jax.parallel.sharding import ONE_DEVICE, Meshes
from actfer_jax.rollout.batch import encode_views
from actfer_jax.rollout.sampling import sample

BLOCK = 128
"""Positions in whose multiples a kernel takes a cache (`models/ragged_attention.py`)."""


class RowState(NamedTuple):
    """R rows in flight, T positions each: those of Q queries, whose prompts they share.

    Attributes:
      tokens: int32 [R, T]. Positions that are still free hold -1, or the token that is to be taken there instead of one
        that is drawn.
      loss_mask: bool [R, T], true where the policy sampled the token.
      log_probs: float32 [R, T], of the distribution that was sampled (temperature and ban applied); 0 elsewhere.
      raw_log_probs: float32 [R, T], at temperature 1 and without the ban.
      length: int32 [R], tokens so far.
      position: int32 [R], rotary position of the pending token (all three axes agree at text).
      limit: int32 [R], length at which the present turn is cut.
      active: bool [R], the row is decoding.
      keys: the row's random key; the draw for position t uses `fold_in(key, t)` and nothing else.
      cache: of each row, from the last token of its prompt on, [layers, R, kv heads, S, dim].
      prompt: of each query, what comes before that, [layers, Q, kv heads, P, dim].
      prompt_length: int32 [R], positions of it that are filled.
    """

    tokens: jax.Array
    loss_mask: jax.Array
    log_probs: jax.Array
    raw_log_probs: jax.Array
    length: jax.Array
    position: jax.Array
    limit: jax.Array
    active: jax.Array
    keys: jax.Array
    cache: KVCache
    prompt: KVCache
    prompt_length: jax.Array


class Fill(NamedTuple):
    """Replies for F rows; a row index of R or more is padding.

    Where rows are divided over the parts of a mesh, so are the F slots, and each part's slots are for its own rows.
    The arrays are numpy's until they are placed on devices.

    Attributes:
      rows: int32 [F].
      tokens: int32 [F, S]: the row's pending token, then the reply; the last reply token becomes the pending one.
      used: int32 [F], how many of them there are.
      positions: int32 [F, S, 3]; position: int32 [F], that of the last token.
      image_index: int32 [F, S], -1 at text, else the image token within the view.
      views: [F, 1, P, ...].
    """

    rows: jax.Array
    tokens: jax.Array
    used: jax.Array
    positions: jax.Array
    position: jax.Array
    image_index: jax.Array
    views: ImageInputs


def row_keys(seed: int, step: int, query_Q: ArrayLike, group_size: int) -> jax.Array:
    """One key a rollout, [Q * G], folded from (seed, step, query, rollout) alone: no schedule can change a draw."""
    # threefry, since rbg keys make batched draws depend on the position in the batch.
    base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, 0))
    query = jnp.repeat(jax.vmap(partial(jax.random.fold_in, base))(jnp.asarray(query_Q)), group_size)
    return fold(query, jnp.arange(query.size) % group_size)


class Programs:
    """The compiled programs of one model and one set of shapes.

    Args:
      graphdef: the model's structure (`nnx.split`), on the mesh (`models.on_mesh`).
      group_size: rollouts a query, G.
      length: positions a row holds, T.
      suffix: most of them from the last token of the prompt on.
      chunk: most tokens a call of `decode` adds.
      turn_tokens: most tokens of a turn.
      turn_end_id: the token that ends a turn.
      temperature: of sampling; 0 takes the likeliest token (log-probabilities are then those of temperature 1).
      banned_V: ids that are never sampled.
      meshes: the one that the parameters come from, and the one over which rows, heads and vocabulary are divided.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[Qwen3VL],
        *,
        group_size: int,
        length: int,
        suffix: int,
        chunk: int,
        turn_tokens: int,
        turn_end_id: int,
        temperature: float,
        banned_V: ArrayLike,
        meshes: Meshes = ONE_DEVICE,
    ):
        self.graphdef = graphdef
        self.group_size, self.length, self.chunk = group_size, length, chunk
        self.cached = min(length, -(-suffix // BLOCK) * BLOCK)
        self.turn_tokens, self.turn_end_id = turn_tokens, turn_end_id
        self.banned_V = jnp.asarray(banned_V)
        self.update_mesh, self.mesh = meshes
        self.sample = partial(sample, temperature=temperature, banned_V=self.banned_V, mesh=self.mesh)
        self.reshard = jax.jit(self._reshard, static_argnums=1)
        self.prefill = jax.jit(self._prefill)
        self.decode = jax.jit(self._decode, donate_argnums=1)
        self.fill = jax.jit(self._fill, donate_argnums=1)

    def weights(self, params: Params) -> Params:
        """The parameters as the other programs want them: copies, but of those that are so already (`split`).

        Copies are wanted once a rollout: else every token would cast all weights, and gather them over "fsdp".
        """
        shared, others = self.split(params)
        if not jax.tree.leaves(others):
            return params
        return nnx.merge_state(shared, self.reshard(others, self.dtype(params)))

    def split(self, params: Params) -> tuple[Params, Params]:
        """The parameters that are in the dtype of the computation and on the same devices in both meshes, such as the
        frozen ones on one device; and the others."""
        dtype = self.dtype(params)

        def shared(path: tuple[Any, ...], leaf: Any) -> bool:
            return leaf.dtype == dtype and sharding.same_division(leaf, self.update_mesh, self.mesh)

        ready, others = nnx.split_state(params, shared, ...)
        return ready, others

    def dtype(self, params: Params) -> DTypeLike:
        """Of the computation."""
        return nnx.merge(self.graphdef, params).execution.dtype

    def _reshard(self, params: Params, dtype: DTypeLike) -> Params:
        return reshard(sharding.cast(params, dtype), self.update_mesh, self.mesh)

    def _prefill(
        self,
        params: Params,
        tokens_QxP: jax.Array,
        count_Q: jax.Array,
        positions_QxPx3: jax.Array,
        image_index_QxP: jax.Array,
        scenes: ImageInputs,
        valid_Q: jax.Array,
        keys: jax.Array,
    ) -> RowState:
        """Runs each prompt once, for all rollouts of the group; invalid queries stay idle."""
        model = nnx.merge(self.graphdef, params)
        queries, capacity = tokens_QxP.shape
        # The last token is pending.
        segment_ids = (jnp.arange(capacity)[None] < count_Q[:, None] - 1).astype(jnp.int32)
        x, deepstack = model.embed(tokens_QxP, image_index_QxP, encode_views(model, scenes))
        _, prompt = model.hidden(x, deepstack, positions_QxPx3, segment_ids)

        def to_rows(values: jax.Array) -> jax.Array:
            return jnp.repeat(values, self.group_size, axis=0)

        rows = queries * self.group_size
        last = jnp.take_along_axis(positions_QxPx3[:, :, 0], count_Q[:, None] - 1, axis=1)[:, 0]
        prompts = jnp.where(jnp.arange(capacity)[None] < count_Q[:, None], tokens_QxP, -1)
        tokens = jnp.full((queries, self.length), -1, jnp.int32).at[:, :capacity].set(prompts)
        length = to_rows(count_Q)
        state = RowState(
            tokens=to_rows(tokens),
            loss_mask=jnp.zeros((rows, self.length), bool),
            log_probs=jnp.zeros((rows, self.length), jnp.float32),
            raw_log_probs=jnp.zeros((rows, self.length), jnp.float32),
            length=length,
            position=to_rows(last),
            limit=jnp.minimum(length + self.turn_tokens, self.length),
            active=to_rows(valid_Q),
            keys=keys,
            cache=init_cache(model.config, rows, self.cached, prompt.keys.dtype),
            prompt=prompt,
            prompt_length=length - 1,
        )
        return self._divided(state)

    def _divided(self, state: RowState) -> RowState:
        """The state as every program takes it and leaves it: rows, and heads of the caches, divided over the mesh."""

        def divided(part: Any) -> Any:
            if isinstance(part, KVCache):
                return KVCache(*(sharding.constrain(x, self.mesh, "layers", "rows", "kv_heads") for x in part))
            return sharding.constrain(part, self.mesh, "rows")

        return RowState(*map(divided, state))

    def _on_device(self, rows: jax.Array, count: int) -> jax.Array:
        """The numbers of rows, of so many, on their own device."""
        return rows % (count // sharding.row_shards(self.mesh))

    def _decode(self, params: Params, state: RowState) -> RowState:
        """Adds up to `chunk` tokens to every active row; stops early once no row is active."""
        model = nnx.merge(self.graphdef, params)
        row = jnp.arange(state.length.shape[0])

        def step(carry: tuple[jax.Array, RowState]) -> tuple[jax.Array, RowState]:
            count, state = carry
            pending = state.tokens[row, state.length - 1][:, None]
            positions = jnp.broadcast_to(state.position[:, None, None], (row.size, 1, 3))
            x, _ = model.embed(pending)
            # What an idle row computes is dropped, so it need not read its cache.
            start = state.length - 1 - state.prompt_length
            in_prompt = jnp.where(state.active, state.prompt_length, 0).reshape(-1, self.group_size).max(-1)
            pasts = (
                Past(*state.prompt, in_prompt, self._on_device(row[: in_prompt.size], in_prompt.size)),
                Past(*state.cache, jnp.where(state.active, start, 0), self._on_device(row, row.size)),
            )
            hidden, new = model.hidden(x, None, positions, jnp.ones_like(pending), pasts)
            logits, told = model.unembed(hidden[:, 0]), state.tokens[row, state.length]
            token, log_prob, raw_log_prob = self.sample(logits, state.keys, state.length, told)
            # An idle row writes out of bounds, which is dropped.
            at = row, jnp.where(state.active, state.length, self.length)
            length = state.length + state.active
            ended = (token == self.turn_end_id) | (length >= state.limit)
            return count + 1, state._replace(
                tokens=state.tokens.at[at].set(token, mode="drop"),
                loss_mask=state.loss_mask.at[at].set(True, mode="drop"),
                log_probs=state.log_probs.at[at].set(log_prob, mode="drop"),
                raw_log_probs=state.raw_log_probs.at[at].set(raw_log_prob, mode="drop"),
                length=length,
                position=state.position + state.active,
                active=state.active & ~ended,
                cache=write_cache(state.cache, new, start, mesh=self.mesh),
            )

        def more(carry: tuple[jax.Array, RowState]) -> jax.Array:
            return (carry[0] < self.chunk) & carry[1].active.any()

        return self._divided(jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), state))[1])

    def _fill(self, params: Params, state: RowState, fill: Fill) -> RowState:
        """Appends the replies to their rows, which go on decoding; all other rows are left alone."""
        model = nnx.merge(self.graphdef, params)
        # A slot of padding reads the row of its number, which is on its device, and writes nothing.
        slots, count = fill.rows.size, state.length.size
        rows = jnp.where(fill.rows < count, fill.rows, jnp.arange(slots) * count // slots)
        start = state.length[rows]
        size = fill.tokens.shape[1]
        segment_ids = (jnp.arange(size)[None] < fill.used[:, None] - 1).astype(jnp.int32)
        x, deepstack = model.embed(fill.tokens, fill.image_index, encode_views(model, fill.views))
        in_prompt = state.prompt_length[rows]
        in_cache = start - 1 - in_prompt
        pasts = (
            Past(*state.prompt, in_prompt, self._on_device(rows // self.group_size, count // self.group_size)),
            Past(*state.cache, in_cache, self._on_device(rows, count)),
        )
        _, new = model.hidden(x, deepstack, fill.positions, segment_ids, pasts)
        # tokens[start - 1] is the pending token, which the fill repeats.
        column = jnp.arange(size)[None]
        offset = jnp.where(column < fill.used[:, None], start[:, None] - 1 + column, self.length)
        at = fill.rows
        length = start + fill.used - 1
        state = state._replace(
            tokens=state.tokens.at[at[:, None], offset].set(fill.tokens, mode="drop"),
            length=state.length.at[at].set(length, mode="drop"),
            position=state.position.at[at].set(fill.position, mode="drop"),
            limit=state.limit.at[at].set(jnp.minimum(length + self.turn_tokens, self.length), mode="drop"),
            active=state.active.at[at].set(True, mode="drop"),
            cache=write_cache(state.cache, new, in_cache, fill.used - 1, at, self.mesh),
        )
        return self._divided(state)
