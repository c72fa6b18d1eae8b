"""What data sets of micro-expressions have in common.

A sample is a clip, of which two pictures are shown: the onset, where the face still rests, and the apex, where the
expression is strongest. The reference is about the apex. Set `rollout.images` to 2 where a policy trains on them, and
`images` where one is evaluated.

- A clip without an apex is shown with the frame in the middle between onset and offset, rounded down.
- An apex that is not between onset and offset is named, and shown as it is written.
- A clip without a picture of its onset or apex is left out.
- A word that is no single action unit, such as `(R6 or R12)` or `ref(7B)`, makes the units in it unknown, and one
  without a number, such as the `?` of `4+?`, all that are not named.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from actfer_jax import facs
from actfer_jax.agent.episode import Reference
from actfer_jax.config import FieldError, one_of
from actfer_jax.data.annotations import coded_details
from actfer_jax.data.datasets.folders import SUFFIXES
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import Problem, relative
from actfer_jax.data.inventory import ALL, Inventory, PictureConfig, Record, counted
from actfer_jax.data.workbook import Cells

COMPOSITE = ("negative", "positive", "surprise")
"""The classes of the second micro-expression grand challenge (MEGC 2019), into which several data sets are pooled."""
COMPOSITE_OF = dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness"), "negative") | {
    "happiness": "positive",
    "surprise": "surprise",
}
"""By canonical emotion: its class in the composite. Others are left out."""

COLUMNS = {
    "subject": "Subject",
    "clip": "Filename",
    "onset": "OnsetFrame",
    "apex": "ApexFrame",
    "offset": "OffsetFrame",
    "aus": "Action Units",
    "emotion": "Estimated Emotion",
}
"""The columns of several of the sets' workbooks."""

Frames = dict[int, Path]
"""The pictures of a clip by their numbers, in rising order."""


@dataclass(frozen=True)
class MicroConfig(PictureConfig):
    """The choice of clips.

    Attributes:
      split: "train" and "test" where `subject` is given.
      subject: who is left out: this person's clips are "test", those of all others "train"; "" for nobody.
      classes: "own", the emotions of the data set, or "composite", negative, positive and surprise (MEGC 2019).
    """

    split: Annotated[str, one_of("train", "test", ALL)] = ALL
    subject: str = ""
    classes: Annotated[str, one_of("own", "composite")] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split != ALL and not self.subject:
            raise FieldError("subject", f"is empty; say whose clips are test, as split is {self.split!r}, not {ALL!r}")


@dataclass(frozen=True)
class Clip:
    """A clip as the data set describes it.

    Attributes:
      name: unique in the data set.
      subject: who is shown.
      row: what is said of it: "emotion"; "onset", "apex" and "offset", the numbers of frames, where what is no number,
        such as "/", is not known; and perhaps "aus", action units divided by "+" or ",".
      folder: where its pictures lie.
      frames: these by their numbers.
      file, line: where the row is.
    """

    name: str
    subject: str
    row: Cells
    folder: Path
    frames: Frames
    file: str
    line: int | None = None

    @property
    def emotion(self) -> str:
        """The word for it, in lower case."""
        return text_of(self.row["emotion"]).lower()


def composite_of(words: Iterable[str]) -> dict[str, str]:
    """The classes of the composite, by the words of a data set; words for another emotion are not among them."""
    classes = ((word, COMPOSITE_OF.get(facs.normalise_emotion(word))) for word in words)
    return {word: found for word, found in classes if found is not None}


def labels_of(classes: Mapping[str, str]) -> tuple[str, ...]:
    """The labels of a data set from the class of each of its words, in alphabetical order."""
    return tuple(sorted(set(classes.values())))


def clip_inventory(
    clips: Iterable[Clip],
    config: MicroConfig,
    classes: Mapping[str, str],
    problems: list[Problem],
    official: Mapping[str, int],
) -> Inventory:
    """The records of clips.

    Args:
      classes: by the word for an emotion, in lower case: its class. Clips of other emotions are left out.
      problems: what was odd in the files; what is odd in the clips comes after it.
      official: as in `Inventory`.

    Raises:
      DataError: no clip shows `config.subject`.
    """
    clips = list(clips)
    subjects = sorted({clip.subject for clip in clips})
    if config.subject and config.subject not in subjects:
        raise DataError(f"data.subject is {config.subject!r}; {config.folder} has {', '.join(subjects) or 'nobody'}")
    records, lines = list[Record](), dict[str, int | None]()
    alike: dict[str, dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        label = classes.get(clip.emotion)
        if label is None:
            alike[clip.file][f"have the emotion {clip.emotion!r}, which is in no class; left out"] += [clip.line]
            continue
        try:
            if clip.name in lines:
                raise ValueError(f"{clip.name} is in line {lines[clip.name]} already; left out")
            onset, apex, odd = _onset_and_apex(clip)
            pictures = [_picture(clip, number, config.folder) for number in (onset, apex)]
        except ValueError as error:
            problems.append(Problem(clip.file, clip.line, str(error)))
            continue
        lines[clip.name] = clip.line
        problems += [Problem(clip.file, clip.line, odd)] if odd else []
        coded = _action_units(clip.row.get("aus"))
        for word in coded.unread:
            alike[clip.file][f"have {word!r} among their action units, which is not read"] += [clip.line]
        extra = {"subject": clip.subject, **coded.details}
        reference = Reference((), label, coded.aus, coded.known_aus, strata=(config.name,), extra=extra)
        split = "" if not config.subject else "test" if clip.subject == config.subject else "train"
        records.append(Record(clip.name, pictures[1], reference, split, before=(pictures[0],)))
    for file, there in alike.items():
        problems += counted(file, there)
    return Inventory(labels_of(classes), records, problems, dict(official))


def frames_in(folder: Path) -> Frames:
    """The pictures in a folder, none where there is no folder. The number of a file is the last in its name."""
    files = [file for file in (folder.iterdir() if folder.is_dir() else ()) if file.suffix.lower() in SUFFIXES]
    numbers = ((re.search(r"(\d+)\D*$", file.stem), file) for file in files if not file.name.startswith("."))
    return dict(sorted((int(match[1]), file) for match, file in numbers if match is not None))


def text_of(cell: Any) -> str:
    """A cell's text. A whole number has no ".0", which some programs write."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return "" if cell is None else str(cell).strip()


def _onset_and_apex(clip: Clip) -> tuple[int, int, str]:
    """The numbers of both frames, and what is odd about them, or "".

    Raises:
      ValueError: one of them is not known.
    """
    onset, apex, offset = (_number(clip.row[name]) for name in ("onset", "apex", "offset"))
    if onset is None:
        raise ValueError(f"the onset is {clip.row['onset']!r}, no number; left out")
    if apex is None:
        if offset is None or offset < onset:
            raise ValueError(f"there is no apex, and the offset is {clip.row['offset']!r}: no middle; left out")
        middle = (onset + offset) // 2
        return onset, middle, f"there is no apex: the middle frame {middle} of {onset} to {offset} is shown"
    if not onset < apex <= (apex if offset is None else offset):
        return onset, apex, f"the apex {apex} is not between onset {onset} and offset {offset}; shown as written"
    return onset, apex, ""


def _picture(clip: Clip, number: int, folder: Path) -> Path:
    """
    Raises:
      ValueError: it is not there.
    """
    if not clip.frames:
        raise ValueError(f"there are no pictures in {relative(clip.folder, folder)}; left out")
    if number not in clip.frames:
        raise ValueError(f"{relative(clip.folder, folder)} has no picture of frame {number}; left out")
    return clip.frames[number]


def _number(cell: Any) -> int | None:
    text = text_of(cell)
    return int(text) if text.isdecimal() else None


class _Coded(NamedTuple):
    """The action units of a cell.

    Attributes:
      aus, known_aus: as in `Reference`.
      details: sides and intensities, for `Reference.extra`.
      unread: the words that are no single action unit.
    """

    aus: frozenset[int] | None
    known_aus: frozenset[int] | None = None
    details: Mapping[str, Any] = {}
    unread: Sequence[str] = ()


def _action_units(cell: Any) -> _Coded:
    text = text_of(cell)
    if text.strip("?/-") == "":
        return _Coded(None)
    if text.lower() in ("none", "null"):
        return _Coded(frozenset())
    coded, words, unknown = list[facs.CodedAU](), list[str](), set[int]()
    for word in _words(text):
        try:
            coded += facs.parse_coded_aus("AU" + re.sub(r"^(A/[LR]|A[UD])", "", word, flags=re.IGNORECASE))
        except ValueError:
            words.append(word)
            unknown |= {int(number) for number in re.findall(r"\d+", word)}
    any_other = any(not re.search(r"\d", word) for word in words)
    aus = frozenset(one.au for one in coded)
    unknown = (facs.AU_NAMES.keys() if any_other else unknown & facs.AU_NAMES.keys()) - aus
    known_aus = frozenset(facs.AU_NAMES.keys() - unknown) if unknown else None
    return _Coded(aus, known_aus, coded_details(coded), words)


def _words(text: str) -> Iterator[str]:
    """The words of a cell; what is in parentheses is one."""
    return (word.strip() for word in re.split(r"[+,，](?![^()]*\))", text) if word.strip())
