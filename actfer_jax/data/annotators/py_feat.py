"""py-feat: a table of faces ("Fex"), in which `input` names the picture and `AU01` to `AU43` are from 0 to 1."""

from collections.abc import Mapping
from dataclasses import dataclass

from actfer_jax.config import Share
from actfer_jax.data.annotations import au_values, number, present
from actfer_jax.data.annotators import AnnotationsConfig, Face

TITLE = "py-feat"
TRAINED_ON = ("DISFA", "BP4D")
PICTURE_COLUMNS = ("input",)
FRAME_COLUMNS = ("frame",)


@dataclass(frozen=True)
class Config(AnnotationsConfig):
    """
    Attributes:
      threshold: the least value of an action unit that is present.
      confidence: the least `FaceScore`.
    """

    threshold: Share = 0.5
    confidence: Share = 0.5


def read(row: Mapping[str, str], config: Config) -> Face | None:
    confidence = number(row, "FaceScore")
    if confidence is None or confidence < config.confidence:
        return None
    return Face(confidence, [present(au_values(row), config.threshold)])
