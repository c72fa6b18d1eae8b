"""Matrix products in the precision of their operands."""

from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def exact_products(dtype: DTypeLike) -> AbstractContextManager[None]:
    """Where products of this type are traced, float32 is multiplied as float32, in the backward pass too.

    By default, GPUs round it to tf32 first, and TPUs to bfloat16.
    """
    return jax.default_matmul_precision("highest") if jnp.dtype(dtype) == jnp.float32 else nullcontext()
