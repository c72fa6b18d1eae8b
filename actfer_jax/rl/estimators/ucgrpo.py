"""UC-GRPO, and with `beta=0, gain=1` GRPO: `rl.ucgrpo` has the mathematics."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from actfer_jax.rl import ucgrpo
from actfer_jax.rl.estimators import Groups
from actfer_jax.rl.ucgrpo import Calibration, Result
from actfer_jax.rl.ucgrpo import UCGRPOConfig as Config
from actfer_jax.rl.ucgrpo import init_calibration as init_state

__all__ = ["Config", "advantages", "diagnostics", "init_state", "token_advantages"]


def advantages(groups: Groups, state: Calibration, *, config: Config, step: int) -> tuple[Result, Calibration]:
    if config.cost is None:
        config = replace(config, cost=groups.look_cost)
    return ucgrpo.advantages(
        groups.reward_BxG,
        groups.task_reward_BxG,
        groups.inspected_BxG,
        groups.emotion_B,
        state,
        config=config,
        step=step,
        valid=groups.valid_BxG,
        forced=groups.assigned_BxG != 0,
        decided=groups.decided_BxG,
        formatted=groups.formatted_BxG,
    )


def token_advantages(result: Result, groups: Groups, loss_mask_NxL: jax.Array, *, config: Config) -> jax.Array:
    return ucgrpo.token_advantages(result, groups.decision_end_BxG, loss_mask_NxL, credit=config.credit)


def diagnostics(result: Result, state: Calibration, groups: Groups, class_names: Sequence[str]) -> dict[str, float]:
    parts = {f"adv/{part}": float(np.abs(getattr(result, part)).mean()) for part in ("within", "between")}
    measures = ucgrpo.diagnostics(
        result,
        state,
        groups.emotion_B,
        class_names,
        task_reward_BxG=groups.task_reward_BxG,
        assigned_BxG=groups.assigned_BxG,
        valid_BxG=groups.valid_BxG,
    )
    return measures | parts
