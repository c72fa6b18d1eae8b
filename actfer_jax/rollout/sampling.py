"""The next token of each row, and what it is told and trained by: its log-probabilities.

A token is drawn in two stages, first its block of the vocabulary and then the token within the block, each by the
Gumbel-max trick (Maddison et al., arXiv 1411.0030). The distribution is that of one stage, and the noise of a row is as
long as the blocks and the tokens of one of them, not as the vocabulary: 1,315 numbers in place of 151,936.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from actfer_jax.parallel import sharding

BLOCK_TOKENS = 2048
"""A vocabulary of no more tokens is one block."""


class Drawn(NamedTuple):
    """Of each row [R]: the token, its log-probability as it was drawn, and at temperature 1 without the ban."""

    token: jax.Array
    log_prob: jax.Array
    raw_log_prob: jax.Array


def block_count(vocabulary: int) -> int:
    """How many equal blocks a vocabulary has: the least power of two that makes them small, if one divides it."""
    blocks = 1
    while vocabulary // blocks > BLOCK_TOKENS and vocabulary % (2 * blocks) == 0:
        blocks *= 2
    return blocks


def noise(key: jax.Array, place: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    """The Gumbel noise of one row's token at a place: of the tokens of a block [V / blocks], and of the blocks."""
    blocks = block_count(vocabulary)
    size = vocabulary // blocks
    both = jax.random.gumbel(jax.random.fold_in(key, place), (size + blocks,))
    return both[:size], both[size:]


def sample(
    logits_RxV: jax.Array,
    keys: jax.Array,
    place_R: jax.Array,
    told_R: jax.Array,
    *,
    temperature: float,
    banned_V: jax.Array,
    mesh: Mesh | None = None,
) -> Drawn:
    """Draws a token for each row.

    Args:
      logits_RxV: float32, divided over the mesh as `Qwen3VL.unembed` leaves them.
      keys: of each row; the draw is a function of it and of the token's place in the row, whatever the mesh.
      told_R: the token to take, where it is not -1.
      temperature: 0 takes the likeliest token; log-probabilities are then those of temperature 1.
      banned_V: bool, tokens that are never drawn.
    """
    rows, vocabulary = logits_RxV.shape
    blocks = block_count(vocabulary)
    size = vocabulary // blocks
    logits_RxNxS = sharding.constrain(logits_RxV.reshape(rows, blocks, size), mesh, "row_groups", "vocab")
    banned_NxS = banned_V.reshape(blocks, size)
    scaled_RxNxS = jnp.where(banned_NxS[None], -jnp.inf, logits_RxNxS / (temperature or 1.0))
    top_R, raw_top_R = scaled_RxNxS.max((1, 2)), logits_RxNxS.max((1, 2))
    mass_RxN = jnp.exp(scaled_RxNxS - top_R[:, None, None]).sum(-1)
    raw_mass_R = jnp.exp(logits_RxNxS - raw_top_R[:, None, None]).sum((1, 2))

    if temperature:
        token_noise_RxS, block_noise_RxN = jax.vmap(lambda key, place: noise(key, place, vocabulary))(keys, place_R)
        block_R = jnp.argmax(jnp.log(mass_RxN) + block_noise_RxN, -1)
    else:
        token_noise_RxS = jnp.zeros((rows, size))
        block_R = jnp.argmax(scaled_RxNxS.max(-1), -1)
    block_R = jnp.where(told_R < 0, block_R, told_R // size)
    chosen_RxS = _take_block(logits_RxNxS, block_R, mesh)
    scaled_RxS = jnp.where(banned_NxS[block_R], -jnp.inf, chosen_RxS / (temperature or 1.0))
    within_R = jnp.where(told_R < 0, jnp.argmax(scaled_RxS + token_noise_RxS, -1), told_R % size)

    def log_prob(values_RxS: jax.Array, top_R: jax.Array, mass_R: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_RxS, within_R[:, None], -1)[:, 0] - top_R - jnp.log(mass_R)

    token_R = (block_R * size + within_R).astype(jnp.int32)
    return Drawn(token_R, log_prob(scaled_RxS, top_R, mass_RxN.sum(-1)), log_prob(chosen_RxS, raw_top_R, raw_mass_R))


def _take_block(values_RxNxS: jax.Array, block_R: jax.Array, mesh: Mesh | None) -> jax.Array:
    """values[r, block[r]]. On a mesh it is a maximum, to which each device adds its part of the blocks."""
    if mesh is None:
        return jnp.take_along_axis(values_RxNxS, block_R[:, None, None], 1)[:, 0]
    is_chosen_RxN = jnp.arange(values_RxNxS.shape[1])[None] == block_R[:, None]
    return jnp.where(is_chosen_RxN[..., None], values_RxNxS, -jnp.inf).max(1)
