"""AdamW with a schedule, as a section of a config."""

from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import nnx


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019) with gradient clipping.

    Attributes:
      learning_rate: its peak.
      schedule: "constant", "linear" or "cosine" decay after the warm-up, down to `final_fraction` of the peak.
      warmup_steps: updates over which the rate rises linearly from 0.
      final_fraction: of the peak, when all updates are done.
      weight_decay: decoupled, on matrices only.
      max_grad_norm: gradients are scaled down to this global norm.
      b1, b2, eps: as in Adam.
    """

    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; choose constant, linear or cosine")
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must not be negative")
        if self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; it must be positive")


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

    def is_matrix(leaf: nnx.Variable) -> bool:
        return sum(name != "layers" for name in leaf.get_metadata("out_sharding")) > 1

    return jax.tree.map(is_matrix, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
