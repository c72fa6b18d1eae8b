"""BP4D-Spontaneous (Zhang et al., Image and Vision Computing 2014), read in place: 41 people in 8 tasks each, with
action units coded in some hundred frames of each.

    DIR/AUCoding/AU_OCC/F001_T1.csv    0,1,2,4,...       a header: the frame, and action units by their numbers
                                       2440,0,1,9,...    a frame: 1 is present, 0 absent, 9 not known
    DIR/frames/F001/T1/2440.jpg        a frame, by its number with or without zeros before it
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actfer_jax import facs
from actfer_jax.agent.episode import Reference
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import table_rows
from actfer_jax.data.frames import FrameConfig, in_words, numbered_pictures, spans
from actfer_jax.data.inventory import (
    ALL,
    Inventory,
    Pictures,
    Problem,
    Record,
    counted,
    read_text,
    relative,
)

EVALUATED = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
"""The action units whose mean F1 is published."""
FOLDS = {
    1: tuple("F007 F015 F006 F019 M006 M009 F012 M003 F004 F021 F017 M015 F014".split()),
    2: tuple("M011 F003 M010 M002 F005 F022 M018 M017 F013 M016 F020 F011 M013 M005".split()),
    3: tuple("F001 M007 F018 F008 F002 M004 F010 F009 M012 M001 F016 M014 F023 M008".split()),
}
"""Whose frames are tested in each of the three folds (JAA-Net, ME-GraphAU)."""
TASKS = tuple(f"T{number}" for number in range(1, 9))
FRAMES = {1: 45_809, 2: 50_166, 3: 50_601}
"""The number of coded frames of each fold's people."""

_FOLDERS = ("AUCoding/AU_OCC", "AU_OCC")
_ABSENT, _PRESENT, _UNKNOWN = "0", "1", "9"


@dataclass(frozen=True)
class Config(FrameConfig):
    """The choice of frames; a fold tests 13 or 14 of the 41 people on 12 evaluated action units."""


def labels(config: Config) -> tuple[str, ...]:
    """None: BP4D has action units and no emotions."""
    return ()


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the codes or the frames are not there, or a file of codes has no header.
    """
    coded_root = next((config.folder / name for name in _FOLDERS if (config.folder / name).is_dir()), None)
    if coded_root is None:
        raise DataError(f"there is no {config.folder / _FOLDERS[0]}; data.directory must hold BP4D's AUCoding/AU_OCC/")
    frames_root = config.folder / config.frames
    if not frames_root.is_dir():
        raise DataError(f"there is no {frames_root}; data.frames is the folder that has F001/T1/2440.jpg and so on")
    problems, records = list[Problem](), list[Record]()
    files = {
        coded_root / f"{subject}_{task}.csv": (subject, task)
        for subject in sorted(subject for subjects in FOLDS.values() for subject in subjects)
        for task in TASKS
    }
    for path in sorted(coded_root.glob("*.csv")):
        if path not in files:
            problems.append(Problem(relative(path, config.folder), None, "is of nobody in the three folds; left out"))
    for path, (subject, task) in files.items():
        if path.is_file():
            records += _records(path, subject, task, config, problems)
        else:
            problems.append(Problem(relative(path, config.folder), None, "is not there"))
    total, test = sum(FRAMES.values()), FRAMES[config.fold]
    official = {ALL: total, "train": total - test, "test": test} if config.stride == 1 else {}
    return Inventory((), records, problems, official)


def _records(path: Path, subject: str, task: str, config: Config, problems: list[Problem]) -> Iterator[Record]:
    """The records of a person in a task."""
    file, folder = relative(path, config.folder), Path(config.frames, subject, task)
    lines, codes = _codes(path, config, problems)
    pictures = numbered_pictures(config.folder / folder)
    for span in spans(frame for frame in codes if frame not in pictures):
        problems.append(Problem(file, lines[span[0]], f"{folder} has no picture of {in_words(span)}; left out"))
    split = "test" if subject in FOLDS[config.fold] else "train"
    unknown = list[int | None]()
    references = dict[tuple[tuple[int, str], ...], Reference]()  # Many frames of a video are coded alike.
    for place, (frame, by_au) in enumerate(codes.items()):
        if frame not in pictures or place % config.stride:
            continue
        if not by_au:
            unknown.append(lines[frame])
            continue
        key = tuple(by_au.items())
        if key not in references:
            present = frozenset(au for au, code in by_au.items() if code == _PRESENT)
            references[key] = Reference((), aus=present, known_aus=frozenset(by_au), extra={"subject": subject})
        name = f"{subject}/{task}/{frame:04d}"
        yield Record(name, config.folder / folder / pictures[frame], references[key], split)
    problems += counted(file, {"have no action unit that is known; left out": unknown} if unknown else {})


def _codes(path: Path, config: Config, problems: list[Problem]) -> tuple[dict[int, int], dict[int, dict[int, str]]]:
    """The line of each frame, and the codes of its known action units, in the order of the frames.

    Raises:
      DataError: the first row is no header.
    """
    file = relative(path, config.folder)
    rows = table_rows(read_text(path), file, ",", problems)
    _, header = next(rows, (0, [""]))
    numbers = [(column, int(cell)) for column, cell in enumerate(header) if column and cell.strip().isdecimal()]
    columns = {au: column for column, au in numbers}
    if not columns.keys() & set(EVALUATED) or len(columns) < len(numbers):
        raise DataError(
            f"{path}, line 1: the first row must name the frame and action units, as 0,1,2,4,...; files of intensities "
            "(AU_INT) have no such row, and are not read"
        )
    if missing := set(EVALUATED) - columns.keys():
        problems.append(Problem(file, 1, f"has no column of {facs.format_aus(missing)}; not known of these frames"))
    wanted = [au for au in (EVALUATED if config.aus == "evaluated" else facs.AU_NAMES) if au in columns]
    lines, codes = dict[int, int](), dict[int, dict[int, str]]()
    for line, cells in rows:
        frame, by_au = cells[0].strip(), {au: cells[columns[au]].strip() for au in wanted}
        odd = set(by_au.values()) - {_ABSENT, _PRESENT, _UNKNOWN}
        if not frame.isdecimal():
            problems.append(Problem(file, line, f"the frame is {frame!r}, no number; left out"))
        elif odd:
            problems.append(Problem(file, line, f"has the code {min(odd)!r}, not 0, 1 or 9; left out"))
        elif int(frame) in lines:
            problems.append(Problem(file, line, f"frame {frame} is in line {lines[int(frame)]} already; left out"))
        else:
            lines[int(frame)] = line
            codes[int(frame)] = {au: code for au, code in by_au.items() if code != _UNKNOWN}
    return lines, {frame: codes[frame] for frame in sorted(codes)}
