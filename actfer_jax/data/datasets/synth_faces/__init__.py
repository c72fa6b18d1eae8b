"""Faces that the package renders, with the action units, emotion and landmarks that they show.

`sample_face` draws what to show, `render` draws the picture, `load` builds and reads a data set of them; `Config`,
`labels` and `open_source` are what every data set has.
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
    # TensorFlow Datasets takes seconds to import: whoever only renders, worker processes above all, goes without.
    if name in ("load", "SynthFaces", "FaceSource"):
        from actfer_jax.data.datasets.synth_faces import builder

        return getattr(builder, name)
    if name in ("Config", "labels", "open_source"):
        from actfer_jax.data.datasets.synth_faces import source

        return getattr(source, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
