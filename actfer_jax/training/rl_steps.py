"""Steps of reinforcement learning: sample, score, advantages, update."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from actfer_jax import facs, plugins
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.episode import Sample
from actfer_jax.data.sources import Source, Unreadable, batches, emotion_labels, order_with_unreadable
from actfer_jax.errors import HostFailure
from actfer_jax.evaluation.controls import problems_anywhere
from actfer_jax.faces.images import ImageError
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.models.frozen import split_frozen
from actfer_jax.models.layers import Params
from actfer_jax.parallel.hosts import Termination
from actfer_jax.parallel.sharding import block_on_cpu, cast, holders, in_memory, local, place
from actfer_jax.rl import rewards
from actfer_jax.rl.estimators import Estimator, Groups
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import EpisodeBatch, longest_row, make_batch
from actfer_jax.rollout.batch import Sequence as TokenSequence
from actfer_jax.rollout.engine import Query, Rollout, RolloutEngine, RolloutResult
from actfer_jax.training.canary import Pack, make_canary
from actfer_jax.training.config import BatchConfig, TrainConfig, row_layout
from actfer_jax.training.metrics import forced_metrics, rollout_metrics
from actfer_jax.training.state import Episodes, RunState, StepFunction, StepOutput
from actfer_jax.training.update import PolicyBatch, TrainState, make_log_probs, make_policy_update, split_batch

log = logging.getLogger(__name__)

ARMS = {"": 0, "zoom": 1, "answer": -1}
EQUAL = 1e-6
"""Rewards that differ by less are equal."""


class Sampled(NamedTuple):
    """What a step has sampled.

    Attributes:
      rollouts: [Q][G].
      forced: the arm to be instructed in each: "", "zoom" or "answer"; `Episode.forced` has what was instructed.
      seconds: by phase, as metrics.
    """

    rollouts: list[list[Rollout]]
    forced: list[list[str]]
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
    estimator: Estimator = plugins.load(config.estimator.FOLDER, config.estimator.name)
    needed_by = holders(mesh, size.queries * size.rollouts, size.microbatches)
    engine = agent.engine(queries=size.queries, group_size=size.rollouts, needed_by=needed_by)
    sample = make_sample(engine, source, size, config.estimator.forced_arm_rate, config.seed, start, stop)
    refills = config.estimator.refills
    sample_again = make_sample_again(engine, source, size, refills, config.seed, stop)
    pack = make_pack(size, engine, mesh, agent.model_config)
    log_probs = make_log_probs(agent.graphdef, **_as_sampled(config, agent, engine))
    update = make_update(config, agent, engine, optimizer, estimator, pack, log_probs)
    canary = make_canary(config, agent, engine, pack, log_probs, stop)
    check = make_check()

    def scored(sampled: Sampled, step: int) -> tuple[list[list[dict[str, float]]], Groups]:
        check(sampled.rows, step)
        scores = score(sampled.rollouts, config.reward)
        return scores, make_groups(sampled, scores, labels, chat, config.reward.zoom_price)

    def step_function(state: RunState, step: int) -> StepOutput:
        sampled = sample(state.train, step)
        scores, groups = scored(sampled, step)
        # Of what was sampled first: what takes its place is chosen by its rewards, and is no fair sample.
        measured = rollout_metrics(sampled.rollouts, scores, groups.decided_BxG)
        measured |= forced_metrics(sampled.rows, sampled.forced)
        equal_Q, refilled = equal_rewards(groups), 0
        while refilled < refills and equal_Q.any():
            sampled = sample_again(state.train, step, refilled, sampled, equal_Q)
            scores, groups = scored(sampled, step)
            equal_Q, refilled = equal_rewards(groups), refilled + 1
        result, remembered = estimator.advantages(
            groups, local(state.estimator, mesh), config=config.estimator, step=step
        )
        vision = canary(step, state.train.weights, sampled.rollouts, sampled.forced)
        train_state, metrics = update(state.train, sampled, groups, result)
        metrics |= vision | measured
        if refills:
            metrics |= {"refill/batches": float(refilled), "refill/left": float(equal_Q.mean())}
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
    dataset = order_with_unreadable(source, seed).map_with_index(_ahead(engine))
    samples: Iterator[list[Query | Unreadable]] = batches(dataset, size.queries, start)

    def sample(state: TrainState, step: int) -> Sampled:
        began = time.perf_counter()
        drawn, problems = readable(next(samples))
        queries = [dataclasses.replace(query, index=row) for row, query in enumerate(drawn)]
        forced = assign_arms(size, forced_arm_rate, seed, step)
        waited = time.perf_counter() - began
        result = engine.run(
            state.weights, queries, seed=seed, step=step, forced=forced, keep_failed=True, between_chunks=stop.check
        )
        return Sampled(_marked(result.rollouts, problems), forced, {"perf/data_s": waited} | _phases(result))

    return sample


def make_sample_again(
    engine: RolloutEngine, source: Source, size: BatchConfig, refills: int, seed: int, stop: Termination
) -> Callable[[TrainState, int, int, Sampled, np.ndarray], Sampled]:
    """(state, step, number, sampled, again [Q]) -> what was sampled, with the rollouts of other samples in the places
    that `again` names.

    Which samples these are, and what is drawn in their rollouts, depends on (seed, step, number, place) alone, `number`
    being 0 to `refills` - 1. A place keeps its processes and its arms. The groups that stay answer at once meanwhile,
    which is the least that a row can do, and that is thrown away.
    """
    # A sequence of its own, so that the first samples of a step are those of a run that never samples again.
    (other_seed,) = np.random.SeedSequence((seed, 1)).generate_state(1).tolist()
    further = order_with_unreadable(source, other_seed).map_with_index(_ahead(engine))

    def sample_again(state: TrainState, step: int, number: int, sampled: Sampled, again: np.ndarray) -> Sampled:
        began = time.perf_counter()
        first = ((step - 1) * refills + number) * size.queries
        places = list(enumerate(again.tolist()))
        drawn, problems = readable([further[first + q] if anew else sampled.rollouts[q][0].query for q, anew in places])
        index = (number + 1) * size.queries
        queries = [dataclasses.replace(drawn[q], index=index + q, answer_now=not anew) for q, anew in places]
        forced = [arms if anew else [""] * size.rollouts for arms, anew in zip(sampled.forced, again, strict=True)]
        waited = time.perf_counter() - began
        result = engine.run(
            state.weights, queries, seed=seed, step=step, forced=forced, keep_failed=True, between_chunks=stop.check
        )
        found = _marked(result.rollouts, problems)
        rollouts = [found[q] if anew else sampled.rollouts[q] for q, anew in places]
        took = {"perf/data_s": waited} | _phases(result)
        seconds = {name: value + took[name] for name, value in sampled.seconds.items()}
        return Sampled(rollouts, sampled.forced, seconds)

    return sample_again


def equal_rewards(groups: Groups) -> np.ndarray:
    """The groups that teach nothing, bool [B]: their valid rollouts have one reward, or are fewer than two."""
    highest_B = groups.reward_BxG.max(axis=1, where=groups.valid_BxG, initial=-np.inf)
    lowest_B = groups.reward_BxG.min(axis=1, where=groups.valid_BxG, initial=np.inf)
    return np.asarray(highest_B - lowest_B < EQUAL)


def _ahead(engine: RolloutEngine) -> Callable[[int, Sample | Unreadable], Query | Unreadable]:
    """(index, sample) -> its query, with what takes long made while the devices work on the queries before it: its
    scenes, and its faces, for which the tools of its episodes need not wait then."""

    def query_of(index: int, sample: Sample | Unreadable) -> Query | Unreadable:
        if isinstance(sample, Unreadable):
            return sample
        query = Query(**vars(sample))
        if engine.sees(index % engine.queries):
            # Who needs them asks again for what is missing, and tells what fails.
            with suppress(Exception):
                query = dataclasses.replace(query, scenes=engine.scenes(sample))
            with suppress(Exception):
                for number, image in enumerate(sample.images):
                    engine.toolbox.faces(sample.key, image, number)
        return query

    return query_of


def _marked(rollouts: list[list[Rollout]], problems: Sequence[str]) -> list[list[Rollout]]:
    """The rollouts; those of a stand-in for a sample that cannot be read are marked as failed."""
    for group, problem in zip(rollouts, problems, strict=True):
        for rollout in group:
            rollout.failure = problem or rollout.failure
    return rollouts


def _phases(result: RolloutResult) -> dict[str, float]:
    return {f"perf/{phase}_s": value for phase, value in result.seconds.items()}


def readable(samples: Sequence[Query | Unreadable]) -> tuple[list[Query], list[str]]:
    """The queries with a stand-in, one of the others, for each that some process cannot read; and for each why, or "".

    Programs take a fixed number of queries. The stand-in's rollouts are marked, and nothing is learned from them.

    Raises:
      ImageError: none can be read.
    """
    problems = problems_anywhere(samples)
    found = [
        None if problem or isinstance(sample, Unreadable) else sample
        for sample, problem in zip(samples, problems, strict=True)
    ]
    stand_in = next(filter(None, found), None)
    if stand_in is None:
        raise ImageError(f"no picture of this step can be read; the first: {problems[0]}")
    return [sample or stand_in for sample in found], problems


def make_check() -> Callable[[Sequence[Rollout], int], None]:
    """(rollouts, step) -> warns of what failed on a host, once for each problem.

    Raises:
      HostFailure: more than half of the rollouts failed: what is left is no fair sample.
    """
    reported: set[str] = set()

    def check(rollouts: Sequence[Rollout], step: int) -> None:
        problems = [rollout.failure for rollout in rollouts if rollout.failure]
        if 2 * len(problems) > len(rollouts):
            raise HostFailure(
                f"step {step}: {len(problems)} of {len(rollouts)} rollouts failed on the host, such as {problems[0]}; "
                "put that right, and the same command goes on from the last checkpoint"
            )
        for problem in dict.fromkeys(problems):
            if problem not in reported:
                log.warning("step %d: nothing is learned from rollouts that failed: %s", step, problem)
        reported.update(problems)

    return check


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
    zoom_price: float,
) -> Groups:
    """What an estimator reads of a step.

    Args:
      labels: the classes, as the data set spells them.
      zoom_price: what a zoom costs, in units of reward.
    """
    names = [facs.normalise_emotion(label) for label in labels]
    emotions = [facs.normalise_emotion(group[0].query.reference.emotion or "") for group in sampled.rollouts]
    ends = [_decision_end(chat, rollout) for rollout in sampled.rows]
    looks = [len(r.episode.zooms) for r in sampled.rows if r.episode.inspected and not r.failure]

    def by_group(values: Sequence[Any], dtype: DTypeLike) -> np.ndarray:
        return np.array(values, dtype).reshape(len(sampled.rollouts), -1)

    flat_scores = [score for group in scores for score in group]
    return Groups(
        reward_BxG=by_group([score["total"] for score in flat_scores], np.float32),
        task_reward_BxG=by_group([score["task"] for score in flat_scores], np.float32),
        valid_BxG=by_group([not rollout.failure for rollout in sampled.rows], bool),
        formatted_BxG=by_group([score["format"] == 1 for score in flat_scores], bool),
        right_BxG=by_group([score["format"] == score["emotion"] == 1 for score in flat_scores], bool),
        decided_BxG=by_group([end is not None for end in ends], bool),
        inspected_BxG=by_group([rollout.episode.inspected for rollout in sampled.rows], bool),
        calls_BxG=by_group([len(rollout.episode.replies) for rollout in sampled.rows], np.int32),
        emotion_B=np.array([names.index(name) if name in names else -1 for name in emotions], np.int32),
        assigned_BxG=by_group([ARMS[rollout.episode.forced] for rollout in sampled.rows], np.int32),
        decision_end_BxG=by_group(
            [len(row.sequence.tokens) - 1 if end is None else end for row, end in zip(sampled.rows, ends, strict=True)],
            np.int32,
        ),
        look_cost=zoom_price * float(np.mean(looks or [1])),
    )


def make_pack(size: BatchConfig, engine: RolloutEngine, mesh: Mesh | None, config: Qwen3VLConfig) -> Pack:
    """Rows -> the batch that an update takes, at the shortest length that the longest of them fits into."""
    layout = row_layout(size, engine.config, mesh)
    rooms: dict[str, Any] = {"prefix": layout.prefix, "policy_tokens": engine.config.policy_tokens}

    def pack(rows: list[TokenSequence]) -> EpisodeBatch:
        length = layout.padded(longest_row(rows, layout.group_size, layout.prefix))
        return make_batch(rows, layout.group_size, length, engine.slots, config, **rooms)

    return pack


def _as_sampled(config: TrainConfig, agent: Agent, engine: RolloutEngine) -> dict[str, Any]:
    """What programs need that give tokens the probabilities that they were sampled with."""
    return {
        "temperature": config.rollout.temperature,
        "banned_V": engine.programs.banned_V,
        "chunk": config.batch.chunk,
        "mesh": agent.meshes.update,
    }


def make_update(
    config: TrainConfig,
    agent: Agent,
    engine: RolloutEngine,
    optimizer: optax.GradientTransformation,
    estimator: Estimator,
    pack: Pack,
    log_probs: jax.stages.Wrapped,
) -> Callable[[TrainState, Sampled, Groups, Any], Updated]:
    """(state, rollouts, groups, the estimator's result) -> the state after the updates of a step.

    Args:
      pack: `make_pack`.
      log_probs: `make_log_probs`, for the reference and for importance correction.
    """
    size, mesh = config.batch, agent.meshes.update
    options = _as_sampled(config, agent, engine) | {"dropout_seed": config.dropout_seed}
    update_once = make_policy_update(agent.graphdef, optimizer, config.loss, **options)
    # The reference must outlive the donated training parameters; what is frozen, it shares with them.
    reference = None
    if config.loss.kl:
        trained = split_frozen(agent.params, config.model.frozen, config.model.dtype)[0]
        reference = cast(trained, config.model.dtype)
    if config.loss.reference_offload:
        reference = in_memory(reference, "pinned_host")

    def reference_log_probs(frozen: Params, episodes: EpisodeBatch) -> jax.Array:
        weights = nnx.merge_state(in_memory(reference, "device"), frozen)
        return block_on_cpu(log_probs(weights, episodes), mesh)

    def update(state: TrainState, sampled: Sampled, groups: Groups, result: Any) -> Updated:
        began = time.perf_counter()
        rows = sampled.rows
        episodes = pack([row.sequence for row in rows])
        # Rows that failed are in no mean over policy tokens, and in no penalty on them.
        episodes = episodes._replace(loss_mask=episodes.loss_mask & groups.valid_BxG.reshape(-1, 1))
        padding = episodes.padding()
        credits_NxL = estimator.token_advantages(result, groups, episodes.loss_mask, config=config.estimator)
        host_side = episodes, _pad([row.log_probs for row in rows], episodes.tokens.shape[1]), credits_NxL
        episodes, sampled_log_probs, credits = split_batch(host_side, size.microbatches, mesh)
        batch = PolicyBatch(
            episodes,
            sampled_log_probs,
            block_on_cpu(log_probs(state.weights, episodes), mesh) if config.loss.importance_cap else sampled_log_probs,
            credits,
            None if reference is None else reference_log_probs(state.frozen, episodes),
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
        return Updated(state, metrics | seconds | {"perf/pad_frac": padding})

    return update


def assign_arms(size: BatchConfig, rate: float, seed: int, step: int) -> list[list[str]]:
    """The instructed arm of each rollout: in a share of the groups, two rollouts are told to zoom and two to answer."""
    rng = np.random.default_rng((seed, step))
    arms = [[""] * size.rollouts for _ in range(size.queries)]
    for group in arms:
        if rng.random() < rate:
            group[:4] = ["zoom", "zoom", "answer", "answer"]
    return arms


def _decision_end(chat: Chat, rollout: Rollout) -> int | None:
    """Index of the token with which a rollout decided whether to inspect the face: the end of the call that did, or
    the first token of an answer, well formed or not; None where it failed before either."""
    loss_mask = np.array(rollout.sequence.loss_mask)
    starts = np.flatnonzero(loss_mask & ~np.roll(loss_mask, 1))
    ends = np.flatnonzero(loss_mask & ~np.roll(loss_mask, -1))
    for turn, start, end in zip(rollout.episode.turns, starts, ends, strict=True):
        if turn.reply is not None and turn.reply.inspects and turn.reply.ok:
            return int(end)
        if turn.answer_start >= 0:
            return int(start) + chat.token_at(rollout.sequence.tokens[start : end + 1], turn.answer_start)
    return None


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
