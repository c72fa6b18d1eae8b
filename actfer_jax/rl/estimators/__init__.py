"""Estimators of the advantage, a file each: how rewards of groups become what each token is reinforced by.

Shapes: B queries, G rollouts of each, E classes, N = B * G rows, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from actfer_jax.config import between, check_fields


@dataclass(frozen=True)
class EstimatorConfig:
    """What every estimator has.

    Attributes:
      name: of a file of `rl/estimators`, or the dotted name of a module of your own.
      forced_arm_rate: share of the groups in which some rollouts are told to zoom and some to answer, from 0 to 1.
      LOSS: by key of `loss.LossConfig`, the values without which it would be another method.
    """

    FOLDER: ClassVar[str] = "rl.estimators"
    LOSS: ClassVar[dict[str, tuple[str, ...]]] = {}

    name: str = "ucgrpo"
    forced_arm_rate: Annotated[float, between(0, 1)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def differs_by_token(self) -> bool:
        """Whether the tokens of a rollout may have different advantages."""
        return False

    @property
    def refills(self) -> int:
        """How often a step samples again at most, other samples in place of those whose rewards were all equal."""
        return 0


class Groups(NamedTuple):
    """The scored rollouts of one global batch.

    Attributes:
      reward_BxG: total rewards, float32.
      task_reward_BxG: float32.
      valid_BxG: bool, false where the host failed: such a rollout must have advantage 0 and no influence.
      formatted_BxG: bool, the format was right.
      right_BxG: bool, the emotion was named right, and the format was right; never where it is not known.
      decided_BxG: bool, the rollout inspected, or began to answer; one that failed before did neither.
      inspected_BxG: bool, the rollout zoomed into the face.
      calls_BxG: int32, how many tools it called, executed or not.
      emotion_B: int32, the class of each query in 0..E-1; -1 where it has none.
      assigned_BxG: int32, the instruction of a rollout: 1 told to zoom, -1 told to answer, 0 free.
      decision_end_BxG: int32, index of the token with which a rollout decided whether to inspect; the last one where
        it did not decide.
      look_cost: what inspecting cost: the price of a zoom times the mean zooms of the rollouts that inspected.
    """

    reward_BxG: np.ndarray
    task_reward_BxG: np.ndarray
    valid_BxG: np.ndarray
    formatted_BxG: np.ndarray
    right_BxG: np.ndarray
    decided_BxG: np.ndarray
    inspected_BxG: np.ndarray
    calls_BxG: np.ndarray
    emotion_B: np.ndarray
    assigned_BxG: np.ndarray
    decision_end_BxG: np.ndarray
    look_cost: float


class Estimator(Protocol):
    """A module of this folder.

    Attributes:
      Config: its constants, a dataclass that extends `EstimatorConfig`.
    """

    Config: type[Any]

    def init_state(self, num_classes: int) -> Any:
        """What is remembered between steps, before the first: a pytree of arrays, part of every checkpoint; () for
        nothing."""

    def advantages(self, groups: Groups, state: Any, *, config: Any, step: int) -> tuple[Any, Any]:
        """The advantages and the state after this step; a pure function.

        Args:
          step: counted from 1.

        Returns:
          A NamedTuple with at least `advantage`, float32 [B, G], finite for rewards of up to a thousand; and the new
          state.
        """

    def token_advantages(self, result: Any, groups: Groups, loss_mask_NxL: jax.Array, *, config: Any) -> jax.Array:
        """Spreads advantages over the policy's tokens: float32 [N, L], 0 outside the mask; row b * G + g is rollout g
        of query b."""

    def diagnostics(self, result: Any, state: Any, groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
        """Metrics of the step, as far as the batch tells; never NaN."""
