"""FLOPs of the model's programs by formula: a multiplication and addition in a matrix product count 2.

Recomputation (remat) and padding inside kernels do not count. Padding of rows and views does, since the device computes
it. Attention of a causal row of L tokens counts L (L + 1) / 2 pairs (appendix B of PaLM, arXiv 2204.02311, takes L^2).
"""

from math import prod

from actfer_jax.models.config import Qwen3VLConfig, TextConfig, VisionConfig
from actfer_jax.models.images import ImageInputs
from actfer_jax.rollout.batch import EpisodeBatch


def update(config: Qwen3VLConfig, batch: EpisodeBatch) -> float:
    """Forward and backward pass of a batch; backward is twice the forward."""
    return 3 * forward(config, batch)


def forward(config: Qwen3VLConfig, batch: EpisodeBatch) -> float:
    """Log-probabilities of the policy tokens of a batch."""
    (rows, length), text = batch.tokens.shape, config.text
    before = _attention(text, batch.prefix)
    prefixes = len(batch.scenes.mask) * (batch.prefix * _token(text) + before)
    logits = batch.policy_index.shape[1] * _unembed(text)
    suffix = (length - batch.prefix) * _token(text) + _attention(text, length) - before
    decoder = prefixes + rows * (suffix + logits)
    return decoder + vision(config.vision, batch.scenes) + vision(config.vision, batch.views)


def prefill(config: Qwen3VLConfig, prompts: EpisodeBatch) -> float:
    """Prompts with their scenes, without logits."""
    rows, length = prompts.tokens.shape
    decoder = rows * (length * _token(config.text) + _attention(config.text, length))
    return decoder + vision(config.vision, prompts.scenes)


def decode(config: Qwen3VLConfig, rows: int, steps: int, cached: int) -> float:
    """`steps` tokens in each of `rows` rows, with logits; each attends to `cached` positions."""
    text = config.text
    return float(rows * steps * (_token(text) + _unembed(text) + _pairs(text) * cached))


def fill(config: Qwen3VLConfig, replies: EpisodeBatch, cached: int) -> float:
    """Replies with their images, without logits; each token attends to `cached` positions and to its reply."""
    rows, length = replies.tokens.shape
    decoder = rows * length * (_token(config.text) + _pairs(config.text) * (cached + length))
    return decoder + vision(config.vision, replies.scenes)


def vision(config: VisionConfig, images: ImageInputs) -> float:
    """The vision tower over padded views [..., P, C]."""
    *count, patches, _ = images.patches.shape
    size, merged = config.hidden_size, config.hidden_size * config.merge_unit
    block = 4 * size**2 + 2 * size * config.intermediate_size
    each = 2 * (config.patch_dim * size + config.depth * block)  # a patch
    mergers = (1 + len(config.deepstack_visual_indexes)) * (merged**2 + merged * config.out_hidden_size)
    attention = config.depth * 4 * size * patches**2
    return float(prod(count) * (patches * each + attention + patches / config.merge_unit * 2 * mergers))


def _token(config: TextConfig) -> int:
    """Matrix products of all layers for one token."""
    heads = config.head_dim * (config.num_attention_heads * 2 + config.num_key_value_heads * 2)
    layer = config.hidden_size * (heads + 3 * config.intermediate_size)
    return 2 * config.num_hidden_layers * layer


def _unembed(config: TextConfig) -> int:
    return 2 * config.hidden_size * config.vocab_size


def _pairs(config: TextConfig) -> int:
    """One query and one key in all layers: the score, and the weighted value."""
    return 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim


def _attention(config: TextConfig, length: int) -> float:
    """Attention of one causal row in all layers."""
    return _pairs(config) * length * (length + 1) / 2
