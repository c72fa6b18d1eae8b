"""Steps of reinforcement learning: roll out, score, weigh, update."""

import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from actfer_jax import facs
from actfer_jax.agent.chat import Chat
from actfer_jax.data.sources import Sample, Source, batches, order
from actfer_jax.parallel.hosts import Termination
from actfer_jax.parallel.sharding import cast, holders, in_memory, local, place, settle, shared_rows
from actfer_jax.rl import rewards, ucgrpo
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import make_batch
from actfer_jax.rollout.engine import Query, Rollout, RolloutResult
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.metrics import rollout_metrics
from actfer_jax.training.state import RunState, StepFunction, StepOutput
from actfer_jax.training.update import PolicyBatch, make_log_probs, make_policy_update, split_batch


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
    samples: Iterator[list[Sample]] = batches(dataset, size.queries, start)
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
        queries = [Query(**vars(sample), index=row) for row, sample in enumerate(next(samples))]
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
