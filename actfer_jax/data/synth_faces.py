"""An alias of the rendered faces for users' imports; the data set itself is `datasets/synth_faces`."""

from typing import Any

from actfer_jax.data.datasets import synth_faces


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # The import system asks packages for these; this is not one.
        raise AttributeError(name)
    return getattr(synth_faces, name)
