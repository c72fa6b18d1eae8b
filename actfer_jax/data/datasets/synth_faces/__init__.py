"""Rendered faces with their action units, emotions and landmarks.

`sample_face` samples a face's description, `render` draws its image, and `load` builds and reads a data set of faces.
`Config`, `labels` and `open_source` are the interface of every data set.
"""

from typing import Any

from actfer_jax.data.datasets.synth_faces.renderer import Rendered, render
from actfer_jax.data.datasets.synth_faces.world import (
    AMBIGUOUS_PAIRS,
    DEMO_EMOTIONS,
    FaceSpec,
    emotion_from_aus,
    face_of,
    letter,
    level,
    sample_face,
)

__all__ = [
    "AMBIGUOUS_PAIRS",
    "DEMO_EMOTIONS",
    "FaceSpec",
    "Rendered",
    "emotion_from_aus",
    "face_of",
    "letter",
    "level",
    "load",
    "render",
    "sample_face",
]


def __getattr__(name: str) -> Any:
    # TensorFlow Datasets takes seconds to import. Code that only renders, above all worker processes, does not need it.
    if name in ("load", "SynthFaces", "FaceSource"):
        from actfer_jax.data.datasets.synth_faces import builder

        return getattr(builder, name)
    if name in ("Config", "labels", "open_source"):
        from actfer_jax.data.datasets.synth_faces import source

        return getattr(source, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
