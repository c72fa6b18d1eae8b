"""Log-probabilities of chosen tokens, without the logits of all tokens in memory at once."""

import jax
import jax.numpy as jnp

from actfer_jax.models.qwen3_vl import Qwen3VL

_BANNED = -1e30  # finite: a banned target has probability 0, not a NaN in the gradient of what is masked out


def token_log_probs(
    model: Qwen3VL,
    hidden_NxD: jax.Array,
    targets_N: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    banned_V: jax.Array | None = None,
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of its distribution, in nats, float32 [N] each.

    The distribution is softmax(logits / temperature) over the tokens that are not banned. Logits exist for `chunk`
    tokens at a time, in the forward and, recomputed, in the backward pass.

    Args:
      model: whose output embedding is applied.
      hidden_NxD: normalised hidden states, from `Qwen3VL.hidden`.
      targets_N: token ids.
      temperature: above 0.
      banned_V: bool [V], True where a token cannot be chosen; a banned target has log-probability -1e30.
      chunk: tokens per piece.
    """
    count = len(targets_N)
    pieces = -(-count // chunk)
    padding = pieces * chunk - count

    def piece(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, targets = inputs
        logits = model.unembed(hidden) / temperature
        if banned_V is not None:
            logits = jnp.where(banned_V, _BANNED, logits)
        log_probs = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
        return jnp.take_along_axis(log_probs, targets[:, None], -1)[:, 0], entropy

    if pieces == 1:
        return piece((hidden_NxD, targets_N))
    hidden = jnp.pad(hidden_NxD, ((0, padding), (0, 0))).reshape(pieces, chunk, -1)
    targets = jnp.pad(targets_N, (0, padding)).reshape(pieces, chunk)
    log_prob, entropy = jax.lax.map(jax.checkpoint(piece), (hidden, targets))
    return log_prob.reshape(-1)[:count], entropy.reshape(-1)[:count]
