"""What a training run changes and its checkpoints hold, as arrays or as shapes alone."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from actfer_jax import plugins
from actfer_jax.data.sources import emotion_labels
from actfer_jax.models import Qwen3VL, Qwen3VLConfig
from actfer_jax.models.layers import Params
from actfer_jax.parallel.sharding import place, place_parameters
from actfer_jax.rollout.engine import Rollout
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.update import TrainState, init_train_state


class RunState(NamedTuple):
    """Everything that a step changes, and so what a checkpoint holds.

    Attributes:
      train: parameters and optimizer.
      estimator: what the estimator of the advantage remembers; () in supervised training.
    """

    train: TrainState
    estimator: Any


class Episodes(NamedTuple):
    """The episodes of a step of reinforcement learning: rollouts and rewards [Q][G], advantages float32 [Q, G]."""

    rollouts: list[list[Rollout]]
    scores: list[list[dict[str, float]]]
    advantages: np.ndarray


class StepOutput(NamedTuple):
    """What a step leaves behind: the state, its metrics, and in reinforcement learning the episodes."""

    state: RunState
    metrics: dict[str, Any]
    episodes: Episodes | None = None


StepFunction = Callable[[RunState, int], StepOutput]


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, config: TrainConfig, mesh: Mesh | None = None
) -> RunState:
    """The state before the first step, divided over the mesh."""
    remembered: Any = ()
    if config.algorithm == "rl":
        estimator = plugins.load(config.estimator.FOLDER, config.estimator.name)
        # Of one class at least: arrays of nothing cannot be indexed.
        remembered = estimator.init_state(max(len(emotion_labels(config.data)), 1))
    return RunState(init_train_state(params, optimizer, mesh), place(remembered, mesh))


def abstract_state(
    config: TrainConfig, model_config: Qwen3VLConfig, mesh: Mesh | None
) -> tuple[nnx.GraphDef[Qwen3VL], RunState]:
    """The structure of a config's model and the state of its run, without any array.

    Args:
      model_config: the sizes of the model.
      mesh: of updates; None for the first device.

    Returns:
      The graph of the model, and the state with a `jax.ShapeDtypeStruct` for each array, which says where it belongs.
    """
    options = config.model.options(mesh)
    model = nnx.eval_shape(lambda: Qwen3VL(model_config, rngs=nnx.Rngs(0), **options))
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = make_optimizer(config.optimizer, config.steps * config.batch.updates)
    state = jax.eval_shape(partial(initial_state, optimizer=optimizer, config=config), params)
    if mesh is not None:
        return graphdef, place_parameters(state, mesh)
    alone = SingleDeviceSharding(jax.devices()[0])

    def on_first(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone)

    return graphdef, jax.tree.map(on_first, state)
