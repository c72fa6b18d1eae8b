"""UniFER's training texts (arXiv 2511.00389) about pictures of RAF-DB, FER+, AffectNet and SFEW 2.0.

    TEXTS/UniFER_CoT_230K.json     [{"image_path", "question", "response"}, ...]: a thought and an answer to learn from
    TEXTS/UniFER_RLVR_360K.json    [{"image_path", "problem", "solution"}, ...]: an answer to be rewarded for
    DIR/RAF-DB/aligned/...         the pictures, below DIR by the paths of the texts

The emotion is what the last <answer> has, and the labels are those that the question offers. Texts are kept in `extra`:
the question as "prompt", the thought and answer as "description".
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from actfer_jax import facs
from actfer_jax.agent.episode import Reference
from actfer_jax.config import FieldError, one_of
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import json_list
from actfer_jax.data.inventory import Inventory, PictureConfig, Pictures, Problem, Record, relative
from actfer_jax.files import as_path

FILES = {"cot": "UniFER_CoT_230K.json", "rlvr": "UniFER_RLVR_360K.json"}

_KEYS = {"cot": ("question", "response"), "rlvr": ("problem", "solution")}
_OFFERED = re.compile(r"\blabels:\s*([^.\n]+)")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of texts.

    Attributes:
      part: "cot", with thoughts, or "rlvr", with answers alone.
      texts: the folder of the files of texts; "" where they lie in `directory`.
    """

    split: Annotated[str, one_of("train")] = "train"
    part: Annotated[str, one_of(*FILES)] = "cot"
    texts: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            as_path(self.texts or ".")
        except ValueError as error:
            raise FieldError("texts", f"{error}") from error


def labels(config: Config) -> tuple[str, ...]:
    """The labels of all questions, in the order and the spelling in which they first occur."""
    return inventory(config).labels


def label_sets(config: Config) -> tuple[tuple[str, ...], ...]:
    """The labels of each kind of question."""
    return tuple(dict.fromkeys(record.reference.labels for record in inventory(config).records))


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the file of texts is not there, or is none.
    """
    path = (Path(as_path(config.texts)) if config.texts else config.folder) / FILES[config.part]
    if not path.is_file():
        raise DataError(f"there is no {path}; data.texts is the folder of UniFER's files")
    problems, names = list[Problem](), dict[str, str]()
    records = list(_records(path, config, problems))
    for record in records:
        for label in record.reference.labels:
            names.setdefault(facs.normalise_emotion(label), label)
    return Inventory(tuple(names.values()), records, problems)


def _records(path: Path, config: Config, problems: list[Problem]) -> Iterator[Record]:
    times, file = Counter[str](), relative(path, config.folder)
    for number, item in enumerate(json_list(path, "texts"), 1):
        try:
            image, reference = _text(item, config.part)
        except ValueError as error:
            problems.append(Problem(file, None, f"item {number}: {error}; left out"))
            continue
        times[image] += 1  # There are several texts of many pictures.
        name = f"{image}#{times[image]}" if times[image] > 1 else image
        yield Record(name, config.folder / image, reference, "train")


def _text(item: Any, part: str) -> tuple[str, Reference]:
    """The path of a text's picture, and its reference.

    Raises:
      ValueError: something is missing or does not fit.
    """
    keys = ("image_path", *_KEYS[part])
    values = [item.get(key) if isinstance(item, dict) else None for key in keys]
    if not all(isinstance(value, str) and value.strip("/ ") for value in values):
        raise ValueError(f"is {str(item)[:60]!r}, not an object with the texts {', '.join(keys)}")
    image, question, text = (str(value) for value in values)
    offered = _OFFERED.search(question)
    if offered is None:
        raise ValueError(f"{keys[1]} is {question[:60]!r}, which offers no labels (as 'labels: fear, anger.')")
    choices = tuple(label.strip() for label in offered[1].split(",") if label.strip())
    *_, answer = [text, *_ANSWER.findall(text)]
    if answer.strip() not in choices:
        raise ValueError(f"{keys[2]} answers {answer.strip()[:60]!r}, which is none of {', '.join(choices)}")
    image = image.lstrip("/")
    extra = {"prompt": question} | ({"description": text} if part == "cot" else {})
    return image, Reference(choices, emotion=answer.strip(), strata=(image.split("/")[0],), extra=extra)
