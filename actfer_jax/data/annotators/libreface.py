"""LibreFace: `au_12` (found or not, after BP4D) and `au_12_intensity` (0 to 5, after DISFA).

Two layouts: a row for each picture or frame; and a row for each action unit, with its name in the first column, which
has no name, and its value in `detected_aus` or `au_intensities`. Newer versions do not name the picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from actfer_jax.config import between
from actfer_jax.data.annotations import au_values, present
from actfer_jax.data.annotators import AnnotationsConfig, Face

TITLE = "LibreFace"
TRAINED_ON = ("DISFA", "BP4D")
PICTURE_COLUMNS = ("input_image_path",)
FRAME_COLUMNS = ("frame_idx",)


@dataclass(frozen=True)
class Config(AnnotationsConfig):
    """
    Attributes:
      intensity: the least intensity of an action unit that is present.
    """

    intensity: Annotated[float, between(0, 5)] = 2.0


def read(row: Mapping[str, str], config: Config) -> Face | None:
    name = row.get("", "")
    cells = {**row, name: row.get("detected_aus", "") or row.get("au_intensities", "")}
    detected, intensities = au_values(cells), au_values(cells, "_intensity")
    return Face(1.0, [present(detected, 0.5), present(intensities, config.intensity)])
