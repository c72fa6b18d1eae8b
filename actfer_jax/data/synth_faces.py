"""The rendered faces, under the name that people import; they are a data set like others (`datasets/synth_faces`)."""

from typing import Any

from actfer_jax.data.datasets import synth_faces
from actfer_jax.data.datasets.synth_faces import (
    AMBIGUOUS_PAIRS,
    DEMO_EMOTIONS,
    FaceSpec,
    Rendered,
    emotion_from_aus,
    face_of,
    letter,
    level,
    render,
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
    "render",
    "sample_face",
]


def __getattr__(name: str) -> Any:
    # What the data set loads lazily, such as `load`.
    return getattr(synth_faces, name)
