"""DISFA (Mavadati et al., IEEE Transactions on Affective Computing 2013), read in place: 27 people who watch a film,
with 12 action units coded in every frame of their videos.

    DIR/ActionUnit_Labels/SN001/SN001_au1.txt    1,0    a frame, counted from 1, and an intensity from 0 to 5
    DIR/frames/SN001/00001.png                   a frame, named by its number in the labels,
    DIR/frames/SN001/0.png                       or, in other copies, counted from 0

The videos themselves are not read: frames are extracted from them once (docs/data.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actfer_jax.agent.episode import Reference
from actfer_jax.data.errors import DataError
from actfer_jax.data.frames import FrameConfig, in_words, numbered_pictures, spans
from actfer_jax.data.inventory import ALL, Inventory, Pictures, Problem, Record, read_text, relative

CODED = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
EVALUATED = (1, 2, 4, 6, 9, 12, 25, 26)
"""The action units whose mean F1 is published."""
PRESENT = 2
"""The least intensity at which an action unit counts as present."""
FOLDS = {
    fold: tuple(f"SN{number:03d}" for number in numbers)
    for fold, numbers in {
        1: (3, 29, 23, 25, 8, 5, 7, 17, 4),
        2: (13, 18, 11, 28, 12, 6, 31, 21, 24),
        3: (2, 10, 1, 26, 27, 32, 30, 9, 16),
    }.items()
}
"""Whose frames are tested in each of the three folds (JAA-Net, ME-GraphAU)."""
FRAMES = 130_814

_LETTERS = " ABCDE"  # of the intensities, as coders of FACS write them


@dataclass(frozen=True)
class Config(FrameConfig):
    """The choice of frames; a fold tests 9 of the 27 people. 8 action units are evaluated, and 12 coded."""


def labels(config: Config) -> tuple[str, ...]:
    """None: DISFA has action units and no emotions."""
    return ()


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the labels or the frames are not there, or it is not known which frame a picture is of.
    """
    coded_root, frames_root = config.folder / "ActionUnit_Labels", config.folder / config.frames
    if not coded_root.is_dir():
        raise DataError(f"there is no {coded_root}; data.directory must hold DISFA's ActionUnit_Labels/")
    if not frames_root.is_dir():
        raise DataError(
            f"there is no {frames_root} (data.frames). Videos are not read; extract their frames, each person's by "
            f"`ffmpeg -i LeftVideoSN001_comp.avi -fps_mode passthrough -q:v 2 {frames_root}/SN001/%05d.jpg`"
        )
    people = sorted(subject for subjects in FOLDS.values() for subject in subjects)
    problems, records = list[Problem](), list[Record]()
    for folder in sorted(path for path in coded_root.iterdir() if path.is_dir() and path.name not in people):
        problems.append(Problem(relative(folder, config.folder), None, "is of nobody in the three folds; left out"))
    pictures = {subject: numbered_pictures(frames_root / subject) for subject in people}
    from_zero = _counted_from_zero(frames_root, pictures)
    for subject in people:
        folder = coded_root / subject
        if folder.is_dir():
            coded = {au: _Coded(folder / f"{subject}_au{au}.txt", config, problems) for au in CODED}
            records += _records(subject, coded, pictures[subject], from_zero, config, problems)
        else:
            problems.append(Problem(relative(folder, config.folder), None, "is not there"))
    whole = config.stride == 1
    folders = tuple(frames_root / subject for subject in people) if whole else ()
    return Inventory((), records, problems, {ALL: FRAMES} if whole else {}, folders)


class _Coded:
    """The rows of one file of labels.

    Attributes:
      file: its name below the data set's folder.
      intensities: by frame, in the order of the rows; empty where the file is not there, which is a problem.
      lines: by frame.
    """

    def __init__(self, path: Path, config: Config, problems: list[Problem]):
        self.file = relative(path, config.folder)
        self.intensities, self.lines = dict[int, int](), dict[int, int]()
        if not path.is_file():
            problems.append(Problem(self.file, None, "is not there; its action unit is not known of this person"))
            return
        for line, row in enumerate(read_text(path).splitlines(), 1):
            left, _, right = row.partition(",")
            try:
                frame, intensity = int(left), int(right)
            except ValueError:
                if row.strip():
                    problems.append(Problem(self.file, line, f"is {row[:60]!r}, no frame and intensity; left out"))
                continue
            if not 0 <= intensity < len(_LETTERS):
                problems.append(Problem(self.file, line, f"the intensity is {intensity}, of 0 to 5; left out"))
            elif frame in self.lines:
                there = self.lines[frame]
                problems.append(Problem(self.file, line, f"frame {frame} is in line {there} already; left out"))
            else:
                self.intensities[frame], self.lines[frame] = intensity, line

    def line_of_missing(self, frame: int) -> int:
        """Where the row of a frame would be that is not there: below that of the last one before it."""
        return max((line for other, line in self.lines.items() if other < frame), default=0) + 1


def _records(
    subject: str,
    coded: dict[int, _Coded],
    pictures: dict[int, str],
    from_zero: bool,
    config: Config,
    problems: list[Problem],
) -> Iterator[Record]:
    """The records of a person.

    Args:
      pictures: names by number, which is the frame's or, `from_zero`, its place in the video.
    """
    frames = sorted(set().union(*(one.intensities for one in coded.values())))
    for au, one in coded.items():
        for span in spans(frame for frame in frames if one.lines and frame not in one.lines):
            what = f"has no row of {in_words(span)}, which other files have; AU{au} is not known there"
            problems.append(Problem(one.file, one.line_of_missing(span[0]), what))
    first = min(frames[:1] + [1])
    names = {frame: pictures.get(frame - first if from_zero else frame) for frame in frames}
    for span in spans(frame for frame, name in names.items() if name is None):
        one = next(one for one in coded.values() if span[0] in one.intensities)
        what = f"{config.frames}/{subject} has no picture of {in_words(span)}; left out"
        problems.append(Problem(one.file, one.lines[span[0]], what))
    split = "test" if subject in FOLDS[config.fold] else "train"
    aus = EVALUATED if config.aus == "evaluated" else CODED
    folder = config.folder / config.frames / subject
    references = dict[tuple[int | None, ...], Reference]()  # Many frames of a video are coded alike.
    for frame, name in names.items():
        intensities = tuple(coded[au].intensities.get(frame) for au in aus)
        if name is None or (frame - first) % config.stride or set(intensities) == {None}:
            continue
        if intensities not in references:
            references[intensities] = _reference(subject, dict(zip(aus, intensities, strict=True)))
        yield Record(f"{subject}/{frame:05d}", folder / name, references[intensities], split)


def _counted_from_zero(folder: Path, pictures: dict[str, dict[int, str]]) -> bool:
    """Whether frames are named by their place in the video, from 0, and not by their number in the labels.

    Raises:
      DataError: the names do not tell.
    """
    from_zero = any(0 in numbers for numbers in pictures.values())
    padded = any(name.startswith("0") for numbers in pictures.values() for number, name in numbers.items() if number)
    if from_zero == padded:
        found = "of both kinds" if from_zero else "of neither kind"
        raise DataError(
            f"{folder} has no folders SN001, SN002, ... in which frames are named 00001.png, 00002.png, ... (by their "
            f"number in the labels) or 0.png, 1.png, ... (counted from 0): its names are {found}, so that it is not "
            "known which frame a picture is of"
        )
    return from_zero


def _reference(subject: str, intensities: dict[int, int | None]) -> Reference:
    known = {au: intensity for au, intensity in intensities.items() if intensity is not None}
    letters = {f"AU{au}": _LETTERS[intensity] for au, intensity in known.items() if intensity}
    return Reference(
        labels=(),
        aus=frozenset(au for au, intensity in known.items() if intensity >= PRESENT),
        known_aus=frozenset(known),
        extra={"subject": subject} | ({"intensities": letters} if letters else {}),
    )
