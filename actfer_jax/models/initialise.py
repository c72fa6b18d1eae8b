"""Initial values that depend on data, for models trained from scratch."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from actfer_jax.models.layers import Params

_FLOOR = 1e-3  # Least variance of the patches along a direction: directions below it are not amplified further.


def whiten_patch_embedding(params: Params, patches_NxC: np.ndarray, seed: int) -> Params:
    """Parameters whose patch embedding gives every direction of the patches the same weight.

    Neighbouring pixels of an image are similar. So a random projection of a patch is nearly its mean colour and loses
    fine lines, and a vision tower trained from scratch hardly ever learns them. The kernel is R U Lambda^(-1/2) U^T,
    with U and Lambda the principal components of the patches (Bell and Sejnowski, 1997) and R a random matrix. Its
    output has mean 0 and variance 1 over these patches. Which components are found for directions of equal variance
    depends on rounding, and so on the machine; U Lambda^(-1/2) U^T is the same for all choices.

    Args:
      params: of a `Qwen3VL` (`nnx.split(model, nnx.Param)`).
      patches_NxC: example patches from the image processor; at least some thousand.
      seed: of R.
    """
    flat = dict(nnx.to_flat_state(params))
    kernel, bias = (flat["visual", "patch_embed", name] for name in ("kernel", "bias"))
    mean = patches_NxC.mean(0, dtype=np.float64)
    centred = patches_NxC - mean
    variance, components = np.linalg.eigh(centred.T @ centred / len(centred))
    whiten = components / np.sqrt(np.maximum(variance, _FLOOR)) @ components.T
    values = whiten @ np.random.default_rng(seed).normal(size=kernel[...].shape)
    values /= (centred @ values).std(0)
    flat["visual", "patch_embed", "kernel"] = kernel.replace(jnp.asarray(values, kernel[...].dtype))
    flat["visual", "patch_embed", "bias"] = bias.replace(jnp.asarray(-mean @ values, bias[...].dtype))
    return nnx.from_flat_state(flat)
