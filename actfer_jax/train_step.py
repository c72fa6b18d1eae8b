"""One update of the parameters, supervised or by policy gradient, as one jitted program each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.rl.loss import LossConfig, cross_entropy, policy_loss, totals
from actfer_jax.rollout.batch import EpisodeBatch, episode_log_probs

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that an update changes.

    Attributes:
      params: the trained parameters.
      opt_state: of the optimizer.
      skipped: int32, updates left out because a gradient was not finite.
    """

    params: nnx.State
    opt_state: optax.OptState
    skipped: jax.Array


def init_train_state(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def apply_gradients(
    state: TrainState, grads: nnx.State, optimizer: optax.GradientTransformation
) -> tuple[TrainState, jax.Array]:
    """The state after one update, and the gradient's norm; one that is not finite changes nothing but `skipped`."""
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)  # noqa: E731
    return TrainState(keep(params, state.params), keep(opt_state, state.opt_state), state.skipped + ~finite), norm


def accumulate(
    loss: Callable[[nnx.State, Any], tuple[jax.Array, Metrics]], params: nnx.State, batch: Any, microbatches: int
) -> tuple[nnx.State, Metrics]:
    """Gradient and metrics of a loss over slices of the batch, one slice at a time.

    The loss must already be divided by quantities of the whole batch, so that the slices add up. Metrics add up too,
    but for those named `..._max`, of which the largest is taken.
    """
    grad = jax.grad(loss, has_aux=True)
    if microbatches == 1:
        return grad(params, batch)
    slices = split_batch(batch, microbatches)

    def step(total: Any, piece: Any) -> tuple[Any, None]:
        (grads, metrics), (more_grads, more_metrics) = total, grad(params, piece)
        combined = {
            name: jnp.maximum(value, more_metrics[name]) if name.endswith("_max") else value + more_metrics[name]
            for name, value in metrics.items()
        }
        return (jax.tree.map(jnp.add, grads, more_grads), combined), None

    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], slices)),
    )
    return jax.lax.scan(step, zero, slices)[0]


def split_batch(batch: Any, pieces: int) -> Any:
    """Cuts every array along its leading axis into equal pieces [pieces, ...]; whole groups stay together."""
    return jax.tree.map(lambda x: x.reshape(pieces, x.shape[0] // pieces, *x.shape[1:]), batch)


def make_sft_update(
    graphdef: nnx.GraphDef[Qwen3VL], optimizer: optax.GradientTransformation, *, microbatches: int, chunk: int
) -> Callable[[TrainState, EpisodeBatch], tuple[TrainState, Metrics]]:
    """Cross-entropy per policy token over the whole batch.

    Args:
      microbatches: slices of the batch whose gradients are added up.
      chunk: tokens whose logits exist at one time.
    """

    def update(state: TrainState, batch: EpisodeBatch) -> tuple[TrainState, Metrics]:
        total = totals(batch.policy)

        def loss(params: nnx.State, piece: EpisodeBatch) -> tuple[jax.Array, Metrics]:
            model = nnx.merge(graphdef, params)
            log_prob, entropy = episode_log_probs(model, piece, temperature=1.0, banned_V=None, chunk=chunk)
            value = cross_entropy(log_prob, piece.policy, total.tokens)
            return value, {"sft/loss": value, "sft/entropy": jnp.where(piece.policy, entropy, 0).sum() / total.tokens}

        grads, metrics = accumulate(loss, state.params, batch, microbatches)
        state, norm = apply_gradients(state, grads, optimizer)
        return state, metrics | {"sft/grad_norm": norm, "sft/skipped_updates": state.skipped}

    return jax.jit(update, donate_argnums=0)


class PolicyBatch(NamedTuple):
    """Episodes with what the policy loss needs, [R, L] each.

    Attributes:
      log_probs: as sampled; old_log_probs: what the ratio is relative to, the same unless recomputed by the trainer.
      advantages: by token.
      reference_log_probs: under the frozen reference, or None.
    """

    episodes: EpisodeBatch
    log_probs: Any
    old_log_probs: Any
    advantages: Any
    reference_log_probs: Any


def make_log_probs(
    graphdef: nnx.GraphDef[Qwen3VL], *, temperature: float, banned_V: Any, microbatches: int, chunk: int
) -> Callable[[nnx.State, EpisodeBatch], jax.Array]:
    """Log-probabilities [R, L] of a batch under some parameters, for the reference and for importance correction."""

    def log_probs(params: nnx.State, batch: EpisodeBatch) -> jax.Array:
        model = nnx.merge(graphdef, params)
        pieces = split_batch(batch, microbatches)
        values = jax.lax.map(
            lambda piece: episode_log_probs(model, piece, temperature=temperature, banned_V=banned_V, chunk=chunk)[0],
            pieces,
        )
        return values.reshape(batch.tokens.shape)

    return jax.jit(log_probs)


def make_policy_update(
    graphdef: nnx.GraphDef[Qwen3VL],
    optimizer: optax.GradientTransformation,
    config: LossConfig,
    *,
    temperature: float,
    banned_V: Any,
    microbatches: int,
    chunk: int,
) -> Callable[[TrainState, PolicyBatch], tuple[TrainState, Metrics]]:
    """One policy update, at the temperature and with the ban that were sampled with."""

    def update(state: TrainState, batch: PolicyBatch) -> tuple[TrainState, Metrics]:
        total = totals(batch.episodes.policy)

        def loss(params: nnx.State, piece: PolicyBatch) -> tuple[jax.Array, Metrics]:
            model = nnx.merge(graphdef, params)
            mask = piece.episodes.policy
            log_prob, entropy = episode_log_probs(
                model, piece.episodes, temperature=temperature, banned_V=banned_V, chunk=chunk
            )
            value, metrics = policy_loss(
                log_prob,
                piece.old_log_probs,
                piece.advantages,
                mask,
                total,
                config=config,
                entropy_BxL=entropy,
                reference_log_prob_BxL=piece.reference_log_probs,
                sampler_log_prob_BxL=piece.log_probs,
            )
            gap = jnp.abs(jnp.where(mask, log_prob - piece.log_probs, 0))
            mismatch = {"mismatch/logp_abs_diff": gap.sum() / total.tokens, "mismatch/logp_abs_diff_max": gap.max()}
            return value, metrics | mismatch

        grads, metrics = accumulate(loss, state.params, batch, microbatches)
        state, norm = apply_gradients(state, grads, optimizer)
        return state, metrics | {"policy/grad_norm": norm, "policy/skipped_updates": state.skipped}

    return jax.jit(update, donate_argnums=0)
