"""Steps of supervised training: traces are written, packed, and learned from."""

import dataclasses
import time
from collections.abc import Iterator
from itertools import cycle, islice

import jax
import numpy as np
import optax

from actfer_jax.agent.episode import Sample
from actfer_jax.data.errors import DataError
from actfer_jax.data.sources import Samples, Source, Stratum, batches, check_reference, order, shuffled
from actfer_jax.models.initialise import whiten_patch_embedding
from actfer_jax.parallel.hosts import Termination
from actfer_jax.parallel.sharding import block_on_cpu, holders, place_parameters
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import EpisodeBatch, Sequence, make_batch
from actfer_jax.rollout.engine import view_slots
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.recorded import TracedSamples, read_traces
from actfer_jax.training.state import RunState, StepFunction, StepOutput
from actfer_jax.training.traces import TraceConfig, TraceMaker
from actfer_jax.training.update import make_sft_update, split_batch


def whitened(agent: Agent, source: Source, traces: TraceConfig, seed: int) -> Agent:
    """The agent with a patch embedding that is fitted to some of the views that it will see."""
    maker = trace_maker(traces, agent)
    patches = [
        patches
        for index in range(min(len(source), 256))
        for sequence in maker.readings(source[index])
        for patches, _ in sequence.views
    ]
    params = whiten_patch_embedding(agent.params, np.concatenate(patches), seed)
    return dataclasses.replace(agent, params=place_parameters(params, agent.meshes.update))


def trace_maker(traces: TraceConfig, agent: Agent) -> TraceMaker:
    return TraceMaker(traces, agent.chat, agent.encoder, agent.toolbox, agent.rollout)


def sft_steps(
    config: TrainConfig,
    agent: Agent,
    source: Source,
    optimizer: optax.GradientTransformation,
    start: int,
    stop: Termination,
) -> StepFunction:
    """Supervised steps: traces are written, and the next batch is packed, while the devices work."""
    maker, readings_steps = trace_maker(config.traces, agent), config.traces.readings_steps
    if config.traces.file:
        source = TracedSamples(source, read_traces(config.traces.file))
    size, mesh = config.batch, agent.meshes.update
    held = [jax.process_index() in processes for processes in holders(mesh, size.queries, size.microbatches)]
    rows = _trace_rows(config, maker, source, start, held)
    update = make_sft_update(agent.graphdef, optimizer, chunk=size.chunk, mesh=mesh, dropout_seed=config.dropout_seed)
    model_config = agent.model_config
    slots = view_slots(config.rollout, config.views, model_config, config.model.dtype)
    one_view = dataclasses.replace(slots, scene=slots.view, scenes=1, views=0)

    def packed(step: int) -> tuple[EpisodeBatch, float]:
        reads = step <= readings_steps
        shape = (config.traces.readings_length, one_view) if reads else (size.length, slots)
        key, room = ("traces.readings_length", None) if reads else ("batch.length", config.policy_tokens)
        batch = make_batch(next(rows), 1, *shape, model_config, policy_tokens=room, length_key=key)
        padding = 1 - batch.segment_ids[batch.segment_ids[:, 0] > 0].mean()
        return split_batch(batch, size.microbatches, mesh), float(padding)

    rest = map(packed, range(start + 1, config.steps + 1))
    ready = list(islice(rest, 1))

    def step_function(state: RunState, step: int) -> StepOutput:
        batch, padding = ready.pop()
        train_state, metrics = block_on_cpu(update(state.train, batch), mesh)
        began = time.perf_counter()
        ready.extend(islice(rest, 1))
        packing = time.perf_counter() - began
        metrics = jax.device_get(metrics) | {"perf/data_s": packing, "perf/pad_frac": padding}
        return StepOutput(RunState(train_state, state.estimator), metrics)

    return step_function


class Readings:
    """The readings of every sample. They are the same in each pass, and take longer to make than to learn from, so they
    are kept as long as there is room."""

    ROOM = 2**31  # bytes of patches

    def __init__(self, source: Samples, maker: TraceMaker):
        self.source, self.maker = source, maker
        self._kept = dict[int, list[Sequence]]()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Sequence]:
        if index in self._kept:
            return self._kept[index]
        made = self.maker.readings(check_reference(self.source[index]))
        size = sum(patches.values.nbytes for sequence in made for patches in sequence.views)
        if self._bytes + size <= self.ROOM:
            self._bytes += size
            self._kept[index] = made
        return made


def _trace_rows(
    config: TrainConfig, maker: TraceMaker, source: Source, start: int, held: list[bool]
) -> Iterator[list[Sequence]]:
    """The rows of each step after `start`: first readings, then episodes, which are empty in rows not `held` here.

    Readings are made of all faces everywhere: which of them goes into which row depends on the faces that are found.
    """
    queries, readings_steps = config.batch.queries, config.traces.readings_steps
    samples = order(source, config.seed)
    if start < readings_steps:
        stratum = config.traces.readings_stratum
        read = Readings(Stratum(source, stratum) if stratum else source, maker)
        readings: Iterator[list[list[Sequence]]] = batches(shuffled(read, config.seed), queries, start)
        for faces in islice(readings, readings_steps - start):
            # A face that was not found has no readings; its rows are taken by others, since the shape is fixed.
            found = [reading for face in faces for reading in face]
            if not found:
                raise DataError(f"no face was found in {queries} samples in a row of {config.data.name}")
            yield list(islice(cycle(found), queries * len(config.traces.readings_views)))

    def episode(indexed: tuple[int, Sample], rng: np.random.Generator) -> Sequence:
        index, sample = indexed
        return maker.episode(sample, rng) if held[index % queries] else Sequence([], [], [])

    # The generator of an element is a function of the seed and the element's index.
    episodes = samples.map_with_index(lambda index, sample: (index, sample)).seed(config.seed + 1).random_map(episode)
    yield from batches(episodes, queries, max(start, readings_steps))
