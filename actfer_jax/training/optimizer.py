"""AdamW with a schedule, as a section of a config."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import optax
from flax import nnx

from actfer_jax.config import Share, above, at_least, below, check_fields, one_of


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019) with gradient clipping.

    Attributes:
      learning_rate: its peak, at least 0.
      schedule: "constant", "linear" or "cosine" decay after the warm-up, down to `final_fraction` of the peak.
      warmup_steps: updates over which the rate rises linearly from 0; 0 for none.
      final_fraction: of the peak, when all updates are done; from 0 to 1.
      weight_decay: decoupled, on matrices only; at least 0.
      max_grad_norm: gradients are scaled down to this global norm, above 0.
      b1, b2, eps: as in Adam; b1 and b2 at least 0 and below 1, eps above 0.
    """

    learning_rate: Annotated[float, at_least(0)] = 1e-6
    schedule: Annotated[str, one_of("constant", "linear", "cosine")] = "constant"
    warmup_steps: Annotated[int, at_least(0)] = 0
    final_fraction: Share = 0.1
    weight_decay: Annotated[float, at_least(0)] = 0.01
    max_grad_norm: Annotated[float, above(0)] = 1.0
    b1: Annotated[float, at_least(0), below(1)] = 0.9
    b2: Annotated[float, at_least(0), below(1)] = 0.999
    eps: Annotated[float, above(0)] = 1e-8

    def __post_init__(self) -> None:
        check_fields(self)


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates done, over a run of `updates`."""
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    rest = max(updates - config.warmup_steps, 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_fraction),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, max(config.warmup_steps, 1))
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """Clipping, then AdamW under the schedule, for parameters that name their axes (`models.layers`)."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate(config, updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_matrices,
        ),
    )


def _matrices(params: Any) -> Any:
    """Which parameters are matrices, by the names of their axes: a stack of layers does not make one of a vector."""

    def is_matrix(leaf: nnx.Variable[Any]) -> bool:
        return sum(name != "layers" for name in leaf.get_metadata("out_sharding")) > 1

    return jax.tree.map(is_matrix, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
