"""SMIC, its part HS (Li et al., FG 2013), read in place: micro-expressions filmed at 100 frames a second.

    DIR/HS/s1/micro/negative/s1_ne_01/*.bmp     HS, person, emotion, clip

A sample is a clip, shown by its onset and its apex (`data.micro`). The onset is the first frame. SMIC says no apex, so
that the middle frame stands for it. There are no action units.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actfer_jax.data.errors import DataError
from actfer_jax.data.files import Problem, relative
from actfer_jax.data.inventory import Inventory, Pictures
from actfer_jax.data.micro import COMPOSITE, Clip, MicroConfig, clip_inventory, frames_in

OFFICIAL = {"all": 164, "all/negative": 70, "all/positive": 51, "all/surprise": 43}


@dataclass(frozen=True)
class Config(MicroConfig):
    """The choice of clips. SMIC's own classes are those of the composite."""


def labels(config: Config) -> tuple[str, ...]:
    del config
    return COMPOSITE


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: there are no clips, or nobody is `config.subject`.
    """
    root = config.folder / "HS"
    clips = list(_clips(config, root))
    if not clips:
        raise DataError(f"there is no {root}/PERSON/micro/EMOTION/CLIP; data.directory must hold SMIC's HS/")
    what = f"{len(clips)} clips have no apex: the middle frame is shown"
    return clip_inventory(clips, config, {word: word for word in COMPOSITE}, [Problem("HS", None, what)], OFFICIAL)


def _clips(config: Config, root: Path) -> Iterator[Clip]:
    for folder in sorted(path for path in root.glob("*/micro/*/*") if path.is_dir()):
        emotion, subject = folder.parent.name, folder.parents[2].name
        frames, name = frames_in(folder), relative(folder, config.folder)
        first, last = (min(frames), max(frames)) if frames else (0, 0)
        row = {"emotion": emotion, "onset": first, "apex": (first + last) // 2, "offset": last}
        yield Clip(f"{subject}/{folder.name}", subject, row, folder, frames, name)
