"""Trains a policy, from traces or from rollouts.

    python -m actfer_jax.train --config=configs/ucgrpo.py:demo --workdir=runs/ucgrpo

With several processes the same command is started on every host, with a workdir that all of them see: on a shared file
system or in a bucket (`--workdir=gs://bucket/run`, which needs the package's extra `tpu`). On a TPU they
find each other; elsewhere `--coordinator`, `--processes` and `--process` say who is who.

The run goes on by itself if the workdir holds a checkpoint. The workdir gets `metrics.jsonl` and TensorBoard files,
`manifest.json`, `episodes/`, `checkpoints/`, `evaluation.json`, and at the end `policy/`: a Hugging Face directory.
"""

import dataclasses
import hashlib
import json
import logging
import os
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import cycle, islice
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from absl import flags
from etils import epath
from flax import nnx
from ml_collections import config_flags

from actfer_jax import cli, facs, hosts
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.agent.prompts import prompts_hash
from actfer_jax.agent_loader import Agent, load_agent
from actfer_jax.checkpoints import Checkpoints
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.sources import (
    DataError,
    Sample,
    Source,
    SubtleSamples,
    batches,
    emotion_labels,
    open_face_store,
    open_source,
    order,
)
from actfer_jax.data.traces import TraceMaker
from actfer_jax.episode_picture import episode_picture
from actfer_jax.episode_records import to_record
from actfer_jax.evaluation.controls import evaluate_policy
from actfer_jax.evaluation.metrics import summarise
from actfer_jax.evaluation.progress import ProgressLine
from actfer_jax.evaluation.tables import controls_table
from actfer_jax.files import write_atomically
from actfer_jax.hosts import Interrupted, Termination, termination
from actfer_jax.metrics import (
    EVALUATION,
    MANIFEST,
    Alarms,
    Goodput,
    MetricWriter,
    Progress,
    ResourceMeter,
    WorkdirError,
    check_workdir,
    write_evaluation,
    write_manifest,
)
from actfer_jax.models import Qwen3VL, save_pretrained
from actfer_jax.models.initialise import whiten_patch_embedding
from actfer_jax.optimizer import make_optimizer
from actfer_jax.profiling import Profiler
from actfer_jax.records import EpisodeWriter
from actfer_jax.rl import rewards, ucgrpo
from actfer_jax.rollout.batch import EpisodeBatch, Sequence, make_batch
from actfer_jax.rollout.engine import Query, Rollout, RolloutResult, image_slots
from actfer_jax.run_state import RunState, abstract_state, initial_state
from actfer_jax.settings import TrainConfig
from actfer_jax.sharding import (
    cast,
    holders,
    in_memory,
    local,
    make_meshes,
    place,
    place_parameters,
    settle,
    shared_rows,
)
from actfer_jax.train_step import (
    PolicyBatch,
    make_log_probs,
    make_policy_update,
    make_sft_update,
    split_batch,
)
from actfer_jax.training_metrics import rollout_metrics

log = logging.getLogger(__name__)

DATA_THREADS = 2

SHOWN = ("sft/loss", "reward/total", "reward/emotion", "zoom_rate/subtle", "zoom_rate/plain", "policy/entropy")
"""Metrics that stand in the line of progress, as far as the run has them."""


class StepOutput(NamedTuple):
    """What a step leaves behind: the state, its metrics, and in reinforcement learning the episodes."""

    state: RunState
    metrics: dict[str, Any]
    rollouts: list[list[Rollout]]
    scores: list[list[dict[str, float]]]
    advantages: np.ndarray


StepFunction = Callable[[RunState, int], StepOutput]


def train(config: TrainConfig, workdir: epath.Path, raw_config: ml_collections.ConfigDict, stop: Termination) -> None:
    """Runs the whole training of a config in a workdir.

    Raises:
      Interrupted: the run was told to stop; it has saved what was done.
    """
    _keep_programs(workdir / "compilation_cache")
    started = _open_workdir(workdir, raw_config)
    meshes = make_meshes(config.mesh)
    config.check_meshes(meshes)
    store = open_face_store(config.data)
    agent = load_agent(config.model, config.views, config.rollout, seed=config.seed, store=store, meshes=meshes)
    source = hosts.first_before_others(lambda: open_source(config.data))
    log.info("%s: %d samples; the model has %s parameters", config.data.name, len(source), f"{_count(agent.params):,}")
    optimizer = make_optimizer(config.optimizer, config.steps * config.batch.updates)
    if config.model.initialise == "random":
        agent = whitened(config, agent, source)
    kept = config.checkpoint
    with Checkpoints(
        workdir / "checkpoints", keep=kept.keep, best=kept.best, best_metric=kept.best_metric
    ) as checkpoints:
        restored = checkpoints.restore_latest(abstract_state(config, agent.model_config, meshes.update)[1])
        if restored:
            start, state = restored[:2]
            if start > config.steps:
                raise ConfigError(
                    f"config.steps is {config.steps}, but {workdir} has trained {start}; give at least as many, or "
                    "export an earlier checkpoint"
                )
            log.info("continuing after step %d of %d", start, config.steps)
        else:
            start, state = 0, initial_state(agent.params, optimizer, meshes.update)
        records = EpisodeWriter(workdir, jax.process_index())
        if hosts.is_first():
            records.drop_after(start)
        _evaluate("before", config, agent, agent.params, workdir, stop)
        make_step = sft_steps if config.algorithm == "sft" else rl_steps
        step_function = make_step(config, agent, source, optimizer, start, stop)
        # Lets go of what was loaded, where a checkpoint has taken its place.
        agent = dataclasses.replace(agent, params=state.train.params)
        progress, alarms = Progress(config.steps, start), Alarms()
        goodput = Goodput(started, restored[2]["productive_s"] if restored else 0.0)
        with (
            MetricWriter(workdir, start if restored else None) if hosts.is_first() else nullcontext() as writer,
            Profiler(config.logging, workdir) as profiler,
            closing(ResourceMeter()) as meter,
        ):
            if writer is not None:
                writer.write_hparams(raw_config)
            try:
                for number, step in enumerate(range(start + 1, config.steps + 1), start=1):
                    with profiler.step(number):
                        began = time.perf_counter()
                        state, metrics, *episodes = step_function(state, step)
                        took = time.perf_counter() - began
                    goodput.add(took)
                    metrics |= {"perf/step_s": took, "perf/goodput": goodput.share()}
                    metrics |= meter.metrics()
                    if writer is not None and (step % config.logging.every == 0 or step == config.steps):
                        writer.write(step, metrics)
                        progress.update(step, {name: float(metrics[name]) for name in SHOWN if name in metrics})
                        for alarm in alarms.update(step, {name: float(value) for name, value in metrics.items()}):
                            log.warning("step %d: %s", step, alarm)
                    _show_episodes(config, step, episodes, writer, records)
                    saved = {"seed": config.seed, "productive_s": goodput.productive}
                    if step % config.checkpoint.every == 0 or step == config.steps:
                        checkpoints.save(step, state, saved, metrics)
                    start = step
                    stop.check()
            except Interrupted:
                # A rollout that was under way is dropped; the state is that of the last whole step.
                if start > (restored[0] if restored else 0):
                    checkpoints.save(start, state, saved, metrics)
                checkpoints.wait()
                if start:
                    log.warning(
                        "told to stop: saved step %d of %d; the same command goes on from there", start, config.steps
                    )
                else:
                    log.warning("told to stop before the first step was done; the same command starts again")
                raise
        params = state.train.params
    save_policy(config, agent.graphdef, params, workdir / "policy")
    _evaluate("after", config, agent, params, workdir, stop)
    # A process that leaves long before another, which writes the policy, takes it along.
    hosts.gather(None)


def _keep_programs(directory: epath.Path) -> None:
    """Keeps compiled programs for the next start of this run, unless the user keeps them elsewhere; to be called before
    anything is compiled."""
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        # XLA's programs for CPUs lose the order of their collectives on disk: read back, they may wait for ever.
        jax.config.update("jax_enable_compilation_cache", False)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _open_workdir(workdir: epath.Path, raw_config: ml_collections.ConfigDict) -> float:
    """Makes the workdir a workdir of this run, and makes sure that every process can use it.

    Returns:
      When the run first started, seconds since 1970.

    Raises:
      WorkdirError, ConfigError: one of them cannot.
    """

    def begin() -> float:
        check_workdir(workdir, raw_config)
        return write_manifest(workdir, raw_config, prompts_hash())

    started = hosts.from_first(begin)
    manifest = workdir / MANIFEST
    seen = hosts.gather(hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else "")
    if len(set(seen)) > 1:
        raise ConfigError(
            f"the workdir {workdir} of process 0 is not seen by all processes: give a --workdir on a file system "
            "that every host has mounted, or in a bucket"
        )
    problem = ""
    if not hosts.is_first():
        # By now the manifest is there, with the config of process 0.
        try:
            check_workdir(workdir, raw_config)
        except WorkdirError as error:
            problem = str(error)
    if problems := list(filter(None, hosts.gather(problem))):
        raise WorkdirError(problems[0])
    return started


def whitened(config: TrainConfig, agent: Agent, source: Source) -> Agent:
    """The agent with a patch embedding that is fitted to some of the views that it will see."""
    maker = trace_maker(config, agent)
    patches = [
        patches
        for index in range(min(len(source), 256))
        for sequence in maker.readings(source[index])
        for patches, _ in sequence.pictures
    ]
    params = whiten_patch_embedding(agent.params, np.concatenate(patches), config.seed)
    return dataclasses.replace(agent, params=place_parameters(params, agent.meshes.update))


def trace_maker(config: TrainConfig, agent: Agent) -> TraceMaker:
    style, max_turns = config.rollout.prompt_style, config.rollout.max_turns
    return TraceMaker(config.traces, agent.chat, agent.encoder, agent.toolbox, style=style, max_turns=max_turns)


def sft_steps(
    config: TrainConfig,
    agent: Agent,
    source: Source,
    optimizer: optax.GradientTransformation,
    start: int,
    stop: Termination,
) -> StepFunction:
    """Supervised steps: traces are written, and the next batch is packed, while the devices work."""
    maker, readings_steps = trace_maker(config, agent), config.traces.readings_steps
    size, mesh = config.batch, agent.meshes.update
    held = [jax.process_index() in processes for processes in holders(mesh, size.queries, size.microbatches)]
    rows = _trace_rows(config, maker, source, start, held)
    update = make_sft_update(agent.graphdef, optimizer, chunk=size.chunk, mesh=mesh)
    model_config = agent.model_config
    slots = image_slots(config.rollout, config.views, model_config, config.model.dtype)
    one_view = dataclasses.replace(slots, scene=slots.crop, crops=0)

    def packed(step: int) -> tuple[EpisodeBatch, float]:
        reads = step <= readings_steps
        shape = (config.traces.readings_length, one_view) if reads else (size.length, slots)
        key = "traces.readings_length" if reads else "batch.length"
        batch = make_batch(next(rows), 1, *shape, model_config, length_key=key)
        padding = 1 - batch.segment_ids[batch.segment_ids[:, 0] > 0].mean()
        return split_batch(batch, size.microbatches, mesh), float(padding)

    rest = map(packed, range(start + 1, config.steps + 1))
    ready = list(islice(rest, 1))

    def step_function(state: RunState, step: int) -> StepOutput:
        batch, padding = ready.pop()
        train_state, metrics = settle(update(state.train, batch), mesh)
        began = time.perf_counter()
        ready.extend(islice(rest, 1))
        packing = time.perf_counter() - began
        metrics = jax.device_get(metrics) | {"perf/data_s": packing, "perf/pad_frac": padding}
        return StepOutput(RunState(train_state, state.calibration), metrics, [], [], np.zeros(0))

    return step_function


def _trace_rows(
    config: TrainConfig, maker: TraceMaker, source: Source, start: int, held: list[bool]
) -> Iterator[list[Sequence]]:
    """The rows of each step after `start`: first readings, then episodes, which are empty in rows not `held` here.

    Readings are made of all faces everywhere: which of them goes into which row depends on the faces that are found.
    """
    queries, readings_steps = config.batch.queries, config.traces.readings_steps
    samples = order(source, config.seed)
    if start < readings_steps:
        read = order(SubtleSamples(source), config.seed) if config.traces.readings_subtle else samples
        readings = batches(read.map(maker.readings), queries, start, DATA_THREADS, ahead=2)
        for faces in islice(readings, readings_steps - start):
            # A face that was not found has no readings; its rows are taken by others, since the shape is fixed.
            found = [reading for face in faces for reading in face]
            if not found:
                raise DataError(f"no face was found in {queries} pictures in a row of {config.data.name}")
            yield list(islice(cycle(found), queries * len(config.traces.readings_views)))

    def episode(indexed: tuple[int, Sample], rng: np.random.Generator) -> Sequence:
        index, sample = indexed
        return maker.episode(sample, rng) if held[index % queries] else Sequence([], [], [])

    # The generator of an element is a function of the seed and the element's index.
    episodes = samples.map_with_index(lambda index, sample: (index, sample)).seed(config.seed + 1).random_map(episode)
    yield from batches(episodes, queries, max(start, readings_steps), DATA_THREADS, ahead=2)


def rl_steps(
    config: TrainConfig,
    agent: Agent,
    source: Source,
    optimizer: optax.GradientTransformation,
    start: int,
    stop: Termination,
) -> StepFunction:
    """Steps of reinforcement learning: roll out, score, weigh, update."""
    size, chat, model_config = config.batch, agent.chat, agent.model_config
    rows, mesh = size.queries * size.rollouts, agent.meshes.update
    needed_by = holders(mesh, rows, size.microbatches)
    engine = agent.engine(queries=size.queries, group=size.rollouts, needed_by=needed_by)
    held = [
        any(jax.process_index() in processes for processes in engine.holders[first : first + size.rollouts])
        for first in range(0, rows, size.rollouts)
    ]
    toolbox = agent.toolbox  # not the agent: the samples, which last as long as the run, would keep its parameters

    def with_faces(index: int, sample: Sample) -> Sample:
        """The sample; its faces are found while the devices work, so that the tools of its episodes need not wait."""
        if held[index % size.queries]:
            toolbox.faces((sample.dataset, sample.name), sample.image)
        return sample

    dataset = order(source, config.seed).map_with_index(with_faces)
    samples: Iterator[list[Sample]] = batches(dataset, size.queries, start, DATA_THREADS, ahead=2)
    shared: dict[str, Any] = {
        "temperature": config.rollout.temperature,
        "banned_V": engine.programs.banned_V,
        "chunk": size.chunk,
        "mesh": mesh,
    }
    scene_rows = shared_rows(size.rollouts, rows // size.microbatches, mesh)
    update = make_policy_update(agent.graphdef, optimizer, config.loss, **shared)
    log_probs = make_log_probs(agent.graphdef, **shared)
    # The reference must outlive the donated training parameters.
    reference = cast(agent.params, config.model.dtype) if config.loss.kl else None
    if config.loss.reference_offload:
        reference = in_memory(reference, "pinned_host")

    def step_function(state: RunState, step: int) -> StepOutput:
        began = time.perf_counter()
        queries = [
            Query(row, sample.dataset, sample.name, sample.image, sample.reference)
            for row, sample in enumerate(next(samples))
        ]
        forced = _assign_arms(config, step)
        waited = time.perf_counter() - began
        result = engine.run(
            state.train.params, queries, seed=config.seed, step=step, forced=forced, between_chunks=stop.check
        )
        scores = [
            [rewards.score(r.episode, r.query.reference, config.reward) for r in group] for group in result.rollouts
        ]
        arrays = _group_arrays(result.rollouts, scores)
        advantage, calibration = ucgrpo.advantages(
            arrays["total"],
            arrays["task"],
            arrays["inspected"],
            arrays["emotion"],
            local(state.calibration, mesh),
            config=ucgrpo.at_step(config.ucgrpo, step),
            step=step,
            forced=np.array([[bool(arm) for arm in group] for group in forced]),
        )
        began = time.perf_counter()
        flat = [rollout for group in result.rollouts for rollout in group]
        length = size.padded(max(len(r.sequence.tokens) for r in flat))
        episodes = make_batch([r.sequence for r in flat], scene_rows, length, engine.slots, model_config)
        padding = 1 - episodes.segment_ids.mean()
        decided = config.ucgrpo.credit == "decision"
        ends = np.array([_decision_end(chat, r) for r in flat]).reshape(advantage.between.shape) if decided else None
        credits = ucgrpo.token_advantages(advantage, ends, episodes.policy, credit=config.ucgrpo.credit)
        host_side = episodes, _pad([r.log_probs for r in flat], length), credits
        episodes, sampled, credits = split_batch(host_side, size.microbatches, mesh)
        batch = PolicyBatch(
            episodes,
            sampled,
            settle(log_probs(state.train.params, episodes), mesh) if config.loss.importance_cap else sampled,
            credits,
            None if reference is None else settle(log_probs(in_memory(reference, "device"), episodes), mesh),
        )
        packed = time.perf_counter() - began
        began = time.perf_counter()
        train_state, update_metrics = settle(update(state.train, batch), mesh)
        # The gap between sampler and trainer means something before the first update only.
        mismatch = {name: value for name, value in update_metrics.items() if name.startswith("mismatch/")}
        for _ in range(size.updates - 1):
            train_state, update_metrics = settle(update(train_state, batch), mesh)
        metrics = jax.device_get(update_metrics | mismatch)
        trained = time.perf_counter() - began
        metrics |= rollout_metrics(result.rollouts, scores)
        metrics |= ucgrpo.diagnostics(
            advantage,
            calibration,
            arrays["emotion"],
            facs.EMOTIONS,
            task_reward_BxG=arrays["task"],
            assigned_BxG=np.array([[{"zoom": 1, "answer": -1, "": 0}[arm] for arm in group] for group in forced]),
        )
        metrics |= {f"adv/{part}": float(np.abs(getattr(advantage, part)).mean()) for part in ("within", "between")}
        metrics["adv/std"] = float(np.std(advantage.advantage))
        metrics |= _timings(result, flat, waited, packed, trained) | {"perf/pad_frac": float(padding)}
        return StepOutput(
            RunState(train_state, place(calibration, mesh)),
            metrics,
            result.rollouts,
            scores,
            np.asarray(advantage.advantage),
        )

    return step_function


def _assign_arms(config: TrainConfig, step: int) -> list[list[str]]:
    """The instructed arm of each rollout: in a share of the groups, two rollouts are told to zoom and two to answer."""
    rng = np.random.default_rng((config.seed, step))
    arms = [[""] * config.batch.rollouts for _ in range(config.batch.queries)]
    for group in arms:
        if rng.random() < config.ucgrpo.forced_arm_rate:
            group[:4] = ["zoom", "zoom", "answer", "answer"]
    return arms


def _group_arrays(rollouts: list[list[Rollout]], scores: list[list[dict[str, float]]]) -> dict[str, np.ndarray]:
    """Rewards and arms [B, G], and each query's class in `facs.EMOTIONS` [B] (-1: unknown)."""
    labels = [facs.normalise_emotion(group[0].query.reference.emotion or "") for group in rollouts]
    return {
        "total": np.array([[score["total"] for score in group] for group in scores], np.float32),
        "task": np.array([[score["task"] for score in group] for group in scores], np.float32),
        "inspected": np.array([[rollout.episode.inspected for rollout in group] for group in rollouts]),
        "emotion": np.array(
            [facs.EMOTIONS.index(label) if label in facs.EMOTIONS else -1 for label in labels], np.int32
        ),
    }


def _decision_end(chat: Chat, rollout: Rollout) -> int:
    """Index of the token with which a rollout decided whether to inspect the face: the end of the call that did, or
    the first token of the answer's `<aus>` (the last token, where there is neither)."""
    policy = np.array(rollout.sequence.policy)
    starts = np.flatnonzero(policy & ~np.roll(policy, 1))
    ends = np.flatnonzero(policy & ~np.roll(policy, -1))
    for turn, end in zip(rollout.episode.turns, ends, strict=True):
        if turn.reply is not None and turn.reply.inspects and turn.reply.ok:
            return int(end)
    turn_tokens = rollout.sequence.tokens[starts[-1] : ends[-1] + 1]
    place = chat.turn_text(turn_tokens).rfind("<aus>")
    if place < 0:
        return int(ends[-1])
    # The first token with which the text is longer than what comes before the field.
    counts = range(1, len(turn_tokens) + 1)
    return int(starts[-1]) + bisect_left(
        counts, True, key=lambda count: len(chat.turn_text(turn_tokens[:count])) > place
    )


def _pad(rows: list[np.ndarray], length: int) -> np.ndarray:
    padded = np.zeros((len(rows), length), np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _timings(
    result: RolloutResult, rollouts: list[Rollout], waited: float, packed: float, trained: float
) -> dict[str, float]:
    seconds = result.seconds
    rollout = sum(seconds.values())
    tokens = sum(sum(r.sequence.policy) for r in rollouts)
    return {
        "perf/data_s": waited,
        "perf/rollout_s": rollout,
        "perf/prefill_s": seconds["prefill"],
        "perf/decode_s": seconds["decode"],
        "perf/tools_s": seconds["tools"],
        "perf/fill_s": seconds["fill"],
        "perf/host_s": seconds["host"] + packed,
        "perf/train_s": trained,
        "perf/tokens_per_s": tokens / rollout,
    }


def _show_episodes(
    config: TrainConfig, step: int, episodes: list[Any], writer: MetricWriter | None, records: EpisodeWriter
) -> None:
    """Writes the records of the episodes that this process owns, and on the first one now and then shows an episode in
    TensorBoard."""
    rollouts, scores, advantages = episodes
    if not rollouts:
        return
    if config.logging.records_every and step % config.logging.records_every == 0:
        records.write(
            step,
            (
                to_record(
                    rollout,
                    id=f"{step}-{q}-{g}",
                    reward=scores[q][g],
                    advantage=float(advantages[q, g]),
                    trained_on=config.trained_on,
                )
                for q, group in enumerate(rollouts)
                for g, rollout in enumerate(group)
                if rollout.owner == jax.process_index()
            ),
        )
    if writer is not None and config.logging.episodes_every and step % config.logging.episodes_every == 0:
        rollout = next(rollout for group in rollouts for rollout in group if rollout.owner == jax.process_index())
        writer.write_images(step, {"episode/picture": episode_picture(rollout)})
        turns = "\n\n".join(
            f"```\n{turn.text}\n```\n{'' if turn.reply is None else turn.reply.text}" for turn in rollout.episode.turns
        )
        truth = rollout.query.reference
        labels = f"truth: {truth.emotion}, {facs.format_aus(truth.aus or ())}"
        writer.write_texts(step, {"episode/text": f"{turns}\n\n{labels}"})


def _evaluate(
    when: str, config: TrainConfig, agent: Agent, params: nnx.State, workdir: epath.Path, stop: Termination
) -> None:
    """Evaluates greedily into `evaluation.json` and TensorBoard, unless an earlier start did; prints the table at the
    end."""
    evaluation, step = config.evaluation, 0 if when == "before" else config.steps
    if evaluation is None:
        return
    path = workdir / EVALUATION
    runs = hosts.from_first(lambda: json.loads(path.read_text()) if path.exists() else {})
    # A run that had ended may have been given more steps since.
    if when not in runs or runs[when]["step"] != step:
        samples = hosts.first_before_others(lambda: open_source(evaluation.data))
        engine = agent.engine(queries=evaluation.queries, group=1, greedy=True)
        try:
            outcomes = evaluate_policy(
                engine,
                params,
                samples,
                controls=evaluation.controls,
                seed=config.seed,
                progress=ProgressLine(f"episodes evaluated {when} training") if hosts.is_first() else None,
                between_chunks=stop.check,
            )
        except Interrupted:
            log.warning("told to stop during the evaluation %s training; the same command begins it anew", when)
            raise
        summaries = {control: summarise(results) for control, results in outcomes.items()}
        runs[when] = {"step": step, "results": summaries}
        if hosts.is_first():
            write_atomically(path, json.dumps(runs, indent=1) + "\n")
            write_evaluation(workdir, step, summaries)
    if when == "after" and hosts.is_first():
        print(controls_table({when: run["results"] for when, run in runs.items()}), flush=True)


def save_policy(config: TrainConfig, graphdef: nnx.GraphDef[Qwen3VL], params: nnx.State, directory: epath.Path) -> None:
    """Writes the trained policy as a Hugging Face directory that can be evaluated, analysed with, and trained on."""
    model = nnx.merge(graphdef, params)
    model.source = str(config.model.directory)
    save_pretrained(model, directory)
    if not hosts.is_first():
        return
    card = PolicyCard(
        labels=emotion_labels(config.data),
        trained_on=config.trained_on,
        views=vars(config.views),
        rollout=vars(config.rollout),
    )
    card.save(directory)
    log.info("the policy is in %s", directory)


def _count(params: nnx.State) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    hosts.connect(given.coordinator, given.processes, given.process)
    if not hosts.is_first():
        # What all have to say is said once; warnings and errors come from every host.
        for name in (__name__, "actfer_jax"):
            logging.getLogger(name).setLevel(logging.WARNING)
    config = read_config(given.config, TrainConfig, "config")
    with termination() as stop:
        hosts.watch_machine(stop)
        try:
            train(config, epath.Path(given.workdir), given.config, stop)
        except Interrupted:
            # In order; but who starts it again by itself must tell it from a run that is done.
            sys.exit(int(os.environ.get("ACTFER_STOPPED_STATUS", "0")))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config file, perhaps with a variant: file.py:demo.")
    flags.DEFINE_string("workdir", None, "Directory of the run; a run that is there is continued.", required=True)
    flags.DEFINE_string("coordinator", None, "Address and port of process 0; on a TPU it is found.")
    flags.DEFINE_integer("processes", None, "How many processes train together; on a TPU they are counted.")
    flags.DEFINE_integer("process", None, "Which of them this is, from 0; on a TPU it is found.")
    flags.mark_flag_as_required("config")
    cli.run(main)
