"""Data sets in exactly the layouts in which they are published or kept, oddities included, made of tiny pictures."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

RAF_LABELS = (5, 4, 1, 7)


def picture(value: int, kind: str = "JPEG", side: int = 8) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), (value,) * 3).save(data, kind)
    return data.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_raf_db(directory: Path) -> dict[str, Any]:
    """Four training pictures and two test pictures, with and without "_aligned" in their names."""
    rows = [(f"train_{number:05d}", label) for number, label in enumerate(RAF_LABELS, 1)]
    rows += [("test_0001", 2), ("test_0002", 3)]
    for index, (stem, _) in enumerate(rows):
        put(directory / f"basic/Image/aligned/{stem}_aligned.jpg", picture(20 * index, side=100))
        put(directory / f"basic/Image/original/{stem}.jpg", picture(20 * index + 5, side=130))
        points = "".join(f"{x:.3f}\t{x:.3f}\n" for x in range(5))
        put(
            directory / f"basic/Annotation/manual/{stem}_manu_attri.txt",
            f"{points}{index % 3}\n{index % 3}\n{index % 5}\n",
        )
    listed = "".join(f"{stem}.jpg {label}\n" for stem, label in rows)
    put(directory / "basic/EmoLabel/list_patition_label.txt", listed)
    return {"directory": str(directory)}


def write_folders(directory: Path) -> dict[str, Any]:
    """A FER2013 copy as people pass it on: splits, upper and lower case, PNGs named .jpg, .jfif, a stray file."""
    for index, (name, kind) in enumerate(
        {
            "train/Angry/a.jpg": "PNG",
            "train/Angry/b.JPG": "JPEG",
            "train/happy/c.jfif": "JPEG",
            "train/neutral/d.png": "PNG",
            "Test/angry/e.png": "PNG",
            "Test/happiness/f.png": "PNG",
        }.items()
    ):
        put(directory / name, picture(10 * index, kind))
    put(directory / "train/neutral/Thumbs.db", "x")
    put(directory / "train/neutral/.DS_Store", "x")
    return {"directory": str(directory)}


TABLE = """\
image, emotion,AU,known_aus,subject,strata
p/1.png,happy,AU6 au12L AU12R,,ann,female
p/2.png,Happy,AU4C; AU1,AU1 AU4,bob,male outdoor
p/3.png,fear,,,cid,
p/4.png,,none,AU1 AU2,dee,female

p/5.png,anger,AU4D,,ann,
"""


def write_table(directory: Path) -> dict[str, Any]:
    put(directory / "labels.csv", "\ufeff" + TABLE.replace("\n", "\r\n"))
    for number in range(1, 6):
        put(directory / f"p/{number}.png", picture(10 * number, "PNG"))
    return {"directory": str(directory), "columns": {"aus": "AU"}, "split": "all"}


DISFA_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
DISFA_PEOPLE = [f"SN{n:03d}" for n in range(1, 33) if n not in (14, 15, 19, 20, 22)]


def disfa_intensity(subject: str, au: int, frame: int) -> int:
    return (int(subject[2:]) + 3 * au + frame * frame) % 6


def write_disfa(directory: Path, frames: int = 4, from_zero: bool = False) -> dict[str, Any]:
    """All people with a few frames, each with a grey of its own. Lines end in CRLF, SN023 is a row short in every file,
    and one file has no last newline."""
    for subject in DISFA_PEOPLE:
        for au in DISFA_AUS:
            coded = range(1, frames + (subject != "SN023"))
            rows = "\r\n".join(f"{frame},{disfa_intensity(subject, au, frame)}" for frame in coded)
            end = "" if (subject, au) == ("SN002", 1) else "\r\n"
            put(directory / f"ActionUnit_Labels/{subject}/{subject}_au{au}.txt", rows + end)
        for frame in range(1, frames + 1):
            name = f"{frame - 1}.png" if from_zero else f"{frame:05d}.png"
            grey = DISFA_PEOPLE.index(subject) * frames + frame
            put(directory / "frames" / subject / name, picture(grey, "PNG"))
    return {"directory": str(directory)}


WRITERS = {"raf_db": write_raf_db, "folders": write_folders, "table": write_table, "disfa": write_disfa}
"""By data set: writes the fixture and returns the keys of its config."""
