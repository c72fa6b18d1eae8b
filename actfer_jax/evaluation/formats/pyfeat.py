"""py-feat's table (github.com/cosanlab/py-feat at 0b9d6ea): a row a picture, with `AU01`, ... and emotions in 0..1.

A policy names action units and one emotion, so that its numbers are 0 and 1; a row without an answer is empty, as
py-feat's is where it finds no face. Faces and landmarks are empty too. Columns of ours are `true_label`,
`candidate_labels` (";" between them), `true_aus` and `subset`. py-feat's own files can be scored after the first two
are added; the answer is the likeliest emotion.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from actfer_jax import facs
from actfer_jax.errors import UserError
from actfer_jax.evaluation.items import Answer, Prediction, checked_truth, text_of
from actfer_jax.evaluation.results import Results, subset

AUS = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26, 28, 43)
EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
_FACE = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore")
_LANDMARKS = tuple(f"{axis}_{point}" for axis in "xy" for point in range(68))
_POSE = ("Pitch", "Roll", "Yaw")


def write(results: Results, answers: Mapping[str, Sequence[Answer]]) -> dict[str, str]:
    return {f"{control}/{results.model}_fex.csv": _table(given) for control, given in answers.items()}


def _table(answers: Sequence[Answer]) -> str:
    named = (one.predicted_aus or frozenset() for one in answers)
    aus = sorted({*AUS, *(au for some in named for au in some)})
    answered = [_emotion(one) for one in answers]
    emotions = [*EMOTIONS, *sorted({emotion for emotion in answered if emotion} - {*EMOTIONS})]
    columns = [*_FACE, *_LANDMARKS, *(f"AU{au:02}" for au in aus), *_POSE, *emotions, "input", "frame"]
    text = io.StringIO()
    table = csv.DictWriter(
        text, [*columns, "true_label", "candidate_labels", "true_aus", "subset"], lineterminator="\n"
    )
    table.writeheader()
    for number, (one, emotion) in enumerate(zip(answers, answered, strict=True)):
        row: dict[str, Any] = {"input": one.name, "frame": number, "true_label": one.truth, "subset": subset(one)}
        row["candidate_labels"] = ";".join(one.labels)
        row["true_aus"] = "" if one.aus is None else " ".join(map(str, sorted(one.aus)))
        if one.predicted_aus is not None:
            row |= {f"AU{au:02}": float(au in one.predicted_aus) for au in aus}
        if emotion is not None:
            row |= {name: float(name == emotion) for name in emotions}
        table.writerow(row)
    return text.getvalue()


def _emotion(answer: Answer) -> str | None:
    return None if answer.predicted is None else facs.normalise_emotion(answer.predicted)


def prediction(item: Mapping[str, Any], name: str, place: str) -> Prediction:
    labels = tuple(label.strip() for label in (item.get("candidate_labels") or "").split(";") if label.strip())
    if not labels or not item.get("true_label"):
        raise UserError(
            f"{place}: add the columns true_label and candidate_labels (a;b;c), which py-feat does not know"
        )
    likelihoods = {label: _number(item, facs.normalise_emotion(label), place) for label in labels}
    known = {label: value for label, value in likelihoods.items() if value is not None}
    answer = max(known, key=known.__getitem__) if known else None
    return Prediction(
        place=place,
        image_path=text_of(item, "input", place),
        true_label=checked_truth(item, "true_label", labels, place),
        candidate_labels=labels,
        response="" if answer is None else f"<answer>{answer}</answer>",
        failed=False,
        subset=item.get("subset") or None,
    )


def _number(item: Mapping[str, Any], column: str, place: str) -> float | None:
    """A cell as a number; None where it is empty or the column is missing."""
    cell = (item.get(column) or "").strip()
    if cell in ("", "nan"):
        return None
    try:
        return float(cell)
    except ValueError as error:
        raise UserError(f"{place}: {column} is {cell!r}; it must be a number") from error
