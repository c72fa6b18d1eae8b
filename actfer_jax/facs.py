"""Tables of the Facial Action Coding System that every part of the package shares.

Action units (AUs) are plain integers (``4`` is AU4, the brow lowerer). Landmark indices are those of
dlib's 68-point model, from 0. "Left" and "right" are as seen in the image.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

AU_NAMES: dict[int, str] = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    11: "nasolabial deepener",
    12: "lip corner puller",
    13: "sharp lip puller",
    14: "dimpler",
    15: "lip corner depressor",
    16: "lower lip depressor",
    17: "chin raiser",
    18: "lip pucker",
    19: "tongue show",
    20: "lip stretcher",
    22: "lip funneler",
    23: "lip tightener",
    24: "lip pressor",
    25: "lips part",
    26: "jaw drop",
    27: "mouth stretch",
    28: "lip suck",
    32: "lip bite",
    38: "nostril dilator",
    39: "nostril compressor",
    43: "eyes closed",
}

REGIONS: tuple[str, ...] = ("brows", "eyes", "nose", "cheeks", "mouth", "chin")

REGION_AUS: dict[str, frozenset[int]] = {
    "brows": frozenset({1, 2, 4}),
    "eyes": frozenset({5, 7, 43}),
    "nose": frozenset({9, 11, 38, 39}),
    "cheeks": frozenset({6}),
    "mouth": frozenset({10, 12, 13, 14, 15, 16, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 32}),
    "chin": frozenset({17}),
}
"""Which region an AU is read in: the regions partition the AUs (centres after JAA-Net; the rest by their name)."""

REGION_OF_AU: dict[int, str] = {au: region for region, aus in REGION_AUS.items() for au in aus}

REGION_LANDMARKS: dict[str, tuple[int, ...]] = {
    "brows": tuple(range(17, 27)),
    "eyes": tuple(range(36, 48)),
    "nose": tuple(range(27, 36)),
    "cheeks": (1, 41, 31, 48, 15, 46, 35, 54),
    "mouth": tuple(range(48, 68)),
    "chin": (6, 7, 8, 9, 10, 57),
}
"""Landmarks whose bounding box, padded by 0.3 of the distance between the inner eye corners, is the region."""

INNER_EYE_CORNERS: tuple[int, int] = (39, 42)

EMOTIONS: tuple[str, ...] = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)

EMOTION_ALIASES: dict[str, str] = {
    "angry": "anger",
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
    "fearful": "fear",
    "afraid": "fear",
    "disgusted": "disgust",
    "contemptuous": "contempt",
}

PROTOTYPES: dict[str, tuple[frozenset[int], frozenset[int]]] = {
    "neutral": (frozenset(), frozenset()),
    "happiness": (frozenset({6, 12}), frozenset({25})),
    "sadness": (frozenset({1, 4, 15}), frozenset()),
    "surprise": (frozenset({1, 2, 5, 26}), frozenset({25})),
    "fear": (frozenset({1, 2, 4, 5, 20, 26}), frozenset({7, 25})),
    "disgust": (frozenset({9, 15, 16}), frozenset()),
    "anger": (frozenset({4, 5, 7, 23}), frozenset({24})),
    "contempt": (frozenset({12, 14}), frozenset()),
}
"""(core AUs, optional AUs) of each emotion, after EMFACS; sources vary. Contempt is one-sided."""

# A side before or after the number, and an intensity from A to E, as coders write them.
_AU = re.compile(r"([LR]?)AU([LR]?)0*(\d{1,3})([LR]?)([A-E]?)([LR]?)", re.IGNORECASE | re.ASCII)


class CodedAU(NamedTuple):
    """An action unit as a coder wrote it.

    Attributes:
      au: its number.
      side: "L" or "R"; "" for both or not said.
      intensity: from "A", a trace, to "E", the maximum; "" if not said.
    """

    au: int
    side: str = ""
    intensity: str = ""


def normalise_emotion(label: str) -> str:
    """The canonical name of a label: ``" Angry"`` becomes ``"anger"``; an unknown label is only lower-cased."""
    word = label.strip().lower()
    return EMOTION_ALIASES.get(word, word)


def fit(emotion: str, aus: frozenset[int], known_aus: frozenset[int] | None = None) -> float:
    """How well action units fit an emotion, from 0 to 1: F1 of those that are present against the core of its
    prototype. Optional ones count neither way, nor do unknown ones; 0 where none of the core is known.

    Args:
      emotion: one with a prototype.
      aus: the action units that are present.
      known_aus: those that are known; None for every one.
    """
    core, optional = PROTOTYPES[normalise_emotion(emotion)]
    expected = core if known_aus is None else core & known_aus
    if core and not expected:
        return 0.0
    counted = aus - optional
    return 2 * len(counted & expected) / (len(counted) + len(expected)) if counted or expected else 1.0


def parse_aus(text: str) -> frozenset[int]:
    """Reads ``"AU1 AU2, AU26"`` as `parse_coded_aus` does, without sides and intensities."""
    return frozenset(coded.au for coded in parse_coded_aus(text))


def parse_coded_aus(text: str) -> list[CodedAU]:
    """Reads ``"AU1 au12L, AU4C"``: names in any case, divided by blanks, commas or semicolons, perhaps with a side and
    an intensity; ``""`` and ``"none"`` are the empty list.

    Raises:
      ValueError: a word is not the name of an action unit in ``AU_NAMES``.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    if [word.lower() for word in words] == ["none"]:
        return []
    coded = []
    for word in words:
        match = _AU.fullmatch(word)
        if match is None or int(match[3]) not in AU_NAMES:
            raise ValueError(f"{word[:20]!r} is not an action unit; write for example 'AU1 AU26' or 'none'")
        before, within, number, after, intensity, end = match.groups()
        coded.append(CodedAU(int(number), (before or within or after or end).upper(), intensity.upper()))
    return coded


def format_aus(aus: Iterable[int]) -> str:
    """``{26, 1}`` becomes ``"AU1 AU26"``; the empty set becomes ``"none"``."""
    return " ".join(f"AU{au}" for au in sorted(aus)) or "none"
