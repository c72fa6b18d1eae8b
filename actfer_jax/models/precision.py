"""Matrix products in the precision of their operands."""

from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def exact_products(dtype: DTypeLike) -> AbstractContextManager[None]:
    """A context in which float32 products are traced in full precision, also for the backward pass.

    By default GPUs first round float32 to tf32, and TPUs to bfloat16. For other types the context does nothing.
    """
    return jax.default_matmul_precision("highest") if jnp.dtype(dtype) == jnp.float32 else nullcontext()
