"""The policy loss: a clipped surrogate over policy tokens, with what can be added to it.

Every loss is a sum over the rows given, divided by totals of the whole global batch. So the losses, gradients and
metrics of microbatches and hosts add up to those of the batch, whatever the split. The formulas are in
`docs/algorithm.md`.

Shapes: B rows, L tokens. `log_prob_BxL[b, t]` is the log-probability of token t given those before it.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from actfer_jax.config import FieldError, above, at_least, below, check_fields, one_of

AGGREGATIONS: tuple[str, ...] = ("token", "sequence", "sequence_norm")
RATIOS: tuple[str, ...] = ("token", "sequence", "sequence_token")
KL_ESTIMATORS: tuple[str, ...] = ("k3", "k2")

# Log-ratios are clamped here: exp(20) is 5e8, far beyond any clip, and finite in every dtype.
_LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class LossConfig:
    """Constants of the policy loss.

    Attributes:
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; above 0, clip_low below 1. GSPO uses
        3e-4 and 4e-4.
      dual_clip: with a negative advantage A, the objective is at least dual_clip * A; above 1, usually 3; None is off.
      aggregation: "token" (mean over policy tokens), "sequence" (mean over rows of the mean over tokens) or
        "sequence_norm" (sum over tokens divided by rows * norm_length, as in Dr. GRPO).
      norm_length: tokens by which "sequence_norm" divides each row, at least 1: the most that a rollout may write.
      ratio: "token"; "sequence" (GSPO: the geometric mean over the row's policy tokens); or "sequence_token" (that
        value, with the gradient of each token's own log-probability: for advantages that differ between tokens).
      kl: weight of the divergence from the reference model, at least 0; 0 needs no reference.
      reference_offload: the reference lies in the memory of the hosts, and on the devices only while it is used.
      kl_estimator: "k3", exp(x) - x - 1, or "k2", x^2 / 2, of x = log reference - log policy.
      entropy_bonus: weight of the policy's entropy, at least 0.
      importance_cap: truncated importance correction: tokens are weighted by min(trainer / sampler, cap), above 0; None
        is off.
    """

    clip_low: Annotated[float, above(0), below(1)] = 0.2
    clip_high: Annotated[float, above(0)] = 0.28
    dual_clip: Annotated[float, above(1)] | None = None
    aggregation: Annotated[str, one_of(*AGGREGATIONS)] = "token"
    norm_length: Annotated[int, at_least(0)] = 0
    ratio: Annotated[str, one_of(*RATIOS)] = "token"
    kl: Annotated[float, at_least(0)] = 0.0
    reference_offload: bool = False
    kl_estimator: Annotated[str, one_of(*KL_ESTIMATORS)] = "k3"
    entropy_bonus: Annotated[float, at_least(0)] = 0.0
    importance_cap: Annotated[float, above(0)] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.aggregation == "sequence_norm" and self.norm_length < 1:
            raise FieldError(
                "norm_length", f"is {self.norm_length}; it must be at least 1 with aggregation 'sequence_norm'"
            )


class Totals(NamedTuple):
    """What a loss is divided by, float32 []; those of microbatches and hosts add up."""

    tokens: jax.Array
    """Policy tokens."""
    sequences: jax.Array
    """Rows with at least one policy token."""


def totals(mask_BxL: jax.typing.ArrayLike) -> Totals:
    """Counts the policy tokens and the rows that have any."""
    mask = jnp.asarray(mask_BxL).astype(bool)
    return Totals(mask.sum().astype(jnp.float32), mask.any(axis=1).sum().astype(jnp.float32))


def policy_loss(
    log_prob_BxL: jax.Array,
    old_log_prob_BxL: jax.Array,
    advantage_BxL: jax.Array,
    mask_BxL: jax.typing.ArrayLike,
    total: Totals,
    *,
    config: LossConfig,
    entropy_BxL: jax.Array | None = None,
    reference_log_prob_BxL: jax.Array | None = None,
    sampler_log_prob_BxL: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of some rows of a batch, float32 [], and its metrics.

    Values outside the mask have no influence, not even NaN.

    Args:
      log_prob_BxL: under the policy that is trained; the only input with a gradient, besides the entropy.
      old_log_prob_BxL: as recorded before the update: what the ratio is relative to.
      advantage_BxL: see `ucgrpo.token_advantages`.
      mask_BxL: policy tokens.
      total: `totals` of the masks of the whole global batch.
      entropy_BxL: of the policy at each token; needed for the bonus.
      reference_log_prob_BxL: under the frozen reference; needed where `config.kl` is not 0.
      sampler_log_prob_BxL: as the sampler computed them; needed where `config.importance_cap` is set, in which case
        `old_log_prob_BxL` are the trainer's.

    Returns:
      loss: to be summed over microbatches and hosts, like its gradient.
      metrics: `policy/loss`, `policy/clip_low`, `policy/clip_high` (share of tokens held by the clip), `policy/entropy`
        and `policy/kl` where they are known: sum them likewise. `policy/ratio_max`: take the maximum.

    Raises:
      ValueError: the config asks for an input that was not given.
    """
    mask = jnp.asarray(mask_BxL).astype(bool)
    log_prob = jnp.where(mask, log_prob_BxL.astype(jnp.float32), 0)
    old_log_prob = jnp.where(mask, old_log_prob_BxL.astype(jnp.float32), 0)
    advantage = jnp.where(mask, jnp.broadcast_to(advantage_BxL, mask.shape).astype(jnp.float32), 0)
    length_B = mask.sum(axis=1)

    log_ratio = log_prob - old_log_prob
    if config.ratio != "token":
        row_log_ratio = jnp.broadcast_to((log_ratio.sum(axis=1) / jnp.maximum(length_B, 1))[:, None], mask.shape)
        own = log_prob - jax.lax.stop_gradient(log_prob)
        log_ratio = row_log_ratio if config.ratio == "sequence" else jax.lax.stop_gradient(row_log_ratio) + own
    ratio = jnp.exp(jnp.clip(log_ratio, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
    objective = jnp.minimum(ratio * advantage, clipped * advantage)
    if config.dual_clip is not None:
        objective = jnp.where(advantage < 0, jnp.maximum(objective, config.dual_clip * advantage), objective)
    if config.importance_cap is not None:
        sampler = _required(sampler_log_prob_BxL, "sampler_log_prob_BxL", "importance_cap")
        gap = jnp.clip(old_log_prob - jnp.where(mask, sampler, 0), -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
        objective *= jax.lax.stop_gradient(jnp.minimum(jnp.exp(gap), config.importance_cap))

    def token_mean(values_BxL: jax.Array) -> jax.Array:
        return jnp.where(mask, values_BxL, 0).sum() / jnp.maximum(total.tokens, 1)

    metrics = {
        "policy/clip_low": token_mean((ratio < 1 - config.clip_low) & (advantage < 0)),
        "policy/clip_high": token_mean((ratio > 1 + config.clip_high) & (advantage > 0)),
        "policy/ratio_max": jnp.where(mask, ratio, 0).max(initial=0),
    }
    loss_BxL = -objective
    if reference_log_prob_BxL is not None or config.kl:
        reference = _required(reference_log_prob_BxL, "reference_log_prob_BxL", "kl")
        divergence = kl_estimate(log_prob, jnp.where(mask, reference, 0), config.kl_estimator)
        loss_BxL += config.kl * divergence
        metrics["policy/kl"] = token_mean(divergence)
    if entropy_BxL is not None or config.entropy_bonus:
        entropy = jnp.where(mask, _required(entropy_BxL, "entropy_BxL", "entropy_bonus"), 0)
        loss_BxL -= config.entropy_bonus * entropy
        metrics["policy/entropy"] = token_mean(entropy)

    loss_BxL = jnp.where(mask, loss_BxL, 0)
    if config.aggregation == "token":
        loss = loss_BxL.sum() / jnp.maximum(total.tokens, 1)
    elif config.aggregation == "sequence":
        loss = (loss_BxL.sum(axis=1) / jnp.maximum(length_B, 1)).sum() / jnp.maximum(total.sequences, 1)
    else:
        loss = loss_BxL.sum() / jnp.maximum(total.sequences * config.norm_length, 1)
    metrics["policy/loss"] = loss
    return loss, {name: jax.lax.stop_gradient(value) for name, value in metrics.items()}


def kl_estimate(log_prob: jax.Array, reference_log_prob: jax.Array, estimator: str) -> jax.Array:
    """Per-token estimates of the divergence between policy and reference, from tokens of the policy.

    With x = log reference - log policy, clamped to +-20, k3 = exp(x) - x - 1 and k2 = x^2 / 2. In value, k3 estimates
    KL(policy || reference) without bias. In gradient, on policy, the two differ: k2 as a loss has that of
    KL(policy || reference), and k3 that of KL(reference || policy).
    """
    x = jnp.clip(reference_log_prob - log_prob, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return jnp.expm1(x) - x if estimator == "k3" else x**2 / 2


def cross_entropy(log_prob_BxL: jax.Array, mask_BxL: jax.typing.ArrayLike, total_tokens: jax.Array) -> jax.Array:
    """The loss of supervised fine-tuning: -log p summed over the mask, divided by the tokens of the global batch."""
    mask = jnp.asarray(mask_BxL).astype(bool)
    return -jnp.where(mask, log_prob_BxL.astype(jnp.float32), 0).sum() / jnp.maximum(total_tokens, 1)


def _required(array: jax.Array | None, name: str, field: str) -> jax.Array:
    if array is None:
        raise ValueError(f"{field} is set, which needs {name}")
    return array.astype(jnp.float32)
