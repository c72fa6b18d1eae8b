"""UC-GRPO: group-relative advantages whose contrast between looking and not looking is calibrated per emotion.

A rollout belongs to one of two arms, if it decided at all: it inspected the face, or it did not. GRPO's centred reward
splits exactly into what the rollout did within its arm and what its arm did:

    R - mean R = (R - mean R_arm) + d_R (z - mean z)

UC-GRPO keeps the first part and replaces the noisy d_R by a blend with a calibrated utility. With `beta` 0 and `gain` 1
it is GRPO. `docs/algorithm.md` has the formulas and the names; this is one reading of the ActFER abstract.

Shapes: B queries, G rollouts of each, E emotion classes, N = B * G rows, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actfer_jax.config import Share, above, at_least, between, one_of
from actfer_jax.rl.estimators import EstimatorConfig

STD_MODES: tuple[str, ...] = ("group", "batch", "none")
CREDIT_MODES: tuple[str, ...] = ("trajectory", "decision")

# Larger rewards saturate (at about 1e36): sums of several, and the inverse of one, stay normal numbers in float32.
_LARGEST = 2.0**120
# Squares of less than this vanish in float32: a spread below it is no spread.
_SMALLEST = 1e-18


@dataclass(frozen=True)
class UCGRPOConfig(EstimatorConfig):
    """Constants of UC-GRPO. Plain GRPO is `beta=0, gain=1`. Rates and shares are from 0 to 1, `eps` is above 0, and the
    other numbers are at least 0.

    Attributes:
      kappa: how many balanced pairs of rollouts a group needs to be trusted as much as its class.
      kappa_g: the same for a class against the average of all classes.
      ema_rate: how fast a class forgets, per group of four rollouts that split evenly.
      beta: share of the calibrated utility in the weight of the decision, once warm.
      gain: weight of the decision against what follows it.
      decision_start: the step from which the decision is learned; before it `gain` is 0 and nothing is calibrated. A
        policy that looks anywhere learns that looking is not worth its price, and then never learns where: so where to
        look can be learned first, from the rewards within the arms, and when to look from there on.
      u_max: bound of the calibrated utility, in units of reward.
      cost: what inspecting costs, in units of reward; None for what it did cost in the step (`Groups.look_cost`), so
        that it follows the price of a zoom.
      n_min: how much contrast a class must have seen before it is used.
      ramp: steps over which `beta` rises, from `decision_start` on; 0 for at once.
      std: what the advantage is divided by: the spread of the "group", of the "batch", or nothing ("none").
      std_ddof: the variance in it is divided by the number of rollouts less this: 0, or 1 as published baselines do.
      eps: added to that spread.
      credit: "trajectory" (one advantage for all tokens of a rollout) or "decision" (see `token_advantages`).
    """

    kappa: Annotated[float, at_least(0)] = 2.0
    kappa_g: Annotated[float, at_least(0)] = 20.0
    ema_rate: Share = 0.05
    beta: Share = 0.5
    gain: Annotated[float, at_least(0)] = 2.0
    decision_start: Annotated[int, at_least(0)] = 1
    u_max: Annotated[float, at_least(0)] = 0.5
    cost: Annotated[float, at_least(0)] | None = None
    n_min: Annotated[float, at_least(0)] = 20.0
    ramp: Annotated[int, at_least(0)] = 50
    std: Annotated[str, one_of(*STD_MODES)] = "batch"
    std_ddof: Annotated[int, between(0, 1)] = 0
    eps: Annotated[float, above(0)] = 1e-4
    credit: Annotated[str, one_of(*CREDIT_MODES)] = "trajectory"

    @property
    def differs_by_token(self) -> bool:
        return self.credit == "decision"


class Calibration(NamedTuple):
    """What is remembered between steps, float32; part of every checkpoint."""

    utility_E: jax.Array
    """Moving average of the task-reward contrast of each class."""
    count_E: jax.Array
    """How much contrast stands behind it: decayed sum of n1 n0 / n."""
    global_utility: jax.Array
    """The same over all groups, []."""
    global_count: jax.Array


class Result(NamedTuple):
    """Advantages and what they are made of, float32; [B, G] or [B]."""

    advantage: jax.Array
    """[B, G], `within + between`."""
    within: jax.Array
    """[B, G], the reward against its own arm, and what all that decided have above the rest; sums to 0 over the
    group."""
    between: jax.Array
    """[B, G], the part from the arm; sums to 0 over the group, 0 for forced and undecided rollouts."""
    contrast: jax.Array
    """[B], d: mean task reward of the rollouts that inspected minus that of the others, both in the right format; 0 if
    an arm is empty."""
    utility: jax.Array
    """[B], u: calibrated utility of inspecting, net of its cost."""
    weight: jax.Array
    """[B], what multiplies z - mean z in `between`."""
    reward_contrast: jax.Array
    """[B], d_R: the contrast of the total reward, GRPO's own weight before the division."""
    trust: jax.Array
    """[B], lambda: how far the group's own contrast is trusted, in [0, 1]."""
    pairs: jax.Array
    """[B], n_h = n1 n0 / (n1 + n0): how much contrast the group has."""
    blend: jax.Array
    """[B], b: share of the utility in the weight."""
    zoom_rate: jax.Array
    """[B], share of the rollouts that inspected, of those that decided."""
    decided: jax.Array
    """[B], number of valid rollouts that decided."""
    rollouts: jax.Array
    """[B], number of valid rollouts."""


def init_calibration(num_classes: int) -> Calibration:
    """The state before the first step: nothing known about any class."""
    zero = jnp.zeros((), jnp.float32)
    return Calibration(jnp.zeros(num_classes, jnp.float32), jnp.zeros(num_classes, jnp.float32), zero, zero)


def advantages(
    reward: jax.typing.ArrayLike,
    task_reward: jax.typing.ArrayLike,
    inspected: jax.typing.ArrayLike,
    emotion: jax.typing.ArrayLike,
    state: Calibration,
    *,
    config: Any,
    step: jax.typing.ArrayLike,
    valid: jax.typing.ArrayLike | None = None,
    forced: jax.typing.ArrayLike | None = None,
    decided: jax.typing.ArrayLike | None = None,
    formatted: jax.typing.ArrayLike | None = None,
) -> tuple[Result, Calibration]:
    """Advantages of one global batch, and the calibration after it.

    A pure function of its arrays: pass the groups of all hosts, before any filtering, and every host gets the same
    result. It works eagerly and under jit (`config` static, `step` an int or traced). Finite input of any size gives
    finite output; rewards beyond +-1e36 saturate.

    Args:
      reward: total reward R, [B, G].
      task_reward: task reward T, [B, G], on which the utility of inspecting is measured.
      inspected: z, [B, G]: the rollout zoomed into the face.
      emotion: reference class in 0..E-1, [B]; any other number (-1) is an unlabelled query.
      state: the calibration before this step.
      config: an `UCGRPOConfig`, or anything with its fields but `credit`.
      step: number of the training step, counted from 1.
      valid: [B, G]; an invalid rollout has advantage 0 and no influence. All are valid by default.
      forced: [B, G]; the arm of this rollout was assigned by instruction: no part between arms. None by default.
      decided: c, [B, G]: the rollout inspected, or began to answer. One that failed before belongs to no arm. All by
        default; those that inspected in any case.
      formatted: f, [B, G]: its format was right. The utility is measured on these alone. All by default.

    Raises:
      ValueError: shapes do not fit each other, `config.std` is unknown, or `config.cost` is None.
    """
    if config.std not in STD_MODES:
        raise ValueError(f"std must be one of {', '.join(STD_MODES)}, got {config.std!r}")
    if config.cost is None:
        raise ValueError("cost is None; give what inspecting costs, such as the price of a zoom")
    reward, task_reward, emotion = _float32(reward), _float32(task_reward), jnp.asarray(emotion)
    _check_shapes(reward, emotion, task_reward=task_reward)
    masks = {"inspected": inspected, "valid": valid, "forced": forced, "decided": decided, "formatted": formatted}
    arms = _arms(reward, emotion, **masks)
    n, n_c = _count(arms.valid), _count(arms.decided)
    zoom_rate = _divide(_count(arms.zoomed), n_c)
    started = jnp.asarray(step) >= config.decision_start
    gain = jnp.where(started, config.gain, 0.0)

    # Contrast, shrunk towards its class, which is shrunk towards all classes.
    task_BxG, task_unit_B = _in_units(task_reward, arms.decided & arms.formatted)
    compared = arms.zoomed & arms.formatted, arms.direct & arms.formatted
    contrast = _saturate(_difference(task_BxG, *compared) * task_unit_B)
    pairs = _divide(_count(compared[0]) * _count(compared[1]), _count(arms.decided & arms.formatted))
    trust = _divide(pairs, pairs + config.kappa)
    expected, count = _class_estimate(state, emotion, config.kappa_g)
    utility = jnp.clip(trust * contrast + (1 - trust) * expected - config.cost, -config.u_max, config.u_max)

    # From here to the division, everything is in units of the group's largest reward: no square overflows.
    reward_BxG, unit_B = _in_units(reward, arms.valid)
    usable = (count >= config.n_min) & (reward_BxG.max(axis=1) * unit_B >= 1e-6)
    blend = jnp.where(usable, config.beta * _warmth(config, step), 0.0)
    reward_contrast = _difference(reward_BxG, arms.zoomed, arms.direct)
    calibrated = gain * blend * utility / unit_B
    weight = gain * (1 - blend) * reward_contrast + calibrated

    mean_BxG = _mean(reward_BxG, arms.valid)[:, None]
    within = reward_BxG - _mean_of_own(reward_BxG, arms.zoomed, arms.direct, arms.undecided)
    within += _mean_of_own(reward_BxG, arms.decided, arms.undecided) - mean_BxG
    within = jnp.where(arms.valid, within, 0)
    free_rate = _mean(arms.zoomed.astype(jnp.float32), arms.free)
    between = weight[:, None] * jnp.where(arms.free, arms.zoomed - free_rate[:, None], 0)

    squares = jnp.where(arms.valid, (reward_BxG - mean_BxG) ** 2, 0).sum(axis=1)
    variance = squares / jnp.maximum(n - config.std_ddof, 1)
    spread = jnp.sqrt(variance + _divide(n_c, n) * calibrated**2 * zoom_rate * (1 - zoom_rate))
    factor = _factor(config, spread, unit_B, enough=n >= 2)
    within, between = _saturate(within * factor[:, None]), _saturate(between * factor[:, None])
    result = Result(
        advantage=within + between,
        within=within,
        between=between,
        contrast=contrast,
        utility=utility,
        weight=_saturate(weight * factor),
        reward_contrast=_saturate(reward_contrast * unit_B),
        trust=trust,
        pairs=pairs,
        blend=blend,
        zoom_rate=zoom_rate,
        decided=n_c,
        rollouts=n,
    )
    updated = _updated(state, emotion, pairs, contrast, config.ema_rate)
    return result, jax.tree.map(lambda new, old: jnp.where(started, new, old), updated, state)


def token_advantages(
    result: Result,
    decision_end_BxG: jax.typing.ArrayLike | None,
    loss_mask_NxL: jax.typing.ArrayLike,
    *,
    credit: str,
) -> jax.Array:
    """Spreads advantages over the tokens of each rollout.

    With "trajectory" every policy token of a rollout carries its advantage. With "decision" the part within the arm is
    on every policy token, and the part between arms only on those that lead to the decision: for a rollout that
    inspected, through the end of the call that zoomed into the face; for one that did not, through the first token of
    its answer. What is written after the decision cannot have caused it.

    Args:
      result: advantages of B groups of G rollouts.
      decision_end_BxG: index in 0..L-1 of the last token of the decision, [B, G]; read with "decision" only.
      loss_mask_NxL: policy tokens; row b * G + g is rollout g of query b.
      credit: "trajectory" or "decision".

    Returns:
      float32 [B * G, L], 0 outside the loss mask.
    """
    mask = jnp.asarray(loss_mask_NxL).astype(bool)
    if credit == "trajectory":
        return jnp.where(mask, result.advantage.reshape(-1, 1), 0)
    if credit != "decision":
        raise ValueError(f"credit must be one of {', '.join(CREDIT_MODES)}, got {credit!r}")
    if decision_end_BxG is None:
        raise ValueError("credit 'decision' needs the position at which each rollout decided (decision_end_BxG)")
    deciding = jnp.arange(mask.shape[1])[None] <= jnp.asarray(decision_end_BxG).reshape(-1, 1)
    between = jnp.where(deciding, result.between.reshape(-1, 1), 0)
    return jnp.where(mask, result.within.reshape(-1, 1) + between, 0)


def diagnostics(
    result: Result,
    state: Calibration,
    emotion_B: np.typing.ArrayLike,
    class_names: Sequence[str],
    *,
    task_reward_BxG: np.typing.ArrayLike | None = None,
    assigned_BxG: np.typing.ArrayLike | None = None,
    valid_BxG: np.typing.ArrayLike | None = None,
) -> dict[str, float]:
    """The `uc/*` metrics of a step, from arrays on the host. What a batch cannot tell is left out, never NaN.

    Args:
      result, state: what `advantages` returned.
      emotion_B: reference class of each query.
      class_names: E names, for `uc/ema/class/<name>` and `uc/weight/class/<name>`.
      task_reward_BxG, assigned_BxG: for `uc/d_randomised`, the task reward and the instruction: 1 told to zoom, -1 told
        to answer, 0 free. The contrast is by instruction, whether or not it was followed: what was followed is the
        policy's choice again.
      valid_BxG: valid rollouts; all by default.
    """
    result, average, emotion = jax.device_get(result), np.asarray(state.utility_E), np.asarray(emotion_B)
    some, both_arms = result.decided > 0, (0 < result.zoom_rate) & (result.zoom_rate < 1)
    flips = np.sign(result.weight) * np.sign(result.reward_contrast) < 0
    measures = {
        "uc/d": result.contrast[result.pairs > 0],
        "uc/u": result.utility,
        "uc/lambda": result.trust,
        "uc/n_h": result.pairs,
        "uc/frac_all_zoom": (result.zoom_rate == 1)[some],
        "uc/frac_no_zoom": (result.zoom_rate == 0)[some],
        "uc/frac_sign_flip": flips[both_arms],
    }
    for index, name in enumerate(class_names):
        measures[f"uc/ema/class/{name}"] = average[index]
        measures[f"uc/weight/class/{name}"] = result.weight[(emotion == index) & (result.rollouts > 1)]
    if task_reward_BxG is not None and assigned_BxG is not None:
        task, assigned = np.asarray(task_reward_BxG, np.float64), np.asarray(assigned_BxG)
        valid = np.ones(task.shape, bool) if valid_BxG is None else np.asarray(valid_BxG, bool)
        zoom, answer = (assigned == 1) & valid, (assigned == -1) & valid
        groups = zoom.any(axis=1) & answer.any(axis=1)
        measures["uc/d_randomised"] = task[groups].mean(axis=1, where=zoom[groups]) - task[groups].mean(
            axis=1, where=answer[groups]
        )
    return {name: float(np.mean(values, dtype=np.float64)) for name, values in measures.items() if np.size(values)}


def _check_shapes(reward: jax.Array, emotion: jax.Array, **others: jax.Array) -> None:
    shape = reward.shape
    if len(shape) != 2:
        raise ValueError(f"reward must have the shape [queries, rollouts], got {list(shape)}")
    if emotion.shape != shape[:1]:
        raise ValueError(f"emotion has the shape {list(emotion.shape)}, reward {list(shape)}")
    for name, array in others.items():
        if array.shape != shape:
            raise ValueError(f"{name} has the shape {list(array.shape)}, reward {list(shape)}")


def _float32(values: jax.typing.ArrayLike) -> jax.Array:
    return _saturate(jnp.asarray(values, jnp.float32))


def _saturate(values: jax.Array) -> jax.Array:
    return jnp.clip(values, -_LARGEST, _LARGEST)


class _Arms(NamedTuple):
    """Masks of the rollouts, bool [B, G]. `zoomed`, `direct` and `undecided` divide the valid ones."""

    valid: jax.Array
    zoomed: jax.Array
    direct: jax.Array
    undecided: jax.Array
    formatted: jax.Array
    free: jax.Array
    """Decided by the policy's own choice."""

    @property
    def decided(self) -> jax.Array:
        return self.zoomed | self.direct


def _arms(reward: jax.Array, emotion: jax.Array, **given: jax.typing.ArrayLike | None) -> _Arms:
    """The masks from the arguments of `advantages`, whose shapes are checked."""
    masks = {
        name: jnp.full(reward.shape, name != "forced") if mask is None else jnp.asarray(mask).astype(bool)
        for name, mask in given.items()
    }
    _check_shapes(reward, emotion, **masks)
    valid, decided = masks["valid"], masks["decided"] | masks["inspected"]
    return _Arms(
        valid=valid,
        zoomed=valid & masks["inspected"],
        direct=valid & decided & ~masks["inspected"],
        undecided=valid & ~decided,
        formatted=masks["formatted"],
        free=valid & decided & ~masks["forced"],
    )


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """For non-negative numbers; 0 / 0 is 0."""
    return numerator / jnp.maximum(denominator, _SMALLEST)


def _count(mask_BxG: jax.Array) -> jax.Array:
    return mask_BxG.sum(axis=1).astype(jnp.float32)


def _mean(values_BxG: jax.Array, mask_BxG: jax.Array) -> jax.Array:
    """Mean over the masked rollouts of each group, [B]; 0 where there are none."""
    return jnp.where(mask_BxG, values_BxG, 0).sum(axis=1) / jnp.maximum(mask_BxG.sum(axis=1), 1)


def _difference(values_BxG: jax.Array, one_BxG: jax.Array, other_BxG: jax.Array) -> jax.Array:
    """The mean over one mask less that over the other, [B]; 0 where either is empty."""
    both = one_BxG.any(axis=1) & other_BxG.any(axis=1)
    return jnp.where(both, _mean(values_BxG, one_BxG) - _mean(values_BxG, other_BxG), 0)


def _mean_of_own(values_BxG: jax.Array, *masks: jax.Array) -> jax.Array:
    """The mean of the mask that a rollout is in, [B, G]; 0 where it is in none."""
    return jnp.asarray(sum(jnp.where(mask, _mean(values_BxG, mask)[:, None], 0) for mask in masks))


def _root_mean_square(values_B: jax.Array, mask_B: jax.Array) -> jax.Array:
    values_B = jnp.where(mask_B, values_B, 0)
    largest = jnp.maximum(values_B.max(initial=0), _SMALLEST)
    return largest * jnp.sqrt(((values_B / largest) ** 2).sum() / jnp.maximum(mask_B.sum(), 1))


def _warmth(config: Any, step: jax.typing.ArrayLike) -> jax.Array:
    """How far the ramp has gone, from 0 to 1."""
    steps = jnp.maximum(jnp.asarray(step) - config.decision_start + 1, 0).astype(jnp.float32)
    return jnp.ones(()) if config.ramp == 0 else jnp.minimum(1.0, steps / config.ramp)


def _factor(config: Any, spread_B: jax.Array, unit_B: jax.Array, *, enough: jax.Array) -> jax.Array:
    """What advantages in units of their group are multiplied by, [B]; 0 where there are not enough rollouts."""
    if config.std == "none":
        factor_B = unit_B
    elif config.std == "group":
        factor_B = 1 / jnp.maximum(spread_B + config.eps / unit_B, _SMALLEST)
    else:
        spread = _root_mean_square(spread_B * unit_B, enough)
        factor_B = 1 / jnp.maximum((spread + config.eps) / unit_B, _SMALLEST)
    return jnp.where(enough, factor_B, 0)


def _in_units(values_BxG: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values above the least of their group, [B, G], in a unit that makes them at most 2, [B].

    The unit is a power of two of at least 1, so that nothing is rounded. Equal values become exactly 0, which no mean
    can spoil; invalid ones become 0.
    """
    values_BxG = jnp.where(valid, values_BxG, 0)
    _, exponent_B = jnp.frexp(jnp.abs(values_BxG).max(axis=1, initial=1))
    unit_B = jnp.ldexp(jnp.ones_like(exponent_B, jnp.float32), exponent_B)
    values_BxG = values_BxG / unit_B[:, None]
    least_B = jnp.min(values_BxG, axis=1, where=valid, initial=1)
    return jnp.where(valid, values_BxG - least_B[:, None], 0), unit_B


def _class_estimate(state: Calibration, emotion: jax.Array, kappa_g: float) -> tuple[jax.Array, jax.Array]:
    """The shrunk estimate of each query's class and how much stands behind the class, [B] each."""
    num_classes = state.utility_E.shape[0]
    labelled = (emotion >= 0) & (emotion < num_classes)
    index = jnp.where(labelled, emotion, 0).astype(jnp.int32)
    count = jnp.where(labelled, state.count_E[index], state.global_count)
    share = jnp.where(labelled, _divide(count, count + kappa_g), 0)
    return share * state.utility_E[index] + (1 - share) * state.global_utility, count


def _updated(
    state: Calibration, emotion: jax.Array, pairs: jax.Array, contrast: jax.Array, ema_rate: float
) -> Calibration:
    member_ExB = emotion[None, :] == jnp.arange(state.utility_E.shape[0])[:, None]
    utility_E, count_E = _moved(
        state.utility_E, state.count_E, member_ExB * pairs[None, :], contrast[None, :], ema_rate
    )
    global_utility, global_count = _moved(state.global_utility, state.global_count, pairs, contrast, ema_rate)
    return Calibration(utility_E, count_E, global_utility, global_count)


def _moved(
    utility: jax.Array, count: jax.Array, pairs: jax.Array, contrast: jax.Array, ema_rate: float
) -> tuple[jax.Array, jax.Array]:
    """Moves averages [...] by contrasts of groups, with weights `pairs`, [..., B] both; no weight, no change."""
    total = pairs.sum(axis=-1)
    new = (_divide(pairs, total[..., None]) * contrast).sum(axis=-1)
    kept = count * (1 - ema_rate) ** (total / 2)
    share = _divide(total, kept + total)
    return (1 - share) * utility + share * new, kept + total
