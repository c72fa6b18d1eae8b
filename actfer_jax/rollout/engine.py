"""Runs episodes: the loop on the host between the jitted programs and the face tools."""

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as AnySequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import Environment, EpisodeConfig
from actfer_jax.agent.episode import Episode, Reply, Sample
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import Count, at_least
from actfer_jax.faces.views import View, ViewConfig
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.models.images import mrope_positions
from actfer_jax.models.layers import Params
from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.parallel import sharding
from actfer_jax.rollout.batch import Patches, Sequence, ViewSlots, placed_inputs
from actfer_jax.rollout.encoder import ViewEncoder
from actfer_jax.rollout.exchange import Answered, Failure, exchange
from actfer_jax.rollout.programs import Fill, Programs, RowState, row_keys
from actfer_jax.rollout.threads import encode_once, tool_threads, wait_for_tools


@dataclass(frozen=True)
class RolloutConfig(EpisodeConfig):
    """Limits of an episode (`EpisodeConfig`) and how it is sampled; a run compiles once for them.

    Attributes:
      chunk: decoding steps between two looks at which rows have stopped.
      fill_rows: rows that one slot fill serves.
      tool_threads: threads that run the face tools, and cut and encode views, while the devices decode.
      temperature: of sampling while training, above 0; evaluation is greedy.
    """

    chunk: Count = 64
    fill_rows: Count = 32
    tool_threads: Count = 16
    temperature: Annotated[float, at_least(0)] = 1.0


class EncodedView(NamedTuple):
    """A view with its patches."""

    view: View
    patches: Patches


@dataclass(frozen=True)
class Query(Sample):
    """A sample that is to be played.

    Attributes:
      index: a number that names the query within its step; it seeds the sampling.
      answer_now: tell the policy to answer at once.
      scenes: the scene of each image, where they have been made ahead (`RolloutEngine.scenes`).

    Raises:
      ImageError: the image is no such array.
    """

    index: int = 0
    answer_now: bool = False
    scenes: tuple[EncodedView, ...] = field(default=(), repr=False, compare=False)


@dataclass
class Rollout:
    """One finished episode with its tokens.

    Attributes:
      episode: turns and replies.
      views: the scene of each image, then the views that the tools returned.
      sequence: the same as tokens and views, as training takes it.
      log_probs, raw_log_probs: float32 [l], 0 at tokens that the policy did not choose.
      owner: the process that surely has the pixels of the views, and that others rely on for what is written once.
      failure: what failed on the host, so that the episode says nothing of the policy; "" if nothing did.
    """

    query: Query
    episode: Episode
    views: list[View]
    sequence: Sequence
    log_probs: np.ndarray
    raw_log_probs: np.ndarray
    owner: int = 0
    failure: str = ""


@dataclass
class _Row:
    """The host's side of one row.

    Attributes:
      next_position: the rotary position of the next token.
      pending: the last token of the row, which is not in the cache yet.
      failure: as in `Rollout`; such a row is done.
    """

    query: Query
    environment: Environment
    views: list[Patches]
    next_position: int
    pending: int = 0
    failure: str = ""

    @property
    def done(self) -> bool:
        return self.environment.done or bool(self.failure)

    def run_tool(self, encode: Callable[[View], Patches], keep_failed: bool) -> Answered | Failure:
        """The reply of the tool that the last turn calls, its view encoded.

        Args:
          encode: what remembers the patches of a view, and what it raised, for the fill that asks again.
          keep_failed: tell what the tool raised, instead of raising it.
        """
        try:
            reply, seconds = self.environment.run_tool()
        except Exception as error:
            if not keep_failed:
                raise
            return Failure(f"{self.query.dataset}/{self.query.name}: {type(error).__name__}: {error}")
        if reply.view is not None:
            with suppress(Exception):
                encode(reply.view)
        return reply, seconds


@dataclass
class RolloutResult:
    """The rollouts of each query [Q][G], and seconds spent by phase."""

    rollouts: list[list[Rollout]]
    seconds: dict[str, float] = field(default_factory=dict)


class RolloutEngine:
    """Samples episodes of up to `queries` samples at a time, `group_size` of each.

    The programs compile on first use and never again, whatever the policy does.

    Args:
      graphdef: the model's structure (`nnx.split`), on the mesh (`models.on_mesh`).
      model_config: its configuration.
      greedy: take the likeliest token instead of sampling.
      meshes: the one that the parameters come from, and the one over which rows, heads and vocabulary are divided.
      needed_by: for each row, the processes that need its views afterwards, besides those that hold it on the mesh.
      dtype: the model's, in which pixels are sent to it.

    Raises:
      ConfigError: the mesh cannot divide the queries or the rows of a fill.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[Qwen3VL],
        model_config: Qwen3VLConfig,
        config: RolloutConfig,
        chat: Chat,
        encoder: ViewEncoder,
        toolbox: Toolbox,
        *,
        queries: int,
        group_size: int,
        greedy: bool = False,
        meshes: sharding.Meshes = sharding.ONE_DEVICE,
        needed_by: AnySequence[frozenset[int]] | None = None,
        dtype: DTypeLike = np.float32,
    ):
        # A query is prefilled once for its group, so whole queries lie on one part of the mesh.
        self.mesh, self.parts = meshes.rollout, sharding.row_shards(meshes.rollout)
        why = f"config.mesh.rollout divides rows into {self.parts} parts"
        sharding.check_multiple("queries of an engine", queries, self.parts, why)
        sharding.check_multiple("config.rollout.fill_rows", config.fill_rows, self.parts, why)
        self.config, self.model_config = config, model_config
        self.chat, self.encoder, self.toolbox = chat, encoder, toolbox
        self.queries, self.group_size = queries, group_size
        held = sharding.holders(self.mesh, queries * group_size)
        # A row's tools are run by every process that needs its pixels; what the first of its holders hears, counts.
        self.owners = [min(processes) for processes in held]
        self.holders = held if needed_by is None else [a | b for a, b in zip(held, needed_by, strict=True)]
        self.here = jax.process_index()
        self.slots = view_slots(config, toolbox.view_config, model_config, dtype)
        self.programs = Programs(
            graphdef,
            group_size=group_size,
            length=config.max_length,
            suffix=config.suffix_tokens,
            chunk=config.chunk,
            turn_tokens=config.turn_tokens,
            turn_end_id=chat.turn_end_id,
            temperature=0.0 if greedy else config.temperature,
            banned_V=chat.banned(model_config.text.vocab_size),
            meshes=meshes,
        )

    def run(
        self,
        params: Params,
        queries: list[Query],
        *,
        seed: int,
        step: int,
        forced: list[list[str]] | None = None,
        treatment: str = "",
        keep_failed: bool = False,
        tokens: list[list[list[int]]] | None = None,
        progress: Callable[[int, int], None] | None = None,
        between_chunks: Callable[[], None] = lambda: None,
    ) -> RolloutResult:
        """Plays every episode to its end.

        Args:
          params: the model's parameters. A copy for rollouts (`Programs.weights`) lives until this returns.
          queries: at most as many as the engine was made for.
          seed, step: with a query's index and the rollout's number, all that sampling depends on.
          forced: the arm that is instructed in each rollout [Q][G]: "", "zoom" or "answer".
          treatment: what the tools do to the views that they return (`tools.TREATMENTS`).
          keep_failed: where a tool raises, end its rollout and mark it (`Rollout.failure`), instead of raising too.
          tokens: the ids of each rollout [Q][G] from the prompt on, which it then takes instead of sampling.
          progress: called with (rows finished, rows) after every chunk.
          between_chunks: called after every chunk; what it raises ends the rollout.
        """
        if not 0 < len(queries) <= self.queries:
            raise ValueError(f"{len(queries)} queries; this engine takes 1 to {self.queries}")
        encode = encode_once(self._encode)
        seconds = dict.fromkeys(("prefill", "decode", "tools", "fill", "host"), 0.0)
        clock = _Clock(seconds)
        with tool_threads(self.config.tool_threads) as pool:
            params = sharding.block_on_cpu(self.programs.weights(params), self.mesh)
            clock.lap("prefill")
            rows, prompts = self._open(queries, forced, treatment, pool)
            clock.lap("host")
            state = self._prefill(params, rows, prompts, seed, step)
            if tokens is not None:
                state = self._told(state, [ids for group in tokens for ids in group])
            clock.lap("prefill")
            # The rows that wait for a reply, each with its call, if this process needs the views and so runs the tool.
            waiting: dict[int, Future[Answered | Failure] | None] = {}
            while not all(row.done for row in rows):
                state = sharding.block_on_cpu(self.programs.decode(params, state), self.mesh)
                sampled, length, active = sharding.fetch((state.tokens, state.length, state.active), self.mesh)
                clock.lap("decode")
                for index in self._in_turn(len(rows)):
                    row = rows[index]
                    if row.done or index in waiting or active[index]:
                        continue
                    self._end_turn(row, sampled[index, : length[index]])
                    if not row.done:
                        needed = self.here in self.holders[index]
                        waiting[index] = pool.submit(row.run_tool, encode, keep_failed) if needed else None
                clock.lap("host")
                idle = not any(active[index] for index, row in enumerate(rows) if not row.done)
                state = self._serve(params, state, rows, waiting, idle, encode, clock)
                # Where no row decodes, all are filled before any goes on: a chunk takes as long for few rows.
                while idle and waiting:
                    state = self._serve(params, state, rows, waiting, idle, encode, clock)
                if progress is not None:
                    progress(sum(row.done for row in rows), len(rows))
                between_chunks()
        result = self._collect(rows, state)
        clock.lap("host")
        return RolloutResult([result[i : i + self.group_size] for i in range(0, len(result), self.group_size)], seconds)

    def sees(self, place: int) -> bool:
        """Whether this process needs the pixels of the query at a place."""
        rows = self.holders[place * self.group_size : (place + 1) * self.group_size]
        return any(self.here in processes for processes in rows)

    def scenes(self, sample: Sample, *, seen: bool = True) -> tuple[EncodedView, ...]:
        """The scenes of a sample. They may be made ahead, in any thread, so that no rollout waits for them.

        Args:
          seen: with their pixels.
        """
        views = [self.toolbox.scene(image, index, seen=seen) for index, image in enumerate(sample.images)]
        return tuple(EncodedView(view, self._encode(view)) for view in views)

    def _encode(self, view: View) -> Patches:
        values, grid = self.encoder(view.pixels)
        return Patches(values.astype(self.slots.dtype, copy=False), grid)

    def _open(
        self, queries: list[Query], forced: list[list[str]] | None, treatment: str, pool: Executor
    ) -> tuple[list[_Row], list[list[int]]]:
        """The rows of all episodes, and the token ids of each query's prompt."""
        rows, prompts = [], []
        seen = [self.sees(q) for q in range(len(queries))]
        making = {
            q: pool.submit(self.scenes, query, seen=seen[q])
            for q, query in enumerate(queries)
            if not (query.scenes and seen[q])
        }
        for q, query in enumerate(queries):
            scenes = making[q].result() if q in making else query.scenes
            first = Environment(self.config, self.chat, self.toolbox, self.encoder.tokens, treatment=treatment)
            views = [scene.view for scene in scenes]
            prompt, _ = first.reset(query, answer_now=query.answer_now, scenes=views)
            patches = [scene.patches for scene in scenes]
            prompts.append(prompt)
            for g in range(self.group_size):
                rows.append(_Row(query, first.fork(forced[q][g] if forced else ""), list(patches), 0))
        return rows, prompts

    def _prefill(self, params: Params, rows: list[_Row], prompts: list[list[int]], seed: int, step: int) -> RowState:
        capacity = self.config.prompt_tokens
        tokens = np.zeros((self.queries, capacity), np.int32)
        positions = np.zeros((self.queries, capacity, 3), np.int32)
        image_index = np.full((self.queries, capacity), -1, np.int32)
        count = np.ones(self.queries, np.int32)
        merge, slots = self.model_config.vision.spatial_merge_size, self.slots
        groups = [rows[first : first + self.group_size] for first in range(0, len(rows), self.group_size)]
        for q, (group, ids) in enumerate(zip(groups, prompts, strict=True)):
            count[q] = len(ids)
            tokens[q, : len(ids)] = ids
            positions[q, : len(ids)], next_position = mrope_positions(
                tokens[q, : len(ids)], np.array([scene.grid for scene in group[0].views]), self.model_config
            )
            at = np.flatnonzero(tokens[q] == self.model_config.image_token_id)
            scene_tokens = [math.prod(scene.grid) // merge**2 for scene in group[0].views]
            image_index[q, at] = slots.token_index(scene_tokens, len(scene_tokens), merge)
            for row in group:
                row.next_position = next_position
        scene_of = {(q, i): scene for q, group in enumerate(groups) for i, scene in enumerate(group[0].views)}
        shape = (self.queries, slots.scenes)
        scenes = placed_inputs(scene_of, shape, slots.scene, self.model_config, slots.dtype)
        # Places of queries short of the engine's number stay idle.
        index = np.zeros(self.queries, np.uint32)
        index[: len(groups)] = [group[0].query.index for group in groups]
        keys = row_keys(seed, step, index, self.group_size)
        valid = np.arange(self.queries) < len(groups)
        inputs = sharding.place((tokens, count, positions, image_index, scenes, valid, keys), self.mesh, "rows")
        return jax.block_until_ready(self.programs.prefill(params, *inputs))

    def _told(self, state: RowState, rows: list[list[int]]) -> RowState:
        """The state before the first turn, in which every row is told its tokens."""
        tokens = np.full(state.tokens.shape, -1, np.int32)
        for row, ids in zip(tokens, rows, strict=False):
            row[: len(ids)] = ids
        return state._replace(tokens=jnp.maximum(state.tokens, sharding.place(tokens, self.mesh, "rows")))

    def _end_turn(self, row: _Row, tokens: np.ndarray) -> None:
        """Reads the turn that a row has just ended: the row is done, or waits for a tool."""
        sampled = tokens[row.environment.length :].tolist()
        row.next_position += len(sampled)
        row.pending = sampled[-1]
        text = self.chat.turn_text(sampled)
        row.environment.end_turn(text, len(sampled), truncated=sampled[-1] != self.chat.turn_end_id)

    def _in_turn(self, rows: int) -> list[int]:
        """The rows, of each part of the mesh in turn: a fill has slots for all parts."""
        part = self.queries * self.group_size // self.parts
        return sorted(range(rows), key=lambda row: row % part)

    def _serve(
        self,
        params: Params,
        state: RowState,
        rows: list[_Row],
        waiting: dict[int, Future[Answered | Failure] | None],
        idle: bool,
        encode: Callable[[View], Patches],
        clock: "_Clock",
    ) -> RowState:
        """The state after full fills with the replies that are there, and after the last one, if no row decodes.

        Args:
          waiting: the rows that wait for a reply; those that no longer do are taken out.
          idle: no row decodes, so there is nothing to wait for but tools.
        """
        fill_rows = self.config.fill_rows
        calls = {index: call for index, call in waiting.items() if call is not None}
        if idle:
            # The devices fill some rows while the tools of others run.
            wait_for_tools(calls.values(), fill_rows)
        done = {index: call.result() for index, call in calls.items() if call.done()}
        ready, failed = exchange(list(waiting), done, self.holders, self.owners)
        for index, failure in failed.items():
            rows[index].failure = failure.problem
            del waiting[index]
        clock.lap("tools")
        last = idle and len(ready) == len(waiting)
        while ready:
            slots = self._slots(list(ready))
            if not last and len(slots if idle else ready) < fill_rows:
                break
            served = {slots[index]: (index, *ready.pop(index)) for index in slots}
            for index in slots:
                del waiting[index]
            state = self._fill(params, state, rows, served, encode)
        clock.lap("fill")
        return state

    def _slots(self, waiting: list[int]) -> dict[int, int]:
        """The slots of the rows that the next fill serves: each part of the mesh has its own, for its own rows."""
        rows, slots = self.queries * self.group_size // self.parts, self.config.fill_rows // self.parts
        chosen: dict[int, int] = {}
        used = [0] * self.parts
        for row in waiting:
            part = row // rows
            if used[part] < slots:
                chosen[row] = part * slots + used[part]
                used[part] += 1
        return chosen

    def _fill(
        self,
        params: Params,
        state: RowState,
        rows: list[_Row],
        served: dict[int, tuple[int, Reply, float]],
        encode: Callable[[View], Patches],
    ) -> RowState:
        """Serves the rows in their slots: (row, reply, seconds)."""
        config, size = self.config, self.config.fill_rows
        capacity = config.reply_tokens + 2
        tokens = np.zeros((size, capacity), np.int32)
        positions = np.zeros((size, capacity, 3), np.int32)
        image_index = np.full((size, capacity), -1, np.int32)
        count, position = np.ones(size, np.int32), np.zeros(size, np.int32)
        index = np.full(size, len(state.length), np.int32)
        view_of: dict[tuple[int, int], Patches] = {}
        for f, (r, reply, seconds) in served.items():
            row = rows[r]
            reply_ids, views = row.environment.observe(reply, seconds)
            ids = [row.pending, *reply_ids]
            patches = [encode(view) for view in views]
            row.views += patches
            if patches:
                (view_of[f, 0],) = patches
            grids = np.array([view.grid for view in patches], np.int64).reshape(-1, 3)
            n = len(ids)
            index[f], count[f] = r, n
            tokens[f, :n] = ids
            positions[f, :n], row.next_position = mrope_positions(
                tokens[f, :n], grids, self.model_config, start=row.next_position - 1
            )
            position[f] = row.next_position - 1
            at = np.flatnonzero(tokens[f] == self.model_config.image_token_id)
            image_index[f, at] = np.arange(at.size)
        inputs = placed_inputs(view_of, (size, 1), self.slots.view, self.model_config, self.slots.dtype)
        arrays: tuple[Any, ...] = index, tokens, count, positions, position, image_index, inputs
        fill = Fill(*arrays)
        return sharding.block_on_cpu(
            self.programs.fill(params, state, sharding.place(fill, self.mesh, "rows")), self.mesh
        )

    def _collect(self, rows: list[_Row], state: RowState) -> list[Rollout]:
        arrays = state.tokens, state.loss_mask, state.log_probs, state.raw_log_probs
        tokens, loss_mask, log_probs, raw = sharding.fetch(arrays, self.mesh)
        rollouts = []
        for r, row in enumerate(rows):
            n = row.environment.length
            scenes = len(row.query.images)
            sequence = Sequence(tokens[r, :n].tolist(), loss_mask[r, :n].tolist(), row.views, scenes)
            chosen = log_probs[r, :n], raw[r, :n]
            played = row.environment
            owner = self.owners[r]
            rollouts.append(Rollout(row.query, played.episode, played.views, sequence, *chosen, owner, row.failure))
        return rollouts


def view_slots(
    config: RolloutConfig, views: ViewConfig, model_config: Qwen3VLConfig, dtype: DTypeLike = np.float32
) -> ViewSlots:
    """The capacities that a rollout's views need, for a model that computes in a dtype."""
    unit = model_config.vision.merge_unit  # patches of a token, which is views.multiple pixels wide
    return ViewSlots(
        scene=views.scene_max_tokens * unit,
        view=views.view_max_tokens * unit,
        views=max(config.max_turns - 1, 1),
        scenes=config.images,
        dtype=dtype,
    )


class _Clock:
    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.last = seconds, time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now
