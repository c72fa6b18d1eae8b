"""OpenFace 2: `AU12_c` is 0 or 1, and `AU12_r` an intensity from 0 to 5. The picture is named by the CSV file alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from actfer_jax.config import Share, between
from actfer_jax.data.annotations import au_values, number, present
from actfer_jax.data.annotators import AnnotationsConfig, Face

TITLE = "OpenFace 2"
TRAINED_ON = ("DISFA", "BP4D")
PICTURE_COLUMNS = ()
FRAME_COLUMNS = ("frame",)


@dataclass(frozen=True)
class Config(AnnotationsConfig):
    """
    Attributes:
      intensity: the least intensity of an action unit that is present; 1 is what OpenFace calls the minimum.
      confidence: the least confidence of a face.
    """

    intensity: Annotated[float, between(0, 5)] = 1.0
    confidence: Share = 0.8


def read(row: Mapping[str, str], config: Config) -> Face | None:
    confidence = number(row, "confidence")
    # Pictures without a sequence have no `success`.
    found = number(row, "success") != 0
    if not found or confidence is None or confidence < config.confidence:
        return None
    return Face(confidence, [present(au_values(row, "_c"), 0.5), present(au_values(row, "_r"), config.intensity)])
