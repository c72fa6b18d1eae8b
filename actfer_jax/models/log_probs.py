"""Log-probabilities of chosen tokens, computed in chunks so that the logits fit in memory."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.parallel.sharding import map_in_turn

_BANNED = -1e30  # Finite, so that a banned target has probability 0, and no NaN in a masked gradient.


def token_log_probs(
    model: Qwen3VL,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    banned_V: jax.Array | None = None,
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of its distribution, in nats, float32 [B, L] each.

    The distribution is softmax(logits / temperature) over the tokens that are not banned. Logits exist for at most
    `chunk` tokens at a time, but at least for one position of all rows. The backward pass recomputes them.

    Args:
      model: provides the output embedding.
      hidden_BxLxD: normalised hidden states, from `Qwen3VL.hidden`.
      targets_BxL: token ids.
      temperature: above 0.
      banned_V: bool [V], True where a token cannot be chosen; a banned target has log-probability -1e30.
      chunk: tokens per chunk, see above.
    """
    rows, length = targets_BxL.shape
    size = max(chunk // rows, 1)
    chunks = -(-length // size)

    def one_chunk(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, targets = inputs
        logits = model.unembed(hidden) / temperature
        if banned_V is not None:
            logits = jnp.where(jnp.expand_dims(banned_V, tuple(range(logits.ndim - 1))), _BANNED, logits)
        log_probs = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
        return take_log_prob(log_probs, targets, model.execution.mesh), entropy

    if chunks == 1:
        return one_chunk((hidden_BxLxD, targets_BxL))

    def split(x: jax.Array) -> jax.Array:
        """[B, L, ...] to chunks of all rows [chunks, B, size, ...], so that every device keeps its rows."""
        padded = jnp.pad(x, [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(rows, chunks, size, *x.shape[2:]).swapaxes(0, 1)

    inputs = split(hidden_BxLxD), split(targets_BxL)
    values = map_in_turn(jax.checkpoint(one_chunk), inputs, model.execution.mesh)
    log_prob, entropy = (x.swapaxes(0, 1).reshape(rows, -1)[:, :length] for x in values)
    return log_prob, entropy


def take_log_prob(log_probs: jax.Array, token: jax.Array, mesh: Mesh | None) -> jax.Array:
    """log_probs[..., token[...]]. On a mesh it is a sum, to which each device adds its part of the last axis."""
    if mesh is None:
        return jnp.take_along_axis(log_probs, token[..., None], -1)[..., 0]
    column = jnp.expand_dims(jnp.arange(log_probs.shape[-1]), tuple(range(token.ndim)))
    return jnp.sum(jnp.where(column == token[..., None], log_probs, 0), -1)
