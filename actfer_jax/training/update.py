"""One update of the parameters, supervised or by policy gradient, as one jitted program each.

All programs take their batch in microbatches (`split_batch`), whose gradients are added up. Among the metrics of an
update is whether the state that it leaves is finite (`finite.Watch`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from actfer_jax.models.layers import Params
from actfer_jax.models.lora import draw_dropout
from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.parallel import sharding
from actfer_jax.parallel.finite import STATE_FINITE, all_finite
from actfer_jax.rl.loss import LossConfig, Totals, cross_entropy, policy_loss, totals
from actfer_jax.rollout.batch import EpisodeBatch, episode_log_probs

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that an update changes.

    Attributes:
      params: the trained parameters, which the optimizer changes.
      frozen: the other parameters of the model, which stay as they are.
      opt_state: of the optimizer.
      skipped: int32, updates left out because a gradient was not finite.
    """

    params: Params
    frozen: Params
    opt_state: optax.OptState
    skipped: jax.Array

    @property
    def weights(self) -> Params:
        """All parameters of the model: what rollouts act with, and what an export holds."""
        return nnx.merge_state(self.params, self.frozen)


def init_train_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    frozen: Params | None = None,
) -> TrainState:
    """The state before the first update, divided over the mesh as the parameters are.

    Args:
      params: the parameters to train.
      frozen: the parameters that stay; none by default.
    """
    frozen = Params({}) if frozen is None else frozen
    state = TrainState(params, frozen, optimizer.init(params), jnp.zeros((), jnp.int32))
    return sharding.place_parameters(state, mesh)


def apply_gradients(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation
) -> tuple[TrainState, jax.Array]:
    """The state after one update, and the gradient's norm; one that is not finite changes nothing but `skipped`."""
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    changed = state._replace(
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + ~finite,
    )
    return changed, norm


def accumulate(
    loss: Callable[[Params, Any], tuple[jax.Array, Metrics]],
    params: Params,
    microbatches: Any,
    mesh: Mesh | None = None,
) -> tuple[Params, Metrics]:
    """Gradient and metrics of a loss, accumulated over the microbatches of a batch (`split_batch`).

    The loss must be normalised by quantities of the whole batch, so that its parts sum to the loss of the batch.
    Metrics are summed too, except those named `..._max`, whose maximum is taken. On a mesh, gradients are always
    divided as the parameters are.
    """

    def grad(params: Params, microbatch: Any) -> tuple[Params, Metrics]:
        grads, metrics = jax.grad(loss, has_aux=True)(params, microbatch)
        return sharding.constrain_parameters(grads, mesh), metrics

    first = jax.tree.map(lambda x: x[0], microbatches)
    if len(jax.tree.leaves(microbatches)[0]) == 1:
        return grad(params, first)

    def step(total: Any, microbatch: Any) -> tuple[Any, None]:
        grads, metrics = total
        # The backward pass adds to these, layer by layer: there is never a second gradient of all layers in memory.
        refs = jax.tree.map(jax.new_ref, grads)
        pullback: Any
        value, pullback, more_metrics = jax.vjp(lambda params: loss(params, microbatch), params, has_aux=True)
        pullback.with_refs(refs)(jnp.ones_like(value))
        combined = {
            name: jnp.maximum(value, more_metrics[name]) if name.endswith("_max") else value + more_metrics[name]
            for name, value in metrics.items()
        }
        return (sharding.constrain_parameters(jax.tree.map(jax.ref.freeze, refs), mesh), combined), None

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, first))
    zero = sharding.constrain_parameters(zero[0], mesh), zero[1]
    return jax.lax.scan(step, zero, microbatches)[0]


def split_batch(batch: Any, microbatches: int, mesh: Mesh | None = None) -> Any:
    """Cuts every array along its leading axis into equal microbatches [P, ...]; whole groups stay together.

    On a mesh every device gets its rows of each microbatch.
    """
    split = jax.tree.map(lambda x: x.reshape(microbatches, x.shape[0] // microbatches, *x.shape[1:]), batch)
    return sharding.place(split, mesh, None, "rows")


def _dropout_keys(state: TrainState, seed: int | None, microbatches: Any) -> jax.Array | None:
    """A random key for each microbatch, a function of the seed, the updates done and the microbatch's number alone."""
    if seed is None:
        return None
    (_, updates), *_ = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
    base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), updates)
    return jax.random.split(base, len(jax.tree.leaves(microbatches)[0]))


def _totals(mask_PxRxL: jax.Array) -> Totals:
    """`totals` of all microbatches."""
    return Totals(*(parts.sum() for parts in jax.vmap(totals)(mask_PxRxL)))


def make_sft_update(
    graphdef: nnx.GraphDef[Qwen3VL],
    optimizer: optax.GradientTransformation,
    *,
    chunk: int,
    mesh: Mesh | None = None,
    dropout_seed: int | None = None,
) -> jax.stages.Wrapped:
    """A jitted (TrainState, EpisodeBatch in microbatches) -> (TrainState, metrics): cross-entropy per policy token.

    Args:
      chunk: tokens whose logits exist at one time.
      mesh: on which the model is (`models.on_mesh`).
      dropout_seed: of the adapters' dropout; None without one.
    """

    def update(state: TrainState, microbatches: EpisodeBatch) -> tuple[TrainState, Metrics]:
        total = _totals(microbatches.loss_mask)

        def loss(params: Params, keyed: tuple[EpisodeBatch, jax.Array | None]) -> tuple[jax.Array, Metrics]:
            microbatch, key = keyed
            model = nnx.merge(graphdef, params, state.frozen)
            draw_dropout(model, key)
            log_prob, entropy = episode_log_probs(model, microbatch, temperature=1.0, banned_V=None, chunk=chunk)
            value = cross_entropy(log_prob, microbatch.loss_mask, total.tokens)
            return value, {
                "sft/loss": value,
                "sft/entropy": jnp.where(microbatch.loss_mask, entropy, 0).sum() / total.tokens,
            }

        keyed = microbatches, _dropout_keys(state, dropout_seed, microbatches)
        grads, metrics = accumulate(loss, state.params, keyed, mesh)
        state, norm = apply_gradients(state, grads, optimizer)
        metrics |= {"sft/grad_norm": norm, "sft/skipped_updates": state.skipped}
        return sharding.constrain_parameters(state, mesh), metrics | {STATE_FINITE: all_finite(state, mesh)}

    return jax.jit(update, donate_argnums=0)


class PolicyBatch(NamedTuple):
    """Episodes with what the policy loss needs, [R, L] each, or [P, R / P, L] in P microbatches.

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
    graphdef: nnx.GraphDef[Qwen3VL],
    *,
    temperature: float,
    banned_V: Any,
    chunk: int,
    mesh: Mesh | None = None,
) -> jax.stages.Wrapped:
    """A jitted (parameters, EpisodeBatch in P microbatches) -> log-probabilities [P, R / P, L], for the reference and
    importance correction."""

    def log_probs(params: Params, microbatches: EpisodeBatch) -> jax.Array:
        model = nnx.merge(graphdef, params)
        values = jax.lax.map(
            lambda microbatch: episode_log_probs(
                model, microbatch, temperature=temperature, banned_V=banned_V, chunk=chunk
            )[0],
            microbatches,
        )
        return sharding.constrain(values, mesh, None, "rows")

    return jax.jit(log_probs)


def make_policy_update(
    graphdef: nnx.GraphDef[Qwen3VL],
    optimizer: optax.GradientTransformation,
    config: LossConfig,
    *,
    temperature: float,
    banned_V: Any,
    chunk: int,
    mesh: Mesh | None = None,
    dropout_seed: int | None = None,
) -> jax.stages.Wrapped:
    """A jitted (TrainState, PolicyBatch in microbatches) -> (TrainState, metrics), at the temperature and with the ban
    of sampling; `dropout_seed` is as for `make_sft_update`."""

    def update(state: TrainState, microbatches: PolicyBatch) -> tuple[TrainState, Metrics]:
        total = _totals(microbatches.episodes.loss_mask)

        def loss(params: Params, keyed: tuple[PolicyBatch, jax.Array | None]) -> tuple[jax.Array, Metrics]:
            microbatch, key = keyed
            model = nnx.merge(graphdef, params, state.frozen)
            draw_dropout(model, key)
            mask = microbatch.episodes.loss_mask
            log_prob, entropy = episode_log_probs(
                model, microbatch.episodes, temperature=temperature, banned_V=banned_V, chunk=chunk
            )
            value, metrics = policy_loss(
                log_prob,
                microbatch.old_log_probs,
                microbatch.advantages,
                mask,
                total,
                config=config,
                entropy_BxL=entropy,
                reference_log_prob_BxL=microbatch.reference_log_probs,
                sampler_log_prob_BxL=microbatch.log_probs,
            )
            gap = jnp.abs(jnp.where(mask, log_prob - microbatch.log_probs, 0))
            mismatch = {"mismatch/logp_abs_diff": gap.sum() / total.tokens, "mismatch/logp_abs_diff_max": gap.max()}
            return value, metrics | mismatch

        keyed = microbatches, _dropout_keys(state, dropout_seed, microbatches)
        grads, metrics = accumulate(loss, state.params, keyed, mesh)
        state, norm = apply_gradients(state, grads, optimizer)
        metrics |= {"policy/grad_norm": norm, "policy/skipped_updates": state.skipped}
        return sharding.constrain_parameters(state, mesh), metrics | {STATE_FINITE: all_finite(state, mesh)}

    return jax.jit(update, donate_argnums=0)
