"""Training, evaluation and use of agents that read facial expressions, in JAX."""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # noqa: UP036 (a checkout needs no installation to be run)
    # Before any import that an older Python does not understand.
    sys.exit(
        f"error: actfer_jax needs Python 3.11 to 3.13, but this is {sys.version.split()[0]} ({sys.executable}): "
        "make an environment with one of these (README.md, Two commands)"
    )

# TensorFlow, which only reads and writes files here, announces itself when it is imported: without its own kernels for
# arithmetic, and at the level of warnings, which is jax's default too, it does not.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
# So does transformers, that PyTorch is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def __getattr__(name: str) -> Any:
    """`actfer_jax.load_policy` (evaluation.reading), imported at first use: it takes jax along."""
    if name == "load_policy":
        return importlib.import_module("actfer_jax.evaluation.reading").load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
