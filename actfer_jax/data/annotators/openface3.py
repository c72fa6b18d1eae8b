"""OpenFace 3: `action_units` is the text of a list of 8 numbers in a list, and `image_path` names the picture.

Where a picture has several faces, each row has the numbers of the best one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from actfer_jax.config import at_least
from actfer_jax.data.annotations import present
from actfer_jax.data.annotators import AnnotationsConfig, Face

TITLE = "OpenFace 3"
TRAINED_ON = ("DISFA", "BP4D")
PICTURE_COLUMNS = ("image_path", "video_path")
FRAME_COLUMNS = ("frame_index",)


@dataclass(frozen=True)
class Config(AnnotationsConfig):
    """
    Attributes:
      threshold: the least number of an action unit that is present.
      aus: which action units the numbers stand for; the file does not name them.
    """

    threshold: float = 0.5
    aus: tuple[Annotated[int, at_least(1)], ...] = (1, 2, 4, 6, 9, 12, 25, 26)


def read(row: Mapping[str, str], config: Config) -> Face | None:
    text = row.get("action_units", "")
    if not text:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"action_units is {text[:40]!r}, no list of numbers") from None
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"action_units is {text[:40]!r}, no list of numbers")
    if len(values) != len(config.aus):
        raise ValueError(f"action_units has {len(values)} numbers, and annotations.aus names {len(config.aus)}")
    return Face(1.0, [present(dict(zip(config.aus, values, strict=True)), config.threshold)])
