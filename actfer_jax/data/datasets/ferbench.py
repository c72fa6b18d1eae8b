"""FERBench's questions (arXiv 2511.00389) about test pictures of RAF-DB, FER+, AffectNet and SFEW 2.0, for evaluation.

    QUESTIONS/rafdb_qa.json        [{"image_path", "true_label", "candidate_labels", ...}, ...]; and for each subset
    DIR/RAF-DB/aligned/...         the pictures, below DIR by the paths of the questions

A question has its own labels to choose from. Its subset is its stratum, and its prompt, if the file has one, is kept.
"""

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

_COUNTS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "rafdb": (
        ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
        (329, 74, 160, 1185, 478, 162, 680),
    ),
    "ferplus": (
        ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
        (322, 30, 21, 98, 929, 1274, 449, 450),
    ),
    "affectnet": (
        ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"),
        (500,) * 8,
    ),
    "sfew_2.0": (
        ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
        (77, 23, 46, 72, 84, 73, 56),
    ),
}
SUBSETS = {subset: dict(zip(labels, counts, strict=True)) for subset, (labels, counts) in _COUNTS.items()}
"""The official number of questions by subset and label."""

_SPLIT = "test"


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of questions.

    Attributes:
      subsets: any of "rafdb", "ferplus", "affectnet" and "sfew_2.0".
      questions: the folder of the files of questions; "" where they lie in `directory`. It may be a copy of the
        authors' repository.
    """

    split: Annotated[str, one_of(_SPLIT)] = _SPLIT
    subsets: tuple[Annotated[str, one_of(*SUBSETS)], ...] = tuple(SUBSETS)
    questions: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.subsets or len(set(self.subsets)) < len(self.subsets):
            raise FieldError("subsets", f"is {self.subsets}; it must name each of one subset or more once")
        try:
            as_path(self.questions or ".")
        except ValueError as error:
            raise FieldError("questions", f"{error}") from error


def labels(config: Config) -> tuple[str, ...]:
    """The labels of all questions, in the order and the spelling in which they first occur."""
    return inventory(config).labels


def label_sets(config: Config) -> tuple[tuple[str, ...], ...]:
    """The labels of the questions of each subset."""
    return tuple(dict.fromkeys(record.reference.labels for record in inventory(config).records))


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    records, problems, names = list[Record](), list[Problem](), dict[str, str]()
    for subset in config.subsets:
        for record in _records(subset, config, problems):
            records.append(record)
            for label in record.reference.labels:
                names.setdefault(facs.normalise_emotion(label), label)
    official = {_SPLIT: sum(sum(SUBSETS[subset].values()) for subset in config.subsets)}
    for subset in config.subsets:
        official[subset] = sum(SUBSETS[subset].values())
        official |= {f"{subset}/{label}": count for label, count in SUBSETS[subset].items()}
    return Inventory(tuple(names.values()), records, problems, official)


def _records(subset: str, config: Config, problems: list[Problem]) -> Iterator[Record]:
    path = _file(subset, config)
    file, times = relative(path, config.folder), Counter[str]()
    for number, item in enumerate(json_list(path, "questions"), 1):
        try:
            image, reference = _question(item, subset)
        except ValueError as error:
            problems.append(Problem(file, None, f"item {number}: {error}; left out"))
            continue
        times[image] += 1
        name = image
        if times[image] > 1:
            problems.append(Problem(file, None, f"item {number} asks about {image} again; each counts"))
            name = f"{image}#{times[image]}"
        yield Record(name, config.folder / image, reference, _SPLIT)


def _file(subset: str, config: Config) -> Path:
    """The file of a subset's questions, which the authors' repository has in a folder for each subset.

    Raises:
      DataError: there is none.
    """
    folder = Path(as_path(config.questions)) if config.questions else config.folder
    name = f"{subset}_qa.json"
    for path in (folder / name, folder / f"eval_{subset}" / "data" / name):
        if path.is_file():
            return path
    raise DataError(
        f"there is no {folder / name}; data.questions is the folder of FERBench's files, and data.subsets says which"
    )


def _question(item: Any, subset: str) -> tuple[str, Reference]:
    """The path of a question's picture, and its reference.

    Raises:
      ValueError: something is missing or does not fit.
    """
    if not isinstance(item, dict):
        raise ValueError(f"is {str(item)[:60]!r}, not an object with image_path, true_label and candidate_labels")
    image, truth, choices = (item.get(key) for key in ("image_path", "true_label", "candidate_labels"))
    if not isinstance(image, str) or not image.strip("/"):
        raise ValueError(f"image_path is {image!r}; it must be a path")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"candidate_labels is {choices!r}; it must be a list of labels")
    if truth not in choices:
        raise ValueError(f"true_label is {truth!r}, which is none of candidate_labels ({', '.join(choices)})")
    # The authors' own words, which a passive model is asked with.
    extra = {"prompt": item["prompt"]} if isinstance(item.get("prompt"), str) else {}
    return image.lstrip("/"), Reference(tuple(choices), emotion=truth, strata=(subset,), extra=extra)
