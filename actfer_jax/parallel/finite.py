"""Finds non-finite numbers on the devices, and stops a run before it writes them."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from actfer_jax.errors import UserError
from actfer_jax.parallel import sharding

log = logging.getLogger(__name__)

STATE_FINITE = "state_finite"
"""The metric of an update that tells whether the whole state is finite. `Watch` takes it out."""


class NotFiniteError(UserError, ValueError):
    """A run, a model or an export has numbers that are not finite; the message says which."""


@partial(jax.jit, static_argnames="mesh")
def finite_arrays(arrays: Sequence[jax.Array], mesh: Mesh | None = None) -> list[jax.Array]:
    """Whether each array is finite: one bool [] each, on every process."""
    return [sharding.constrain(jnp.isfinite(x).all(), mesh) for x in arrays]


def all_finite(tree: Any, mesh: Mesh | None = None) -> jax.Array:
    """Whether all arrays of a pytree are finite, bool []. Call it inside a traced program."""
    return jnp.stack(finite_arrays(jax.tree.leaves(tree), mesh)).all()


def not_finite(tree: Any, mesh: Mesh | None = None) -> list[str]:
    """The paths of a pytree's arrays that are not finite; every process must call this at the same point."""
    paths, arrays = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    finite = jax.device_get(finite_arrays(list(arrays), mesh))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, fine in zip(paths, finite, strict=True)
        if not fine
    ]


def listed(names: Sequence[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Watch:
    """Checks the state and metrics of each step of a run before anything of the step is written.

    An update whose gradient is not finite changes nothing (`training.update.apply_gradients`) and is logged.

    Args:
      most_skipped: such steps in a row that stop the run.
    """

    def __init__(self, mesh: Mesh | None, most_skipped: int = 20):
        self._mesh, self._most_skipped = mesh, most_skipped
        self._skipped = 0

    def check(self, step: int, state: Any, metrics: dict[str, Any]) -> None:
        """Takes `STATE_FINITE` out of the metrics of a step.

        Raises:
          NotFiniteError: the state is not finite, or the policy can learn no more; with the step and the metrics.
        """
        state_finite = metrics.pop(STATE_FINITE, True)
        numbers = {name: float(value) for name, value in metrics.items()}
        bad = listed([f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)])
        norms = [value for name, value in numbers.items() if name.endswith("/grad_norm")]
        self._skipped = 0 if all(map(math.isfinite, norms)) else self._skipped + 1
        if not state_finite:
            named = not_finite(state, self._mesh)
            seen = bad or listed(
                [f"{name} is {numbers[name]:.3g}" for name in numbers if name.endswith(("loss", "norm"))]
            )
            problem = (
                f"the update left {len(named)} of {len(jax.tree.leaves(state))} arrays of the state not finite "
                f"({listed(named)}), where {seen}"
            )
        elif not math.isfinite(numbers.get("mismatch/logp_abs_diff", 0.0)):
            problem = f"the policy no longer gives its tokens probabilities ({bad})"
        elif self._skipped == self._most_skipped:
            problem = f"each of the last {self._skipped} steps skipped an update ({bad})"
        else:
            if self._skipped:
                log.warning("step %d: an update was skipped: %s", step, bad)
            return
        raise NotFiniteError(
            f"step {step}: {problem}; nothing of this step is written. Try a lower config.optimizer.learning_rate, "
            "from the last checkpoint (--allow_changes=optimizer.learning_rate) or in a new workdir"
        )
