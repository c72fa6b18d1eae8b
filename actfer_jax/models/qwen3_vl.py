"""Qwen3-VL (2B, 4B, 8B and smaller) in Flax NNX: vision transformer, DeepStack, decoder with interleaved M-RoPE.

The architecture is that of the Qwen3-VL technical report (arXiv 2511.21631) and transformers'
`Qwen3VLForConditionalGeneration`. Split the model once, and train its parameters as a pure pytree:

    graph, parameters = nnx.split(model, nnx.Param)

    @jax.jit
    def loss_and_gradient(parameters, batch):
        def loss(parameters):
            model = nnx.merge(graph, parameters)
            features = model.encode_images(batch.images)
            ...
        return jax.value_and_grad(loss)(parameters)

Shape letters: B rows, L new tokens, D hidden size, N images, P patches, K tokens per image, M image tokens of a row, F
DeepStack layers (of angles: frequencies), H heads, T positions of the cache, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from actfer_jax.models.cache import KVCache, Past
from actfer_jax.models.cached_attention import cached_attention
from actfer_jax.models.config import Qwen3VLConfig, TextConfig, VisionConfig
from actfer_jax.models.images import ImageInputs
from actfer_jax.models.layers import (
    Execution,
    LayerNorm,
    Params,
    RMSNorm,
    inverse_frequencies,
    linear,
    rotate,
    stack,
    table,
)
from actfer_jax.models.precision import exact_products
from actfer_jax.models.prefix import Prefix, with_prefix


class ImageFeatures(NamedTuple):
    """Images as the decoder takes them: [N, K, D] and [F, N, K, D], or pooled by row [B, M, D] and [F, B, M, D]."""

    tokens: jax.Array
    deepstack: jax.Array


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, execution: Execution, rngs: nnx.Rngs):
        size = config.hidden_size
        self.qkv = linear(size, 3 * size, ("embed", "heads"), bias=True, execution=execution, rngs=rngs)
        self.proj = linear(size, size, ("heads", "embed"), bias=True, execution=execution, rngs=rngs)
        self.heads, self.execution = config.num_heads, execution

    def __call__(self, x_NxPxD: jax.Array, angles_NxPxF: jax.Array, mask_NxP: jax.Array) -> jax.Array:
        count, patches, size = x_NxPxD.shape
        qkv = self.qkv(x_NxPxD).reshape(count, patches, 3, self.heads, size // self.heads)
        query, key = rotate(qkv[:, :, 0], angles_NxPxF), rotate(qkv[:, :, 1], angles_NxPxF)
        segment_ids = mask_NxP.astype(jnp.int32)
        output = self.execution.attend(query, key, qkv[:, :, 2], segment_ids, causal=False)
        return self.proj(output.reshape(x_NxPxD.shape))


class VisionMLP(nnx.Module):
    def __init__(self, config: VisionConfig, execution: Execution, rngs: nnx.Rngs):
        size, inner = config.hidden_size, config.intermediate_size
        self.linear_fc1 = linear(size, inner, ("embed", "mlp"), bias=True, execution=execution, rngs=rngs)
        self.linear_fc2 = linear(inner, size, ("mlp", "embed"), bias=True, execution=execution, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=True))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, execution: Execution, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.hidden_size, execution)
        self.norm2 = LayerNorm(config.hidden_size, execution)
        self.execution = execution
        self.attn = VisionAttention(config, execution, rngs)
        self.mlp = VisionMLP(config, execution, rngs)

    def __call__(self, x_NxPxD: jax.Array, angles_NxPxF: jax.Array, mask_NxP: jax.Array) -> jax.Array:
        x_NxPxD = x_NxPxD + self.attn(self.norm1(x_NxPxD), angles_NxPxF, mask_NxP)
        x_NxPxD = self.execution.constrain(x_NxPxD, "rows")
        return self.execution.constrain(x_NxPxD + self.mlp(self.norm2(x_NxPxD)), "rows")


class PatchMerger(nnx.Module):
    """Merges neighbouring patches into tokens of the decoder; the norm is applied before or after joining them."""

    def __init__(self, config: VisionConfig, execution: Execution, rngs: nnx.Rngs, *, norm_joined: bool):
        self.size, self.norm_joined = config.hidden_size * config.merge_unit, norm_joined
        self.norm = LayerNorm(self.size if norm_joined else config.hidden_size, execution)
        self.linear_fc1 = linear(self.size, self.size, ("embed", "mlp"), bias=True, execution=execution, rngs=rngs)
        self.linear_fc2 = linear(
            self.size, config.out_hidden_size, ("mlp", "embed"), bias=True, execution=execution, rngs=rngs
        )

    def __call__(self, x_NxPxD: jax.Array) -> jax.Array:
        joined = (x_NxPxD.shape[0], -1, self.size)
        x_NxKxD = self.norm(x_NxPxD.reshape(joined)) if self.norm_joined else self.norm(x_NxPxD).reshape(joined)
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x_NxKxD), approximate=False))


class VisionTower(nnx.Module):
    def __init__(self, config: VisionConfig, execution: Execution, rngs: nnx.Rngs):
        self.config, self.execution = config, execution
        self.patch_embed = linear(
            config.patch_dim, config.hidden_size, (None, "embed"), bias=True, execution=execution, rngs=rngs
        )
        self.pos_embed = table(config.num_position_embeddings, config.hidden_size, (None, "embed"), execution, rngs)
        self.blocks = stack(lambda rngs: VisionBlock(config, execution, rngs), config.depth, rngs)
        self.merger = PatchMerger(config, execution, rngs, norm_joined=False)
        self.deepstack_merger_list = stack(
            lambda rngs: PatchMerger(config, execution, rngs, norm_joined=True),
            len(config.deepstack_visual_indexes),
            rngs,
        )

    def __call__(self, images: ImageInputs) -> ImageFeatures:
        config = self.config
        images = ImageInputs(*(self.execution.constrain(part, "rows") for part in images))
        position_SxD = self.execution.gathered(self.pos_embed)[...].astype(self.execution.dtype)
        position_NxPxD = (position_SxD[images.position_index] * images.position_weight[..., None]).sum(-2)
        x_NxPxD = self.execution.gathered(self.patch_embed)(images.patches)
        x_NxPxD += position_NxPxD.astype(self.execution.dtype)
        frequencies = inverse_frequencies(config.head_dim // 2, config.rope_theta)
        angles_NxPx2xF = images.coordinates[..., None].astype(jnp.float32) * frequencies[None, None, None]
        angles_NxPxF = angles_NxPx2xF.reshape(
            *angles_NxPx2xF.shape[:2], -1
        )  # The angles of the row first, then those of the column.

        def run(block: VisionBlock, x_NxPxD: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x_NxPxD, angles_NxPxF, images.mask), None

        # The blocks run in pieces, which end where DeepStack takes its features. Equal pieces are compiled once.
        ends = [index + 1 for index in config.deepstack_visual_indexes]
        pieces = list(zip([0, *ends], [*ends, config.depth], strict=True))
        if self.execution.rolled(config.depth) and len({end - begin for begin, end in pieces}) == 1:

            def run_piece(x_NxPxD: jax.Array, blocks: nnx.Module) -> tuple[jax.Array, jax.Array]:
                x_NxPxD, _ = self.execution.scan(run, blocks, x_NxPxD, None)
                return x_NxPxD, x_NxPxD

            blocks = jax.tree.map(lambda x: x.reshape(len(pieces), -1, *x.shape[1:]), self.blocks)
            x_NxPxD, outputs = jax.lax.scan(run_piece, x_NxPxD, blocks)
            taken_FxNxPxD = outputs[:-1]
        else:
            taken = []
            for begin, end in pieces:
                if begin < end:
                    x_NxPxD, _ = self.execution.scan(run, self.blocks, x_NxPxD, None, begin, end)
                taken.append(x_NxPxD)
            taken_FxNxPxD = jnp.stack(taken[:-1])
        tokens_NxKxD = self.execution.gathered(self.merger)(x_NxPxD)

        def merge(merger: PatchMerger, _: None, x_NxPxD: jax.Array) -> tuple[None, jax.Array]:
            return None, merger(x_NxPxD)

        _, deepstack_FxNxKxD = self.execution.scan(merge, self.deepstack_merger_list, None, taken_FxNxPxD)
        return ImageFeatures(tokens_NxKxD, deepstack_FxNxKxD)


class Attention(nnx.Module):
    def __init__(self, config: TextConfig, execution: Execution, rngs: nnx.Rngs):
        size, dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = linear(size, heads * dim, ("embed", "heads"), bias=bias, execution=execution, rngs=rngs)
        self.k_proj = linear(size, kv_heads * dim, ("embed", "kv_heads"), bias=bias, execution=execution, rngs=rngs)
        self.v_proj = linear(size, kv_heads * dim, ("embed", "kv_heads"), bias=bias, execution=execution, rngs=rngs)
        self.o_proj = linear(heads * dim, size, ("heads", "embed"), bias=bias, execution=execution, rngs=rngs)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps, execution)
        self.k_norm = RMSNorm(dim, config.rms_norm_eps, execution)
        self.dim, self.execution = dim, execution

    def __call__(
        self,
        x_BxLxD: jax.Array,
        angles_BxLxF: jax.Array,
        segment_ids_BxT: jax.Array,
        pasts: Sequence[Past] = (),
        prefix: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache]:
        heads = (*x_BxLxD.shape[:2], -1, self.dim)
        query, key, value = self.q_proj(x_BxLxD), self.k_proj(x_BxLxD), self.v_proj(x_BxLxD)
        if pasts:
            # Else the TPU's compiler joins the products with the norms, and for that copies every layer's weights.
            query, key = jax.lax.optimization_barrier((query, key))
        query = rotate(self.q_norm(query.reshape(heads)), angles_BxLxF)
        key = rotate(self.k_norm(key.reshape(heads)), angles_BxLxF)
        value = value.reshape(heads)
        new = KVCache(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
        if prefix is not None:
            shared = KVCache(*(x.transpose(0, 2, 1, 3) for x in prefix))
            key, value = with_prefix(shared.keys, key), with_prefix(shared.values, value)
        if pasts:
            output = cached_attention(query, key, value, segment_ids_BxT, pasts, mesh=self.execution.mesh)
        else:
            output = self.execution.attend(query, key, value, segment_ids_BxT, causal=True)
        return self.o_proj(output.reshape(*x_BxLxD.shape[:2], -1)), new


class MLP(nnx.Module):
    def __init__(self, config: TextConfig, execution: Execution, rngs: nnx.Rngs):
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = linear(size, inner, ("embed", "mlp"), bias=False, execution=execution, rngs=rngs)
        self.up_proj = linear(size, inner, ("embed", "mlp"), bias=False, execution=execution, rngs=rngs)
        self.down_proj = linear(inner, size, ("mlp", "embed"), bias=False, execution=execution, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    def __init__(self, config: TextConfig, execution: Execution, rngs: nnx.Rngs):
        self.execution = execution
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, execution)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, execution)
        self.self_attn = Attention(config, execution, rngs)
        self.mlp = MLP(config, execution, rngs)

    def __call__(
        self,
        x_BxLxD: jax.Array,
        angles_BxLxF: jax.Array,
        segment_ids_BxT: jax.Array,
        pasts: Sequence[Past] = (),
        prefix: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache]:
        normed_BxLxD = self.input_layernorm(x_BxLxD)
        attended_BxLxD, new = self.self_attn(normed_BxLxD, angles_BxLxF, segment_ids_BxT, pasts, prefix)
        x_BxLxD = self.execution.constrain(x_BxLxD + attended_BxLxD, "rows")
        x_BxLxD = self.execution.constrain(x_BxLxD + self.mlp(self.post_attention_layernorm(x_BxLxD)), "rows")
        return x_BxLxD, new


class Decoder(nnx.Module):
    def __init__(self, config: TextConfig, execution: Execution, rngs: nnx.Rngs):
        self.embed_tokens = table(config.vocab_size, config.hidden_size, ("vocab", None), execution, rngs)
        self.layers = stack(lambda rngs: DecoderLayer(config, execution, rngs), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, execution)


class Qwen3VL(nnx.Module):
    """The whole model.

    Args:
      config: sizes.
      dtype: of activations and matrix products; norms, softmax, rotations and logits are always float32.
      param_dtype: of the parameters.
      remat: what a layer keeps for backward: "none" (everything), "dots" (matrix products), "full" (its input).
      unroll: layers per iteration of the scan over layers; None unrolls small stacks on CPU, where that is faster.
      attention: one of `attention.BACKENDS`.
      mesh: the mesh that divides the model (`sharding`); None on one device.
      rngs: for the initial values (normal, deviation 0.02).
    """

    def __init__(
        self,
        config: Qwen3VLConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        unroll: int | None = None,
        attention: str = "auto",
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ):
        execution = Execution(dtype, param_dtype, remat, unroll, attention, mesh)
        self.config, self.execution = config, execution
        self.source: str | None = None  # The directory that it was loaded from; exports copy its tokenizer files.
        self.visual = VisionTower(config.vision, execution, rngs)
        self.language_model = Decoder(config.text, execution, rngs)
        if not config.tie_word_embeddings:
            self.lm_head = table(config.text.vocab_size, config.text.hidden_size, ("vocab", None), execution, rngs)

    def encode_images(self, images: ImageInputs) -> ImageFeatures:
        """Images [N, P, ...] to tokens [N, K, D] and DeepStack features [F, N, K, D], K = P / merge**2.

        Tokens of masked patches are meaningless.
        """
        with exact_products(self.execution.dtype):
            if self.execution.remat != "full":
                return self.visual(images)
            # Else the tower and the decoder would keep their activations for the backward pass at the same time.
            return jax.checkpoint(lambda visual, images: visual(images))(self.visual, images)

    def embed(
        self, tokens_BxL: jax.Array, image_index_BxL: jax.Array | None = None, features: ImageFeatures | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The decoder's input: token embeddings, with image tokens in their places.

        Args:
          tokens_BxL: token ids.
          image_index_BxL: the index of the row's image token at this position; -1 at text.
          features: the pool of each row, tokens [B, M, D] and deepstack [F, B, M, D]; None if all tokens are text.

        Returns:
          x [B, L, D] and the DeepStack features [F, B, L, D], zero at text; None for them if all tokens are text.
        """
        x_BxLxD = self._look_up(tokens_BxL).astype(self.execution.dtype)
        if features is None or image_index_BxL is None:
            return x_BxLxD, None
        is_image_BxLx1 = (image_index_BxL >= 0)[..., None]
        index_BxLx1 = jnp.maximum(image_index_BxL, 0)[..., None]
        x_BxLxD = jnp.where(is_image_BxLx1, jnp.take_along_axis(features.tokens, index_BxLx1, axis=1), x_BxLxD)
        deepstack_FxBxLxD = jnp.take_along_axis(features.deepstack, index_BxLx1[None], axis=2)
        return x_BxLxD, jnp.where(is_image_BxLx1, deepstack_FxBxLxD, 0)

    def _look_up(self, tokens_BxL: jax.Array) -> jax.Array:
        """Rows of the token table. Here "fsdp" divides features, so that neither table nor rows are gathered."""
        constrain = self.execution.constrain
        table_VxD = constrain(self.language_model.embed_tokens[...], "vocab_groups", "embed")
        x_BxLxD = table_VxD[constrain(tokens_BxL, "row_groups")]
        return constrain(constrain(x_BxLxD, "row_groups", None, "embed"), "rows")

    def hidden(
        self,
        x_BxLxD: jax.Array,
        deepstack_FxBxLxD: jax.Array | None,
        positions_BxLx3: jax.Array,
        segment_ids_BxL: jax.Array,
        pasts: Sequence[Past] = (),
        prefix: Prefix | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Runs the decoder over L new tokens.

        Args:
          x_BxLxD: from `embed`.
          deepstack_FxBxLxD: from `embed`; None if all new tokens are text.
          positions_BxLx3: M-RoPE positions, from `mrope_positions`.
          segment_ids_BxL: a token attends to earlier tokens of its own segment; 0 is padding.
          pasts: caches of earlier keys and values, which the new tokens attend to as well; they are only read.
          prefix: earlier tokens, which each group of rows shares. They are computed once for a group, with gradients.

        Returns:
          The normalised hidden states [B, L, D] and the new tokens' keys and values [layers, B, kv_heads, L, head_dim],
          for `write_cache`.
        """
        angles_BxLxF = _mrope_angles(positions_BxLx3, self.config.text)
        segment_ids_BxT, angles_QxPxF = segment_ids_BxL, None
        if prefix is not None:
            segment_ids_BxT = with_prefix(prefix.segment_ids, segment_ids_BxL)
            angles_QxPxF = _mrope_angles(prefix.positions, self.config.text)

        def with_images(x: jax.Array, deepstack: jax.Array | None, index: jax.Array) -> jax.Array:
            if deepstack is None:
                return x
            last = deepstack.shape[0] - 1
            return x + jnp.where(index <= last, deepstack[jnp.minimum(index, last)], 0)

        def run(layer: DecoderLayer, carry: tuple[Any, Any], index: jax.Array) -> Any:
            x_BxLxD, prefix_QxPxD = carry
            shared = None
            if prefix is not None and angles_QxPxF is not None:
                prefix_QxPxD, shared = layer(prefix_QxPxD, angles_QxPxF, prefix.segment_ids)
                prefix_QxPxD = with_images(prefix_QxPxD, prefix.deepstack, index)
            # The cache is not scanned over: a layer of it that a loop or a kernel reads would be copied.
            of_layer = [past._replace(layer=index) for past in pasts]
            x_BxLxD, new = layer(x_BxLxD, angles_BxLxF, segment_ids_BxT, of_layer, shared)
            return (with_images(x_BxLxD, deepstack_FxBxLxD, index), prefix_QxPxD), new

        index = jnp.arange(self.config.text.num_hidden_layers)
        unroll = 1 if pasts else None  # When unrolled, XLA's CPU backend copies the whole cache.
        with exact_products(self.execution.dtype):
            carry = x_BxLxD, prefix and prefix.x
            (x_BxLxD, _), new = self.execution.scan(run, self.language_model.layers, carry, index, unroll=unroll)
        return self.language_model.norm(x_BxLxD), new

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D].

        On a mesh each device computes its part of the vocabulary, for all rows of its part of "data".
        """
        table = self.language_model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        hidden = self.execution.constrain(hidden, "row_groups")
        with exact_products(hidden.dtype):
            logits = jnp.matmul(hidden, table[...].astype(hidden.dtype).T, preferred_element_type=jnp.float32)
        return self.execution.constrain(logits, "row_groups", *(None,) * (hidden.ndim - 2), "vocab")


def on_mesh(graphdef: nnx.GraphDef[Qwen3VL], params: Params, mesh: Mesh | None) -> nnx.GraphDef[Qwen3VL]:
    """The graph definition of the same model on another mesh.

    Args:
      graphdef, params: from `nnx.split(model, nnx.Param)`; the parameters may be abstract.
    """
    model = nnx.merge(graphdef, params)
    for _, module in nnx.iter_modules(model):
        if isinstance(execution := getattr(module, "execution", None), Execution):
            setattr(module, "execution", dataclasses.replace(execution, mesh=mesh))  # noqa: B010 (not every module's)
    return nnx.split(model, nnx.Param)[0]


def _mrope_angles(positions_BxLx3: jax.Array, config: TextConfig) -> jax.Array:
    """Angles [B, L, head_dim / 2] of interleaved M-RoPE.

    Frequency i belongs to height if i mod 3 is 1, to width if it is 2, each below 3 times its section; else to time.
    """
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta)
    axis = np.zeros(len(frequencies), np.int32)
    for which in (1, 2):
        axis[which : 3 * config.mrope_section[which] : 3] = which
    return positions_BxLx3.astype(jnp.float32)[..., axis] * frequencies[None, None]
