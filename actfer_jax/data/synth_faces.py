"""The rendered faces, under the name that people import; they are a data set like others (`datasets/synth_faces`)."""

from typing import Any

from actfer_jax.data.datasets import synth_faces


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # what the import system asks of packages, which this is not
        raise AttributeError(name)
    return getattr(synth_faces, name)
