"""Frames of videos as files, each named by its number."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from actfer_jax.data.datasets.folders import SUFFIXES


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
