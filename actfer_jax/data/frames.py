"""Frames of videos as files, each named by its number, and the choice among them where people are tested in folds."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from actfer_jax.config import Count, between, one_of
from actfer_jax.data.datasets.folders import SUFFIXES
from actfer_jax.data.inventory import ALL, PictureConfig


@dataclass(frozen=True)
class FrameConfig(PictureConfig):
    """The choice of frames.

    Attributes:
      fold: of the three folds, the one whose people are "test"; the others are "train".
      aus: which action units are known: those that papers have "evaluated", or all that are "coded".
      stride: every which coded frame of a video is taken, from the first; at least 1.
      frames: the folder below `directory` in which each person has a folder.
    """

    split: Annotated[str, one_of("train", "test", ALL)] = "train"
    fold: Annotated[int, between(1, 3)] = 1
    aus: Annotated[str, one_of("evaluated", "coded")] = "evaluated"
    stride: Count = 1
    frames: str = "frames"


def numbered_pictures(folder: Path) -> dict[int, str]:
    """The names of the pictures in a folder by their numbers, which may have zeros before them; none without it."""
    names = sorted(os.listdir(folder), reverse=True) if folder.is_dir() else []
    parts = ((name, *os.path.splitext(name)) for name in names)
    return {int(stem): name for name, stem, suffix in parts if stem.isdecimal() and suffix.lower() in SUFFIXES}


def spans(frames: Iterable[int]) -> list[list[int]]:
    """Frames in rising order, divided where one is not followed by the next."""
    found: list[list[int]] = []
    for frame in frames:
        if found and found[-1][-1] == frame - 1:
            found[-1].append(frame)
        else:
            found.append([frame])
    return found


def in_words(span: Sequence[int]) -> str:
    return f"frame {span[0]}" if len(span) == 1 else f"the frames {span[0]} to {span[-1]}"
