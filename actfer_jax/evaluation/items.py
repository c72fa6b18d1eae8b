"""Items of an evaluation, one a picture: a model's response before it is read, and the answer that was read in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actfer_jax import facs
from actfer_jax.errors import UserError

NORMAL = "normal"
"""The name of the unchanged episodes, among those of the controls."""

Interval = dict[str, float | None]
"""A figure as value, low and high: itself, and its 95% interval."""


@dataclass(frozen=True)
class Prediction:
    """A model's response to one item.

    Attributes:
      place: file and line, for messages.
      candidate_labels: the labels that the prompt offered, in its order, the true label among them; () where the file
        does not say them.
      response: the model's last turn; "" where it failed without one.
      failed: whether the model failed on the item.
      subset: the item's part of the benchmark, if the file says it.
    """

    place: str
    image_path: str
    true_label: str
    candidate_labels: tuple[str, ...]
    response: str
    failed: bool
    subset: str | None


@dataclass(frozen=True)
class Answer:
    """The answer to one item, with what is known about it.

    Attributes:
      dataset, name: of the sample; the pair is unique in a run.
      labels: of the data set, in its own order and spelling.
      truth: the true label, one of `labels`; None if unknown.
      predicted: the answered label, one of `labels`; None without an answer, or with another one.
      response: the model's last turn.
      aus, predicted_aus: the true and the answered action units among the known ones; None if unknown or not answered.
      strata: of the sample.
      subject: whose face it is; "" if unknown.
      confidence: the probability that the model gave the answered label; None if unknown.
      failed: whether the model could not be asked, so that there is no answer of its.
    """

    dataset: str
    name: str
    labels: tuple[str, ...]
    truth: str | None
    predicted: str | None
    response: str
    aus: frozenset[int] | None = None
    predicted_aus: frozenset[int] | None = None
    strata: tuple[str, ...] = ()
    subject: str = ""
    confidence: float | None = None
    failed: bool = False

    @property
    def correct(self) -> bool:
        return self.predicted is not None and self.predicted == self.truth


def answer_of(record: Mapping[str, Any]) -> Answer:
    """The answer in an episode record (`episodes.record`)."""
    reference, prediction, turns = record["reference"], record["prediction"], record["turns"]
    known = reference["known_aus"]

    def among_known(aus: list[int] | None) -> frozenset[int] | None:
        return None if aus is None or known == [] else frozenset(aus if known is None else set(aus) & set(known))

    return Answer(
        dataset=record["dataset"],
        name=record["image"],
        labels=tuple(reference["labels"]),
        truth=_label(reference["emotion"], reference["labels"]),
        predicted=_label(prediction["emotion"], reference["labels"]),
        response=turns[-1]["text"] if turns else "",
        aus=among_known(reference["aus"]) if record.get("ask_aus", True) else None,
        predicted_aus=among_known(prediction["aus"]),
        strata=tuple(reference.get("strata", ())),
        subject=str(reference["extra"].get("subject", "")),
        confidence=record.get("confidence"),
        failed=bool(record.get("failure")),
    )


def _label(emotion: str | None, labels: list[str]) -> str | None:
    """The label that means an emotion, in the data set's spelling."""
    if emotion is None:
        return None
    meant = facs.normalise_emotion(emotion)
    return next((label for label in labels if facs.normalise_emotion(label) == meant), None)


def to_json(answer: Answer) -> dict[str, Any]:
    """An answer as a line of `answers.jsonl`, which `from_json` reads."""
    return {key: sorted(value) if isinstance(value, frozenset) else value for key, value in vars(answer).items()}


def from_json(line: Mapping[str, Any]) -> Answer:
    aus, predicted_aus = (None if line[key] is None else frozenset(line[key]) for key in ("aus", "predicted_aus"))
    tuples = {key: tuple(line[key]) for key in ("labels", "strata")}
    values: dict[str, Any] = {**line, **tuples, "aus": aus, "predicted_aus": predicted_aus}
    return Answer(**values)


def text_of(item: Mapping[str, Any], key: str, place: str) -> str:
    """A text in an item of a file.

    Raises:
      UserError: it is missing, or no text; the message says where.
    """
    found = item.get(key)
    if not isinstance(found, str):
        raise UserError(f"{place}: {key} is {'missing' if found is None else shown(found)}; it must be text")
    return found


def checked_truth(item: Mapping[str, Any], key: str, labels: tuple[str, ...], place: str) -> str:
    """The true label of an item, one of its labels unless these are not known.

    Raises:
      UserError: it is another one, or missing; the message says where.
    """
    truth = text_of(item, key, place)
    if labels and truth not in labels:
        raise UserError(f"{place}: {key} is {truth!r}, which is none of candidate_labels ({', '.join(labels)})")
    return truth


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
