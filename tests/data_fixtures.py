"""Data sets in exactly the layouts in which they are published or kept, oddities included, made of tiny pictures."""

import io
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from PIL import Image

from actfer_jax import plugins
from actfer_jax.config import read_config
from actfer_jax.data.check import check
from actfer_jax.data.sources import DataConfig, open_source

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


# BP4D's columns; 30 and 31 are none of `facs.AU_NAMES`.
BP4D_AUS = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 28, 30, 31, 32, 38, 39)
BP4D_EVALUATED = {1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24}
BP4D_PEOPLE = [f"F{n:03d}" for n in range(1, 24)] + [f"M{n:03d}" for n in range(1, 19)]
BP4D_FIRST = 95  # The first of the coded frames: padded names have zeros, and sort otherwise from 100 on.


def bp4d_code(subject: str, task: int, au: int, frame: int) -> int:
    """9 for two thirds of the codes of units that no F1 is published of."""
    mixed = int(subject[1:]) + au * au + 5 * task + frame * frame
    return 9 if au not in BP4D_EVALUATED and mixed % 3 else mixed // 3 % 2


def write_bp4d(directory: Path, tasks: int = 8, frames: int = 6, people: list[str] = BP4D_PEOPLE) -> dict[str, Any]:
    """Frames of the number's grey, one more than are coded. Those of men have zeros before their numbers."""
    for subject in people:
        for task in range(1, tasks + 1):
            coded = range(BP4D_FIRST, BP4D_FIRST + frames)
            rows = [[frame, *(bp4d_code(subject, task, au, frame) for au in BP4D_AUS)] for frame in coded]
            table = "\r\n".join(",".join(map(str, row)) for row in [[0, *BP4D_AUS], *rows, []])
            put(directory / f"AUCoding/AU_OCC/{subject}_T{task}.csv", table)
            for frame in (BP4D_FIRST - 1, *coded):
                name = f"{frame}.jpg" if subject[0] == "F" else f"{frame:04d}.jpg"
                put(directory / f"frames/{subject}/T{task}/{name}", picture(frame, side=2))
    return {"directory": str(directory)}


def noise(seed: int, height: int = 48, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


# Usage, code of FER2013, name, and votes for: neutral happiness surprise sadness anger disgust fear contempt unknown NF
FER_ROWS = (
    ("Training", 0, "fer0000000.png", (4, 0, 0, 1, 3, 2, 0, 0, 0, 0)),
    ("Training", 3, "fer0000001.png", (0, 8, 1, 0, 0, 0, 0, 0, 0, 0)),  # nine votes
    ("Training", 2, "", (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)),
    ("Training", 4, "fer0000002.png", (0, 0, 0, 6, 1, 0, 3, 0, 0, 0)),
    ("Training", 6, "fer0000003.png", (1, 0, 0, 0, 0, 0, 0, 0, 8, 1)),
    ("Training", 5, "fer0000004.png", (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)),  # named, with no vote but NF
    ("Training", 1, "fer0000005.png", (5, 5, 0, 0, 0, 0, 0, 0, 0, 0)),
    ("Training", 0, "fer0000006.png", (0, 0, 0, 0, 1, 0, 0, 9, 0, 0)),
    ("PublicTest", 3, "fer0000007.png", (0, 10, 0, 0, 0, 0, 0, 0, 0, 0)),
    ("PrivateTest", 5, "fer0000008.png", (0, 0, 10, 0, 0, 0, 0, 0, 0, 0)),
)
FER_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def write_fer_plus(directory: Path) -> dict[str, Any]:
    """The two tables; row n shows `noise(n)`."""
    pixels = [" ".join(map(str, noise(number).ravel())) for number in range(len(FER_ROWS))]
    rows = [f"{code},{text},{usage}" for (usage, code, _, _), text in zip(FER_ROWS, pixels, strict=True)]
    put(directory / "fer2013.csv", "\n".join(["emotion,pixels,Usage", *rows, ""]))
    votes = [f"{usage},{name},{','.join(map(str, counts))}" for usage, _, name, counts in FER_ROWS]
    put(directory / "fer2013new.csv", "\r\n".join([FER_HEADER, *votes, ""]))
    return {"directory": str(directory)}


def write_fer_plus_folders(directory: Path) -> dict[str, Any]:
    """The same pictures as files, with their votes in tables without a header."""
    folders = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
    tables = dict.fromkeys(folders.values(), "")
    for number, (usage, _, name, counts) in enumerate(FER_ROWS):
        if name:
            put(directory / folders[usage] / name, encoded(noise(number)))
            tables[folders[usage]] += f'{name},"(0, 0, 48, 48)",{",".join(map(str, counts))}\n'
    for folder, table in tables.items():
        put(directory / folder / "label.csv", table)
    return {"directory": str(directory)}


# Path, face_width, expression, valence, arousal.
AFFECTNET_ROWS = {
    "training": (
        ("103/a.jpg", 120, 0, 0.0, 0.1),
        ("103/b.JPG", 90, 1, 0.75, 0.25),
        ("9/c.jpeg", 80, 7, -0.5, 0.5),
        ("9/d.png", -3, 6, -0.6, 0.7),
        ("9/e.jpg", 80, 8, -2, -2),
        ("9/f.jpg", 80, 9, -2, -2),
        ("9/g.jpg", 80, 10, -2, -2),
    ),
    "validation": (("1/h.jpg", 100, 2, -0.7, -0.2), ("1/i.jpg", 100, 10, -2, -2)),
}
AFFECTNET_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


def write_affectnet(directory: Path) -> dict[str, Any]:
    """The first release, with landmarks in one cell, an empty last line, and no header above the validation part."""
    landmarks, seed = ";".join(f"{value}.5" for value in range(136)), 0
    for part, rows in AFFECTNET_ROWS.items():
        lines = [] if part == "validation" else [AFFECTNET_HEADER]
        for path, width, code, valence, arousal in rows:
            lines.append(f"{path},10,20,{width},{abs(width)},{landmarks},{code},{valence},{arousal}")
            kind = "PNG" if path.endswith("png") else "JPEG"
            put(directory / "Manually_Annotated_Images" / path, encoded(noise(seed, 40, 30), kind))
            seed += 1
        put(directory / f"{part}.csv", "\n".join([*lines, "", ""]))
    return {"directory": str(directory)}


def write_affectnet_later(directory: Path) -> dict[str, Any]:
    """Values as texts, numbers, and arrays of one number."""
    kinds = (str, float, lambda value: [value])
    codes = {"train_set": (0, 1, 7, 4), "val_set": (2,)}
    for folder, there in codes.items():
        for index, code in enumerate(there):
            put(directory / folder / f"images/{index}.jpg", encoded(noise(10 * index + code), "JPEG"))
            values = {"exp": code, "val": 0.1 * code, "aro": -0.05 * code}
            for what, value in values.items():
                data = io.BytesIO()
                np.save(data, np.array(kinds[index % 3](value)))
                put(directory / folder / f"annotations/{index}_{what}.npy", data.getvalue())
            put(directory / folder / f"annotations/{index}_lnd.npy", b"not read")
    return {"directory": str(directory), "release": "later"}


def write_affectnet_plus(directory: Path) -> dict[str, Any]:
    """Annotations in a folder beside the pictures' in one part, and beside each picture in the other."""
    for index, (code, subset, gender, race, age) in enumerate(
        (
            (1, 0, {"female": 0.9, "male": 0.1}, {"asian": 3.0, "latino hispanic": 90.0}, 25),
            (7, 1, {"female": 0.2, "male": 0.8}, {"white": 99.0, "black": 1.0}, 71.5),
            (9, 2, {"female": 0.2, "male": 0.8}, {"white": 99.0}, 30),
            (5, 2, {"female": 0.2, "male": 0.8}, {"white": 99.0}, 3),
        )
    ):
        put(directory / f"human_annotated/train_set/images/{index}.jpg", encoded(noise(index), "JPEG"))
        metadata = {"gender": gender, "race": race, "age": age, "valence": 0.5, "arousal": -2, "landmark-68": [0] * 136}
        annotation = {"human-label": code, "soft-label": [0.125] * 8, "subset": subset, "meta-data": metadata}
        put(directory / f"human_annotated/train_set/annotations/{index}.json", json.dumps(annotation))
    annotation = {"Human-Label": 0, "Soft-Label": [0] * 8, "Subset": 1, "Metadata": {"gender": "Female", "race": None}}
    put(directory / "human_annotated/validation/0_neutral/0.jpg", encoded(noise(9), "JPEG"))
    put(directory / "human_annotated/validation/0_neutral/0.json", json.dumps(annotation))
    return {"directory": str(directory), "release": "plus"}


def write_sfew(directory: Path, validation: str = "Val/Val_Aligned_Faces") -> dict[str, Any]:
    for index, path in enumerate(("Angry/a_1.png", "Happy/a_2.png", "Neutral/b.png", "Surprise/c.png")):
        put(directory / "Train/Train_Aligned_Faces" / path, encoded(noise(index, 181, 143)))
    for index, path in enumerate(("Sad/d.png", "Fear/e.png")):
        put(directory / validation / path, encoded(noise(100 + index, 181, 143)))
    put(directory / "Test/Test_Aligned_Faces/f.png", encoded(noise(200, 181, 143)))
    return {"directory": str(directory)}


FERBENCH_LABELS = {
    "rafdb": ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
    "ferplus": ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
    "affectnet": ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"),
    "sfew_2.0": ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
}
FERBENCH_PATHS = {
    "rafdb": "/RAF-DB/aligned/test_{}_aligned.jpg",
    "ferplus": "/FERPlus/test/{label}/fer003222{}.png",
    "affectnet": "/AffectNet/Manually_Annotated/validation/{}/1f2e.jpg",
    "sfew_2.0": "/SFEW-2.0/Val/Val_Aligned_Faces/{label}/Bad_{}.png",
}


def write_ferbench(directory: Path, each: int = 2) -> dict[str, Any]:
    """The four files of questions as the authors keep them, without a newline at the end, and their pictures."""
    for number, (subset, names) in enumerate(FERBENCH_LABELS.items()):
        items = []
        for index in range(each):
            label = names[3 * index % len(names)]
            path = FERBENCH_PATHS[subset].format(index, label=label)
            put(directory / "images" / path.lstrip("/"), encoded(noise(10 * number + index), "PNG"))
            prompt = f"Please select from candidate labels: {', '.join(names)}."
            items.append({"image_path": path, "true_label": label, "prompt": prompt, "candidate_labels": names})
        put(directory / f"UniFER/eval_{subset}/data/{subset}_qa.json", json.dumps(items, indent=4))
    return {"directory": str(directory / "images"), "questions": str(directory / "UniFER"), "split": "test"}


def write_workbook(path: Path, rows: Sequence[Sequence[Any]], sheet: str = "Sheet1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.title = sheet
    for row in rows:
        book.active.append(row)
    book.save(path)


def frame(clip: str, number: int) -> np.ndarray:
    """The frame of a clip in the sets of micro-expressions, which is like no other."""
    return noise(zlib.crc32(f"{clip} {number}".encode()), 24, 20)


def put_frames(folder: Path, name: str, numbers: Iterable[int], clip: str = "") -> None:
    """Frames of a clip; `name` has a place for the number."""
    kind = "BMP" if name.endswith("bmp") else "PNG"  # A PNG also where it is named .jpg: JPEG would change the pixels.
    for number in numbers:
        put(folder / name.format(number), encoded(frame(clip or folder.name, number), kind))


CASME2_ROWS = (
    # Subject, Filename, onset, apex, offset, action units, emotion.
    ("01", "EP02_01f", 46, 59, 86, "4+L12", "happiness"),
    ("01", "EP03_02", 131, "/", 162, 4, "others"),
    ("02", "EP01_11f", 46, 91, 100, "?", "repression"),
    ("02", "EP09_10", 51, 76, 91, "R1+2", "surprise"),
    ("04", "EP12_01f", 31, 41, 61, "4+9", "disgust"),
    ("05", "EP02_07", 10, 20, 30, "14", "disgust"),
    ("05", "EP13_04f", 10, 9, 30, "15", "sadness"),
)


def write_casme2(directory: Path) -> dict[str, Any]:
    """Two columns without a heading; subjects as texts, action units as texts or a number, an apex "/" or before the
    onset."""
    header = ("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units")
    rows: list[tuple[Any, ...]] = [(*header, "Estimated Emotion")]
    for subject, clip, onset, apex, offset, aus, emotion in CASME2_ROWS:
        rows.append((subject, clip, None, onset, apex, offset, None, aus, emotion))
        numbers = (onset, apex if isinstance(apex, int) else (onset + offset) // 2, offset)
        put_frames(directory / f"Cropped/sub{subject}/{clip}", "reg_img{}.jpg", numbers)
        put_frames(directory / f"CASME2_RAW_selected/sub{subject}/{clip}", "img{}.jpg", numbers, f"raw {clip}")
    write_workbook(directory / "CASME2-coding-20140508.xlsx", rows)
    return {"directory": str(directory)}


SAMM_ROWS = (
    ("006", "006_1_2", 562, 565, 570, "R12 + R15", "Happiness"),
    ("006", "006_1_3", 10050, 10059, 10080, "(R6 or R12)+R15", "Contempt"),
    ("007", "007_3_1", 16, 20, 19, "ref(7B)+43C", "Anger"),
    ("007", "007_6_5", 40, "/", 51, "A/L12", "Other"),
    ("011", "011_1_1", 100, 110, 120, "R14A", "Others"),
    ("011", "011_2_1", 100, 110, 120, "9+M58", "Sadness"),
    ("011", "011_3_1", 100, 110, 120, "4+?", "Surprise"),
)


def write_samm(directory: Path) -> dict[str, Any]:
    """The header on row 14; numbers of frames with 5 digits, and 4 in one clip."""
    rows: list[tuple[Any, ...]] = [("SAMM micro-expression dataset",), (), ("Please cite:", "Davison et al.")]
    rows += [()] * (13 - len(rows))
    header = ("Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame", "Duration")
    rows.append((*header, "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes"))
    for subject, clip, onset, apex, offset, aus, emotion in SAMM_ROWS:
        rows.append((subject, clip, 1, onset, apex, offset, offset - onset, "1/2", aus, emotion, 2, None))
        numbers = {onset, apex if isinstance(apex, int) else (onset + offset) // 2}
        name = subject + ("_{:04d}.jpg" if clip == "006_1_2" else "_{:05d}.jpg")
        put_frames(directory / subject / clip, name, numbers)
    write_workbook(directory / "SAMM_Micro_FACS_Codes_v2.xlsx", rows, "MICRO ONLY")
    return {"directory": str(directory)}


def write_smic(directory: Path) -> dict[str, Any]:
    for subject, emotion, clip, numbers in (
        ("s1", "negative", "s1_ne_01", range(100, 107)),
        ("s1", "surprise", "s1_sur_02", range(1, 5)),
        ("s20", "positive", "s20_po_01", range(7, 8)),
    ):
        put_frames(directory / f"HS/{subject}/micro/{emotion}/{clip}", "image{:06d}.bmp", numbers)
    return {"directory": str(directory)}


CASME3_ROWS = (
    ("spNO.1", "a", "355", "365", "372", "4+7", "II", "disgust"),
    ("spNO.1", "a", "700", "705", "710", "1+2", "III", "surprise"),
    ("spNO.2", "b", "1", "1", "8", "12", "I", "happy"),
    ("spNO.2", "c", "21", "25", "30", "", "VII", "Others"),
)


def write_casme3(directory: Path, folders: bool = False) -> dict[str, Any]:
    """All cells are texts, rows are blank, and two clips of a person have one letter. The other copies have a folder
    for each clip, in another case."""
    rows: list[tuple[Any, ...]] = [
        ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
    ]
    for subject, letter, onset, apex, *rest in CASME3_ROWS:
        rows += [(subject, letter, onset, apex, *rest), ()]
        folder = f"{subject.replace('NO', 'No')}_{letter}_{onset}" if folders else f"{subject}/{letter}/color"
        put_frames(directory / folder, "{}.jpg", (int(onset), int(apex)), f"{subject} {letter}")
    write_workbook(directory / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", rows, "label")
    return {"directory": str(directory)}


def write_dfme(directory: Path) -> dict[str, Any]:
    """A coding sheet as in its challenge, with action units such as AD38 and M58."""
    rows: list[tuple[Any, ...]] = [("Subject", "Filename", "OnsetFrame", "ApexFrame", "AU", "Emotion")]
    for subject, clip, onset, apex, aus, emotion in (
        ("sub0001", "sub0001_01_200", 1, 9, "AD38+4", "disgust"),
        ("sub0001", "sub0001_02_500", 3, 30, "M58+12", "happiness"),
        ("sub0671", "sub0671_01_200", 1, 5, "1+2", "surprise"),
        ("sub0671", "sub0671_02_200", 1, 5, "17", "others"),
    ):
        rows.append((subject, clip, onset, apex, aus, emotion))
        put_frames(directory / clip, "{:05d}.png", (onset, apex))
    write_workbook(directory / "coding.xlsx", rows)
    return {"directory": str(directory)}


def write_mmew(directory: Path) -> dict[str, Any]:
    header = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units", "Estimated Emotion")
    rows: list[tuple[Any, ...]] = [(*header, "remarks")]
    for subject, clip, onset, apex, offset, aus, emotion in (
        (13, "S13-07-001", 1, 12, 30, "4+7", "anger"),
        (13, "S13-02-002", 5, 15, 40, "6+12", "happiness"),
        (2, "S02-06-001", 1, 8, 20, "14", "others"),
    ):
        rows.append((subject, clip, onset, apex, offset, aus, emotion, None))
        put_frames(directory / f"Micro_Expression/{emotion}/{clip}", "{}.jpg", (onset, apex))
    write_workbook(directory / "MMEW_Micro_Exp.xlsx", rows)
    return {"directory": str(directory)}


def write_four_dme(directory: Path, clips: int = 5) -> dict[str, Any]:
    """A column for each action unit between the labels, several emotions of a clip, units that a coder doubts."""
    emotions = ("Positive", "Negative", "Surprise", "Repression", "Others")
    header = ("sub_ID", "fold_name", "Onset", "Apex", "Offset", "AUs", "Emotion", "AU4", "AU12")
    rows: list[tuple[Any, ...]] = [(*header, *emotions)]
    for n in range(clips):
        aus, shown = FOUR_DME_LABELS[n % len(FOUR_DME_LABELS)]
        subject, clip, onset, apex = f"sub{1 + n % 3}", f"clip_{n:03d}", 10 + n, 14 + n
        rows.append((subject, clip, onset, apex, 30 + n, aus, "".join(shown), int("4" in aus), int("12" in aus)))
        rows[-1] += tuple(int(word in shown) for word in emotions)
        put_frames(directory / f"gray_micro_crop/{subject}/{clip}", "{:04d}.jpg", (onset, apex))
        put_frames(directory / f"gray_micro/{subject}/{clip}", "{:04d}.jpg", (onset, apex), f"raw {clip}")
    write_workbook(directory / "4DME_Labelling_Micro_release v1.xlsx", rows)
    return {"directory": str(directory)}


FOUR_DME_LABELS = (
    ("AU4(k)+AU7", ("Negative",)),
    ("12", ("Positive",)),
    ("AU1+AU2", ("Surprise",)),
    ("AU4", ("Negative", "Surprise")),
    ("AU14+AU24", ("Repression",)),
)
"""Action units and emotions of the clips, in turn."""

FEA_SOURCES = {
    # Source: AUs and labels of its items; the last of each is of the test part.
    "FABA": ([["AU1", "AU4"], ["anger"]], [["AU12"], ["happiness"]], [[], ["neutral"]]),
    "BP4D": ([["AU6", "AU12", "AU30"], []], [[], []], [["AU12", "AU14"], []]),
    "FER2013": ([[], ["fear"]], [[], ["happiness"]], [[], ["fear"]]),
}


def fea_description(aus: list[str], labels: list[str]) -> str:
    told = " and ".join(f"a part of the face moves ({au})" for au in aus) or "the face is at rest"
    return f"<think>In this picture {told}.</think>\n<answer>{(labels or ['neutral'])[0]}</answer>"


def write_fea_20k(directory: Path) -> dict[str, Any]:
    """Files by source and part in a folder each; later stages have items of the first again."""
    for source, items in FEA_SOURCES.items():
        rows = []
        for index, (aus, labels) in enumerate(items):
            put(directory / source / f"p/{index}.jpg", encoded(noise(index + len(source)), "JPEG"))
            row = {
                "id": f"{source}_{index}",
                "dataset": source,
                "image": f"p/{index}.jpg",
                "AUs": aus,
                "labels": labels,
            }
            texts = {
                "question": "<image>What is the emotion of this face?",
                "description": fea_description(aus, labels),
            }
            rows.append(json.dumps(row | texts | {"meta_info": {}}))
        for stage in (1, 2):
            put(directory / f"texts/{source}/{source}-Train-stage{stage}.jsonl", "\n".join(rows[: 3 - stage]))
        put(directory / f"texts/{source}/{source}-Test.jsonl", rows[2] + "\n")
    return {"directory": str(directory), "texts": str(directory / "texts")}


UNIFER_QUESTION = (
    "Which expression is most prominent? Please select your answer from the following candidate labels: {}. Provide "
    "your reasoning in <think></think>, and your answer in <answer></answer>."
)


def write_unifer(directory: Path) -> dict[str, Any]:
    """Both files, with two texts about each picture."""
    cot, rlvr = list[dict[str, str]](), list[dict[str, str]]()
    for number, subset in enumerate(("rafdb", "affectnet")):
        names = FERBENCH_LABELS[subset]
        for index in range(2):
            path = FERBENCH_PATHS[subset].format(index)
            put(directory / path.lstrip("/"), encoded(noise(10 * number + index), "JPEG"))
            question, answer = UNIFER_QUESTION.format(", ".join(names)), f"<answer>{names[index]}</answer>"
            for thought in ("The brows rise.", "The mouth opens."):
                text = f"<think>{thought}</think>\n{answer}"
                cot.append({"image_path": path, "question": question, "response": text})
            rlvr.append({"image_path": path, "problem": question, "solution": answer})
    for name, items in (("UniFER_CoT_230K", cot), ("UniFER_RLVR_360K", rlvr)):
        put(directory / f"texts/{name}.json", json.dumps(items, indent=2))
    return {"directory": str(directory), "texts": str(directory / "texts")}


def write_derived(directory: Path) -> dict[str, Any]:
    return {"of": {"name": "raf_db"} | WRITERS["raf_db"](directory), "change": "blur", "strength": 2.0}


def write_mixture(directory: Path) -> dict[str, Any]:
    raf, sfew = ({"name": name} | WRITERS[name](directory / name) for name in ("raf_db", "sfew"))
    return {"parts": {"raf_db": raf, "sfew": sfew}, "labels": "shared"}


RAF_AU_ROWS = (
    ("0001", "1+2+L12+25"),
    ("0002", "null"),
    ("0003", "4 "),  # many rows of one code end in a blank
    ("0004", "12L+R12+BL18"),
    ("0005", "26+26+t23"),
    ("0006", "25+AD19+5"),
    ("0009", "9+17+36"),
)
RAF_ML_SHARES = {
    "0001": (0.525, 0.475, 0, 0, 0, 0),
    "0002": (0, 0, 0.5, 0, 0.25, 0.25),
    "0003": (0, 0, 0.4, 0, 0.2, 0.4),
    "0004": (0.1, 0, 0, 0.9, 0, 0),
    "0005": (0, 0.2, 0, 0, 0.8, 0),
    "0006": (0, 0.6, 0.4, 0, 0, 0),
    "0007": (0, 0, 0, 0, 0.3, 0.7),
}


def _write_raf_pictures(directory: Path, stems: Iterable[str]) -> None:
    for index, stem in enumerate(stems):
        put(directory / f"aligned/{stem}_aligned.jpg", picture(10 * index, side=100))
        put(directory / f"original/{stem}.jpg", picture(10 * index + 5, side=120))


def write_raf_au(directory: Path) -> dict[str, Any]:
    put(directory / "RAFAU_label.txt", "".join(f"{stem}.jpg {codes}\n" for stem, codes in RAF_AU_ROWS))
    _write_raf_pictures(directory, (stem for stem, _ in RAF_AU_ROWS))
    return {"directory": str(directory), "split": "all"}


def write_raf_ml(directory: Path) -> dict[str, Any]:
    """The last picture is the test part."""
    lists = dict.fromkeys(("distribution", "multilabel", "partition_label"), "")
    for stem, shares in RAF_ML_SHARES.items():
        lists["distribution"] += f"{stem}.jpg {' '.join(map(str, shares))}\n"
        lists["multilabel"] += f"{stem}.jpg {' '.join(str(int(share > 0.2)) for share in shares)}\n"
        lists["partition_label"] += f"{stem}.jpg {int(stem == '0007')}\n"
    for name, text in lists.items():
        put(directory / f"EmoLabel/{name}.txt", text)
    _write_raf_pictures(directory / "Image", RAF_ML_SHARES)
    return {"directory": str(directory)}


RAF_CE_ROWS = (("0001", 7, 0, "1+T2+25"), ("0004", 0, 0, "12"), ("0005", 5, 0, "null"), ("0006", 13, 1, "b16+L6"))
"""Names, emotions, partition, action units."""


def write_raf_ce(directory: Path) -> dict[str, Any]:
    for column, name in enumerate(("emolabel", "partition", "AUlabel"), 1):
        put(directory / f"RAFCE_{name}.txt", "".join(f"{row[0]}.jpg {row[column]}\n" for row in RAF_CE_ROWS))
    _write_raf_pictures(directory, (row[0] for row in RAF_CE_ROWS))
    return {"directory": str(directory)}


WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "raf_db": write_raf_db,
    "folders": write_folders,
    "table": write_table,
    "disfa": write_disfa,
    "bp4d": partial(write_bp4d, tasks=1, people=["F002", "M001"]),
    "fer_plus": write_fer_plus,
    "affectnet": write_affectnet,
    "sfew": write_sfew,
    "ferbench": write_ferbench,
    "casme2": write_casme2,
    "samm": write_samm,
    "smic": write_smic,
    "casme3": write_casme3,
    "dfme": write_dfme,
    "mmew": write_mmew,
    "four_dme": write_four_dme,
    "fea_20k": write_fea_20k,
    "unifer": write_unifer,
    "mixture": write_mixture,
    "derived": write_derived,
    "raf_au": write_raf_au,
    "raf_ml": write_raf_ml,
    "raf_ce": write_raf_ce,
}
"""By data set: writes the fixture and returns the keys of its config."""


def config_of(name: str, **keys: Any) -> DataConfig:
    return read_config({"name": name} | keys, DataConfig, "data")


def report_of(name: str, **keys: Any) -> dict[str, Any]:
    config = config_of(name, **keys)
    return check(plugins.load("data.datasets", name).inventory(config), Path(config.directory))


def problems_of(name: str, **keys: Any) -> list[tuple[str, int | None, str]]:
    return [tuple(problem.values()) for problem in report_of(name, **keys)["problems"]]


def samples_of(name: str, **keys: Any) -> dict[str, Any]:
    source = open_source(config_of(name, **keys))
    return {sample.name: sample for sample in (source[index] for index in range(len(source)))}
