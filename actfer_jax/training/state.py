"""What a training run changes and its checkpoints hold, as arrays or as shapes alone."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from actfer_jax import plugins
from actfer_jax.data.sources import emotion_labels
from actfer_jax.models import Qwen3VL, Qwen3VLConfig
from actfer_jax.models.frozen import split_frozen
from actfer_jax.models.layers import Params
from actfer_jax.models.lora import add_adapters
from actfer_jax.parallel.sharding import place, place_parameters
from actfer_jax.rollout.engine import Rollout
from actfer_jax.runs.checkpoints import CheckpointError
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.update import TrainState, init_train_state


class RunState(NamedTuple):
    """What a step takes and returns.

    Attributes:
      train: parameters and optimizer.
      estimator: what the estimator of the advantage remembers; () in supervised training.
    """

    train: TrainState
    estimator: Any

    def with_frozen(self, frozen: Params) -> "RunState":
        """The same with these frozen parameters."""
        return self._replace(train=self.train._replace(frozen=frozen))

    @property
    def without_frozen(self) -> "RunState":
        """What a checkpoint holds: no step changes the frozen parameters."""
        return self.with_frozen(Params({}))


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
    trained, frozen = split_frozen(params, config.model.frozen, config.model.dtype)
    return RunState(init_train_state(trained, optimizer, mesh, frozen=frozen), place(remembered, mesh))


def check_base(checkpoint: epath.PathLike, extra: Mapping[str, Any], base: str, path: str) -> None:
    """Makes sure that a checkpoint belongs to the frozen parameters that are there.

    Args:
      extra: what the checkpoint holds beside the state.
      base: the `fingerprint` of the frozen parameters, which those of `path` have.

    Raises:
      CheckpointError: it belongs to others.
    """
    if extra.get("base", "") != base:
        raise CheckpointError(
            f"checkpoint {checkpoint} was trained with another base than the one in {path!r}; give "
            "config.model.path the model, with the same content, that the run began with"
        )


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

    def make() -> Qwen3VL:
        model = Qwen3VL(model_config, rngs=nnx.Rngs(0), **config.model.options(mesh, config.lora))
        if config.lora is not None:
            add_adapters(model, config.lora, config.seed)
        return model

    graphdef, params = nnx.split(nnx.eval_shape(make), nnx.Param)
    optimizer = make_optimizer(config.optimizer, config.steps * config.batch.updates)
    state = jax.eval_shape(partial(initial_state, optimizer=optimizer, config=config), params)
    if mesh is not None:
        return graphdef, place_parameters(state, mesh)
    alone = SingleDeviceSharding(jax.devices()[0])

    def on_first(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone)

    return graphdef, jax.tree.map(on_first, state)
