"""Steps of reinforcement learning: sample, score, advantages, update."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from actfer_jax import facs, plugins
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import load_format
from actfer_jax.agent.episode import Sample
from actfer_jax.data.sources import Source, batches, emotion_labels, order
from actfer_jax.parallel.hosts import Termination
from actfer_jax.parallel.sharding import block_on_cpu, cast, holders, in_memory, local, place, shared_rows
from actfer_jax.rl import rewards
from actfer_jax.rl.estimators import Estimator, Groups
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import make_batch
from actfer_jax.rollout.engine import Query, Rollout, RolloutEngine
from actfer_jax.training.config import BatchConfig, TrainConfig
from actfer_jax.training.metrics import rollout_metrics
from actfer_jax.training.state import Episodes, RunState, StepFunction, StepOutput
from actfer_jax.training.update import PolicyBatch, TrainState, make_log_probs, make_policy_update, split_batch

ARMS = {"": 0, "zoom": 1, "answer": -1}


class Sampled(NamedTuple):
    """What a step has sampled.

    Attributes:
      rollouts: [Q][G].
      assigned_BxG: the instruction of each, as in `Groups`.
      seconds: by phase, as metrics.
    """

    rollouts: list[list[Rollout]]
    assigned_BxG: np.ndarray
    seconds: dict[str, float]

    @property
    def rows(self) -> list[Rollout]:
        return [rollout for group in self.rollouts for rollout in group]


class Updated(NamedTuple):
    """What the updates of a step leave."""

    state: TrainState
    metrics: dict[str, Any]


def rl_steps(
    config: TrainConfig,
    agent: Agent,
    source: Source,
    optimizer: optax.GradientTransformation,
    start: int,
    stop: Termination,
) -> StepFunction:
    """The steps of a run after step `start`."""
    size, mesh, chat, labels = config.batch, agent.meshes.update, agent.chat, emotion_labels(config.data)
    answer_start = load_format(config.rollout).ANSWER_START if config.estimator.differs_by_token else None
    estimator: Estimator = plugins.load(config.estimator.FOLDER, config.estimator.name)
    needed_by = holders(mesh, size.queries * size.rollouts, size.microbatches)
    engine = agent.engine(queries=size.queries, group_size=size.rollouts, needed_by=needed_by)
    sample = make_sample(engine, source, size, config.estimator.forced_arm_rate, config.seed, start, stop)
    update = make_update(config, agent, engine, optimizer, estimator)

    def step_function(state: RunState, step: int) -> StepOutput:
        sampled = sample(state.train, step)
        scores = score(sampled.rollouts, config.reward)
        groups = make_groups(sampled, scores, labels, chat, answer_start)
        result, remembered = estimator.advantages(
            groups, local(state.estimator, mesh), config=config.estimator, step=step
        )
        train_state, metrics = update(state.train, sampled, groups, result)
        metrics |= rollout_metrics(sampled.rollouts, scores)
        metrics |= estimator.diagnostics(result, remembered, groups, labels)
        advantage_BxG = np.asarray(result.advantage)
        metrics["adv/std"] = float(np.std(advantage_BxG))
        metrics |= _timings(sampled, metrics)
        return StepOutput(
            RunState(train_state, place(remembered, mesh)),
            metrics,
            Episodes(sampled.rollouts, scores, advantage_BxG),
        )

    return step_function


def make_sample(
    engine: RolloutEngine,
    source: Source,
    size: BatchConfig,
    forced_arm_rate: float,
    seed: int,
    start: int,
    stop: Termination,
) -> Callable[[TrainState, int], Sampled]:
    """(state, step) -> the rollouts of the step's queries."""
    toolbox = engine.toolbox
    held = [
        any(jax.process_index() in processes for processes in engine.holders[first : first + size.rollouts])
        for first in range(0, size.queries * size.rollouts, size.rollouts)
    ]

    def with_faces(index: int, sample: Sample) -> Sample:
        """The sample; its faces are found while the devices work, so that the tools of its episodes need not wait."""
        if held[index % size.queries]:
            for number, image in enumerate(sample.images):
                toolbox.faces(sample.key, image, number)
        return sample

    dataset = order(source, seed).map_with_index(with_faces)
    samples: Iterator[list[Sample]] = batches(dataset, size.queries, start)

    def sample(state: TrainState, step: int) -> Sampled:
        began = time.perf_counter()
        queries = [Query(**vars(sample), index=row) for row, sample in enumerate(next(samples))]
        forced = assign_arms(size, forced_arm_rate, seed, step)
        waited = time.perf_counter() - began
        result = engine.run(state.weights, queries, seed=seed, step=step, forced=forced, between_chunks=stop.check)
        assigned_BxG = np.array([[ARMS[arm] for arm in group] for group in forced], np.int32)
        seconds = {f"perf/{phase}_s": value for phase, value in result.seconds.items()}
        return Sampled(result.rollouts, assigned_BxG, {"perf/data_s": waited} | seconds)

    return sample


def score(rollouts: Sequence[Sequence[Rollout]], config: rewards.BaseRewardConfig) -> list[list[dict[str, float]]]:
    """The reward of each rollout with its parts (`rewards.score`)."""
    return [
        [rewards.score(rollout.episode, rollout.query.reference, config) for rollout in group] for group in rollouts
    ]


def make_groups(
    sampled: Sampled,
    scores: list[list[dict[str, float]]],
    labels: Sequence[str],
    chat: Chat,
    answer_start: str | None,
) -> Groups:
    """What an estimator reads of a step.

    Args:
      labels: the classes, as the data set spells them.
      answer_start: what the fields of an answer begin with; None where the estimator does not tell tokens apart, and
        nobody needs to know where a decision ended.
    """
    names = [facs.normalise_emotion(label) for label in labels]
    emotions = [facs.normalise_emotion(group[0].query.reference.emotion or "") for group in sampled.rollouts]
    ends = [0 if answer_start is None else _decision_end(chat, rollout, answer_start) for rollout in sampled.rows]
    return Groups(
        reward_BxG=np.array([[score["total"] for score in group] for group in scores], np.float32),
        task_reward_BxG=np.array([[score["task"] for score in group] for group in scores], np.float32),
        inspected_BxG=np.array([[rollout.episode.inspected for rollout in group] for group in sampled.rollouts]),
        emotion_B=np.array([names.index(name) if name in names else -1 for name in emotions], np.int32),
        assigned_BxG=sampled.assigned_BxG,
        decision_end_BxG=np.array(ends, np.int32).reshape(sampled.assigned_BxG.shape),
    )


def make_update(
    config: TrainConfig,
    agent: Agent,
    engine: RolloutEngine,
    optimizer: optax.GradientTransformation,
    estimator: Estimator,
) -> Callable[[TrainState, Sampled, Groups, Any], Updated]:
    """(state, rollouts, groups, the estimator's result) -> the state after the updates of a step."""
    size, mesh, model_config = config.batch, agent.meshes.update, agent.model_config
    shared: dict[str, Any] = {
        "temperature": config.rollout.temperature,
        "banned_V": engine.programs.banned_V,
        "chunk": size.chunk,
        "mesh": mesh,
    }
    scene_rows = shared_rows(size.rollouts, size.queries * size.rollouts // size.microbatches, mesh)
    update_once = make_policy_update(agent.graphdef, optimizer, config.loss, **shared)
    log_probs = make_log_probs(agent.graphdef, **shared)
    # The reference must outlive the donated training parameters.
    reference = cast(agent.params, config.model.dtype) if config.loss.kl else None
    if config.loss.reference_offload:
        reference = in_memory(reference, "pinned_host")
    slots = engine.slots

    def update(state: TrainState, sampled: Sampled, groups: Groups, result: Any) -> Updated:
        began = time.perf_counter()
        rows = sampled.rows
        length = size.padded(max(len(row.sequence.tokens) for row in rows))
        episodes = make_batch([row.sequence for row in rows], scene_rows, length, slots, model_config)
        padding = 1 - episodes.segment_ids.mean()
        credits_NxL = estimator.token_advantages(result, groups, episodes.loss_mask, config=config.estimator)
        host_side = episodes, _pad([row.log_probs for row in rows], length), credits_NxL
        episodes, sampled_log_probs, credits = split_batch(host_side, size.microbatches, mesh)
        batch = PolicyBatch(
            episodes,
            sampled_log_probs,
            block_on_cpu(log_probs(state.weights, episodes), mesh) if config.loss.importance_cap else sampled_log_probs,
            credits,
            None if reference is None else block_on_cpu(log_probs(in_memory(reference, "device"), episodes), mesh),
        )
        packed = time.perf_counter() - began
        began = time.perf_counter()
        state, metrics = block_on_cpu(update_once(state, batch), mesh)
        # The gap between sampler and trainer means something before the first update only.
        mismatch = {name: value for name, value in metrics.items() if name.startswith("mismatch/")}
        for _ in range(size.updates - 1):
            state, metrics = block_on_cpu(update_once(state, batch), mesh)
        metrics = jax.device_get(metrics | mismatch)
        trained = time.perf_counter() - began
        seconds = {"perf/host_s": packed, "perf/train_s": trained}
        return Updated(state, metrics | seconds | {"perf/pad_frac": float(padding)})

    return update


def assign_arms(size: BatchConfig, rate: float, seed: int, step: int) -> list[list[str]]:
    """The instructed arm of each rollout: in a share of the groups, two rollouts are told to zoom and two to answer."""
    rng = np.random.default_rng((seed, step))
    arms = [[""] * size.rollouts for _ in range(size.queries)]
    for group in arms:
        if rng.random() < rate:
            group[:4] = ["zoom", "zoom", "answer", "answer"]
    return arms


def _decision_end(chat: Chat, rollout: Rollout, answer_start: str) -> int:
    """Index of the token with which a rollout decided whether to inspect the face: the end of the call that did, or
    the first token of the answer's fields (the last token, where there is neither)."""
    loss_mask = np.array(rollout.sequence.loss_mask)
    starts = np.flatnonzero(loss_mask & ~np.roll(loss_mask, 1))
    ends = np.flatnonzero(loss_mask & ~np.roll(loss_mask, -1))
    for turn, end in zip(rollout.episode.turns, ends, strict=True):
        if turn.reply is not None and turn.reply.inspects and turn.reply.ok:
            return int(end)
    turn_tokens = rollout.sequence.tokens[starts[-1] : ends[-1] + 1]
    place = chat.turn_text(turn_tokens).rfind(answer_start)
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


def _timings(sampled: Sampled, metrics: dict[str, Any]) -> dict[str, float]:
    """Seconds by phase; the host is busy in rollouts and in packing their batch."""
    seconds = sampled.seconds
    rollout = sum(seconds.values()) - seconds["perf/data_s"]
    tokens = sum(sum(row.sequence.loss_mask) for row in sampled.rows)
    host = seconds["perf/host_s"] + metrics["perf/host_s"]
    return seconds | {"perf/rollout_s": rollout, "perf/host_s": host, "perf/tokens_per_s": tokens / rollout}
