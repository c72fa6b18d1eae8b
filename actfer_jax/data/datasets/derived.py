"""The samples of another data set, some of them or with changed pictures: for studies of what a policy depends on.

config.data.name = "derived"
config.data.of.name = "synth_faces"
config.data.change, config.data.strength = "blur", 3.0
config.data.strata = {"happiness": "plain", "fear": "subtle"}      # of these emotions only samples of a stratum
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from actfer_jax import facs
from actfer_jax.agent.episode import Sample
from actfer_jax.config import FieldError, above, one_of
from actfer_jax.data import sources
from actfer_jax.data.errors import DataError
from actfer_jax.data.sources import ALL, DataConfig

_GREY = (128, 128, 128)


def _brightness(picture: Image.Image, strength: float, seed: int) -> Image.Image:
    del seed
    return ImageEnhance.Brightness(picture).enhance(strength)


def _blur(picture: Image.Image, strength: float, seed: int) -> Image.Image:
    del seed
    return picture.filter(ImageFilter.GaussianBlur(strength))


def _occlusion(picture: Image.Image, strength: float, seed: int) -> Image.Image:
    rng, side = np.random.default_rng(seed), round(strength * min(picture.size))
    x, y = (int(rng.integers(0, max(1, length - side + 1))) for length in picture.size)
    covered = picture.copy()
    ImageDraw.Draw(covered).rectangle((x, y, x + side - 1, y + side - 1), fill=_GREY)
    return covered


def _rotation(picture: Image.Image, strength: float, seed: int) -> Image.Image:
    del seed
    return picture.rotate(strength, Image.Resampling.BICUBIC, fillcolor=_GREY)


def _scale(picture: Image.Image, strength: float, seed: int) -> Image.Image:
    del seed
    size = [max(1, round(strength * length)) for length in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


CHANGES: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "brightness": _brightness,
    "blur": _blur,
    "occlusion": _occlusion,
    "rotation": _rotation,
    "scale": _scale,
}


@dataclass(frozen=True)
class Config(DataConfig):
    """The choice of samples. `of` has the data set's own keys; split and `exclude` are those given here.

    Attributes:
      size: most samples, after the choice; None for all.
      of: the data set.
      change: what is done to each picture: "brightness" times `strength`; "blur" by a Gaussian of `strength` pixels;
        "occlusion" by a grey square of `strength` times the shorter side, in a place of the sample's own; "rotation" by
        `strength` degrees; "scale" to `strength` times its sides; "" for nothing.
      strength: see `change`; above 0.
      strata: by emotion, the stratum that its samples have to belong to; those of other emotions all stay.
    """

    split: Annotated[str, one_of("train", "validation", "test", ALL)] = "train"
    of: DataConfig = field(default_factory=DataConfig)
    change: Annotated[str, one_of("", *CHANGES)] = ""
    strength: Annotated[float, above(0)] = 1.0
    strata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directory:
            raise FieldError("directory", f"is {self.directory!r}; it must be empty: give data.of.directory")

    @property
    def section(self) -> DataConfig:
        """The data set, with what holds for it."""
        return replace(
            self.of, split=self.split, exclude=(*self.exclude, *self.of.exclude), cache_directory=self.cache_directory
        )

    @property
    def lineage(self) -> tuple[str, ...]:
        return self.section.lineage


def labels(config: Config) -> tuple[str, ...]:
    """The emotions of the data set."""
    return sources.emotion_labels(config.section)


def label_sets(config: Config) -> tuple[tuple[str, ...], ...]:
    """The labels that a sample may have."""
    return sources.label_sets(config.section)


def open_source(config: Config) -> "Derived":
    return Derived(config)


class Derived:
    """The samples that are left, changed (`data.sources.Source`).

    Raises:
      DataError: there are fewer than `config.size`, or an emotion is no label of the data set.
    """

    def __init__(self, config: Config):
        self.config = config
        self.source = sources.open_source(config.section)
        wanted = {facs.normalise_emotion(emotion): stratum for emotion, stratum in config.strata.items()}
        known = {facs.normalise_emotion(label) for label in labels(config)}
        if others := sorted(wanted.keys() - known):
            raise DataError(f"data.strata names {others[0]}, which is no label of {config.of.name}")
        self.indices = [index for index in range(len(self.source)) if not wanted or self._is_wanted(index, wanted)]
        if len(self.indices) < (config.size or 1):
            raise DataError(
                f"data.size is {config.size}, but data.strata leaves {len(self.indices)} of {len(self.source)} samples "
                f"of {config.of.name}: give a larger data.of.size"
            )
        self.indices = self.indices[: config.size]

    def _is_wanted(self, index: int, wanted: dict[str, str]) -> bool:
        emotion = self.source[index].reference.emotion
        stratum = None if emotion is None else wanted.get(facs.normalise_emotion(emotion))
        return stratum is None or stratum in self.source.strata(index)

    def __len__(self) -> int:
        return len(self.indices)

    def strata(self, index: int) -> tuple[str, ...]:
        return self.source.strata(self.indices[index])

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[self.indices[index]]
        if not self.config.change:
            return sample
        change, seed = CHANGES[self.config.change], zlib.crc32(f"{sample.dataset}/{sample.name}".encode())
        changed = (change(Image.fromarray(image), self.config.strength, seed) for image in sample.images)
        return replace(sample, images=tuple(np.asarray(image) for image in changed))
