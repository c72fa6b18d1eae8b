"""The vision canary: whether the pixels of the crops reach the policy, where it samples and where it is trained.

Now and then the log-probabilities of some episodes are taken again with grey crops, by the programs of a rollout and by
those of an update. Where pixels are lost on the way, that changes nothing. No other metric shows it: such a policy
still learns, from what the text says.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np

from actfer_jax.faces.views import GREY
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.models.layers import Params
from actfer_jax.parallel.hosts import Termination
from actfer_jax.parallel.sharding import block_on_cpu, fetch
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import EpisodeBatch, Sequence
from actfer_jax.rollout.engine import Rollout, RolloutEngine
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.update import split_batch

Pack = Callable[[list[Sequence]], EpisodeBatch]
"""How an update packs its rows."""
Canary = Callable[[int, Params, list[list[Rollout]], list[list[str]]], dict[str, float]]
"""(step, weights, rollouts [Q][G], the arms that they were to be instructed in [Q][G]) -> metrics; none in a step
without a look."""


def make_canary(
    config: TrainConfig,
    agent: Agent,
    engine: RolloutEngine,
    pack: Pack,
    log_probs: jax.stages.Wrapped,
    stop: Termination,
) -> Canary:
    """The canary of a run, which looks at as many episodes as are in a microbatch.

    Every process must call it at the same point, with the weights that have sampled.

    Args:
      pack: how an update packs its rows.
      log_probs: `update.make_log_probs`.
    """
    every, mesh = config.alarms.vision_every, agent.meshes.update
    # Not by the agent: it holds the first weights, and would keep them for the whole run.
    model_config = agent.model_config
    count = config.batch.queries // config.batch.microbatches
    side = config.views.aligned_side
    # Every patch of a grey view is the same.
    grey_C = agent.encoder(np.full((side, side, 3), GREY, np.uint8)).values[0]

    def greyed(sequence: Sequence) -> Sequence:
        crops = [
            view._replace(values=np.broadcast_to(grey_C, view.values.shape) if len(view.values) else view.values)
            for view in sequence.views[sequence.scenes :]
        ]
        return dataclasses.replace(sequence, views=[*sequence.views[: sequence.scenes], *crops])

    def canary(step: int, params: Params, rollouts: list[list[Rollout]], forced: list[list[str]]) -> dict[str, float]:
        if not every or (step - 1) % every:
            return {}
        began = time.perf_counter()
        groups = rollouts[:count]
        rows = [rollout for group in groups for rollout in group]
        sequences = [row.sequence for row in rows]

        def trainer(sequences: list[Sequence]) -> np.ndarray:
            batch = split_batch(pack(sequences), 1, mesh)
            return np.asarray(fetch(block_on_cpu(log_probs(params, batch), mesh), mesh)[0])

        replayed = engine.run(
            params,
            [group[0].query for group in groups],
            seed=config.seed,
            step=step,
            forced=forced[:count],
            treatment="blank_views",
            keep_failed=True,
            tokens=[[rollout.sequence.tokens for rollout in group] for group in groups],
            between_chunks=stop.check,
        )
        played = [rollout for group in replayed.rollouts for rollout in group]
        # Of an episode in which a tool failed on the host, then or now, nothing is compared.
        chosen = [
            after_crops(row.sequence, model_config)[: 0 if row.failure or other.failure else None]
            for row, other in zip(rows, played, strict=True)
        ]
        if not any(mask.any() for mask in chosen):
            return {}
        grey = [rollout.log_probs for rollout in played]
        return {
            "vision/sensitivity_sampler": _change([row.log_probs for row in rows], grey, chosen),
            "vision/sensitivity_trainer": _change(trainer(sequences), trainer(list(map(greyed, sequences))), chosen),
            "perf/canary_s": time.perf_counter() - began,
        }

    return canary


def after_crops(sequence: Sequence, config: Qwen3VLConfig) -> np.ndarray:
    """Which tokens the policy chose after it had seen a crop, bool [l]."""
    scene_patches = sum(math.prod(view.grid) for view in sequence.views[: sequence.scenes])
    images_l = np.cumsum(np.array(sequence.tokens) == config.image_token_id)
    return np.array(sequence.loss_mask) & (images_l > scene_patches // config.vision.merge_unit)


def _change(before: Iterable[np.ndarray], after: Iterable[np.ndarray], chosen: list[np.ndarray]) -> float:
    """Mean absolute change of the log-probabilities of rows, over the chosen tokens of all of them."""
    rows = zip(before, after, chosen, strict=True)
    changes = [np.abs(new[: mask.size] - old[: mask.size])[mask] for old, new, mask in rows]
    return float(np.concatenate(changes).mean())
