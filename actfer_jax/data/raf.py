"""What RAF-AU, RAF-ML and RAF-CE share: lists of pictures, codes of action units, and shares of emotions.

Their pictures are the same ones under the same names: RAF-AU and RAF-CE are parts of RAF-ML.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from actfer_jax import facs
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import Problem, read_text, relative
from actfer_jax.data.inventory import counted

EMOTIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger")
"""In the order of RAF-ML's columns. None is neutral."""
PICTURES = ("aligned", "original")

# Sides may stand before or after the number. To FACS 19 is an action descriptor, hence "AD19".
_CODE = re.compile(r"([LRTB]*)(?:AU|AD)?0*(\d{1,3})([LRTB]*)", re.ASCII)


class Row(NamedTuple):
    """What a list says of a picture, and in which line."""

    line: int
    words: list[str]


class PictureList(NamedTuple):
    """A list of pictures.

    Attributes:
      file: its name in problems.
      rows: by the stems of the pictures' names, such as "0001".
    """

    file: str
    rows: dict[str, Row]


def read_list(path: Path, title: str, folder: Path, problems: list[Problem]) -> PictureList:
    """Reads a list whose rows are the name of a picture and words, divided by blanks. Of two rows of one picture the
    first counts.

    Args:
      title: of the data set that should be there.
      folder: files are named from there.

    Raises:
      DataError: there is no such file, or it is no text.
    """
    if not path.is_file():
        raise DataError(f"there is no {path}; give the folder of {title}")
    file, rows = relative(path, folder), dict[str, Row]()
    for line, text in enumerate(read_text(path).splitlines(), 1):
        if not text.strip():
            continue
        name, *words = text.split()
        match = re.fullmatch(r"(?:.*[/\\])?([^/\\]+?)(?:_aligned)?\.jpg", name, re.IGNORECASE)
        if match is None or not words:
            what = f"is {text.strip()[:60]!r}, not the name of a picture and more; left out"
            problems.append(Problem(file, line, what))
        elif (stem := match[1]) in rows:
            problems.append(Problem(file, line, f"{stem}.jpg is in line {rows[stem].line} already; left out"))
        else:
            rows[stem] = Row(line, words)
    return PictureList(file, rows)


def lacking(listed: PictureList, other: PictureList, so: str) -> list[Problem]:
    """One problem for all pictures of a list that another one lacks, if there are any.

    Args:
      so: what follows from it.
    """
    lines = [row.line for stem, row in listed.rows.items() if stem not in other.rows]
    return counted(listed.file, {f"name a picture that {other.file} lacks; {so}": lines} if lines else {})


def read_choices(listed: PictureList, names: Sequence[str], what: str, problems: list[Problem]) -> dict[str, str]:
    """What each picture is, from a list with rows such as `0001.jpg 4`.

    Args:
      names: in the order of their numbers, from 0.
      what: the names are, in a word.
    """
    chosen, numbers = dict[str, str](), {str(number): name for number, name in enumerate(names)}
    for stem, (line, words) in listed.rows.items():
        if len(words) == 1 and words[0] in numbers:
            chosen[stem] = numbers[words[0]]
        else:
            what_is = f"the {what} is {' '.join(words)[:60]!r}, of 0 to {len(names) - 1}; left out"
            problems.append(Problem(listed.file, line, what_is))
    return chosen


def picture_folder(folder: Path, pictures: str) -> Path:
    """The folder of one kind of `PICTURES`; the inner one where an archive was unpacked into a folder of its name."""
    twice = folder / pictures / pictures
    return twice if twice.is_dir() else folder / pictures


def picture_path(folder: Path, pictures: str, stem: str) -> Path:
    """The picture of a name in its folder."""
    return folder / (f"{stem}_aligned.jpg" if pictures == "aligned" else f"{stem}.jpg")


class CodedPicture(NamedTuple):
    """The action units of a picture.

    Attributes:
      aus: those of the package's table, on whatever side.
      extra: for `Reference.extra`: `sides`, by action unit a text of the letters L, R, T and B (left, right, top,
        bottom), and `other_aus`, the numbers that the table lacks. Each only if there are any.
    """

    aus: frozenset[int]
    extra: dict[str, Any]


def read_codes(listed: PictureList, problems: list[Problem]) -> dict[str, CodedPicture]:
    """The action units of the pictures of a list with rows such as `0001.jpg 1+L12+25` or `0002.jpg null`, which means
    that there are none."""
    coded, lines = dict[str, CodedPicture](), defaultdict[str, list[int]](list)
    for stem, (line, words) in listed.rows.items():
        codes = [code.upper() for code in re.split(r"[+,]", "+".join(words)) if code]
        matches = [match for code in codes if (match := _CODE.fullmatch(code))]
        if codes != ["NULL"] and (not codes or len(matches) < len(codes)):
            what = f"has {' '.join(words)[:60]!r} for action units, not codes as in 1+L12; left out"
            problems.append(Problem(listed.file, line, what))
            continue
        if len(set(codes)) < len(codes):
            lines["have a code twice; it counts once"].append(line)
        found, sides = set[int](), dict[str, str]()
        for before, number, after in dict.fromkeys(match.groups() for match in matches):
            found.add(int(number))
            if before or after:
                au = f"AU{int(number)}"
                sides[au] = "".join(dict.fromkeys(sides.get(au, "") + before + after))
        others = sorted(found - facs.AU_NAMES.keys())
        for other in others:
            lines[f"have AU{other}, which the package's table lacks; only in reference.extra"].append(line)
        extra = {"sides": sides, "other_aus": others}
        aus = frozenset(found & facs.AU_NAMES.keys())
        coded[stem] = CodedPicture(aus, {key: value for key, value in extra.items() if value})
    problems += counted(listed.file, lines)
    return coded


class JudgedPicture(NamedTuple):
    """What many people saw in a picture.

    Attributes:
      emotion: the one with the largest share, of equals the first.
      distribution: the shares, for `Reference.extra`.
    """

    emotion: str
    distribution: dict[str, float]


def read_judgements(
    raf_ml: Path, folder: Path, problems: list[Problem]
) -> tuple[PictureList, dict[str, JudgedPicture]]:
    """RAF-ML's list of distributions, and what it says of each picture.

    Args:
      raf_ml: the folder of RAF-ML.
      folder: files are named from there.

    Raises:
      DataError: the list is not there, or is no text.
    """
    listed = read_list(raf_ml / "EmoLabel" / "distribution.txt", "RAF-ML", folder, problems)
    judged, tied = dict[str, JudgedPicture](), list[int]()
    for stem, (line, words) in listed.rows.items():
        try:
            shares = dict(zip(EMOTIONS, map(float, words), strict=True))
        except ValueError:
            shares = {}
        if not shares or not all(0 <= share < math.inf for share in shares.values()) or not any(shares.values()):
            what = f"is {' '.join(words)[:60]!r}, not {len(EMOTIONS)} shares of emotions; left out"
            problems.append(Problem(listed.file, line, what))
            continue
        emotion = max(shares, key=shares.__getitem__)
        judged[stem] = JudgedPicture(emotion, shares)
        if list(shares.values()).count(shares[emotion]) > 1:
            tied.append(line)
    what = "have more than one emotion with the largest share; the first of them counts"
    problems += counted(listed.file, {what: tied} if tied else {})
    return listed, judged
