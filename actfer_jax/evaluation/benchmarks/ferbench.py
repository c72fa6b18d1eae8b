"""FERBench: accuracy and macro-F1 for each of its four subsets and pooled (`evaluation.ferbench`, arXiv 2511.00389).

Responses are read by the rules of the protocol: those of any model from a file, and the last turns of played episodes.
The subset of a played sample is its stratum of that name.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from matplotlib.figure import Figure

from actfer_jax import facs
from actfer_jax.config import one_of
from actfer_jax.errors import UserError
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import BenchmarkConfig, Published
from actfer_jax.evaluation.ferbench import (
    PROTOCOLS,
    SUBSETS,
    UNKNOWN,
    Item,
    read_answer,
    subset_named,
    subset_of,
    summarise,
)
from actfer_jax.evaluation.items import Answer, Interval, Prediction
from actfer_jax.evaluation.metrics import Outcome, Summary, zoom_pitch
from actfer_jax.evaluation.tables import align

FIGURES = ("confusion",)
COUNTS_FAILED = True
HUB_DATASET = "Karl28/UniFER"
_DATA = "ferbench reference"
PUBLISHED = (
    Published("ActFER (4B)", {"accuracy": 0.7389, "macro_f1": 0.6745}, _DATA, "arXiv 2604.08990", tools="InsightFace"),
    Published("UniFER-7B", {"accuracy": 0.6884}, _DATA, "arXiv 2511.00389", tools="none"),
)

_SHOWN = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


@dataclass(frozen=True)
class Config(BenchmarkConfig):
    """Its constants.

    Attributes:
      protocol: "reference", "reference_sfew_own" or "strict".
    """

    protocol: Annotated[str, one_of(*PROTOCOLS)] = "reference"


def measure(outcomes: Sequence[Outcome], *, config: Config, seed: int) -> Summary:
    """As `summarise`, and for each part zoom_rate (the share of the episodes that inspected) and zoom_pitch."""
    items, parts = [], defaultdict[str, list[Outcome]](list)
    for one in outcomes:
        if one.emotion is not None:
            subset = next((name for name in one.strata if name in SUBSETS), "")
            answer = read_answer(one.response, one.choices, subset, config.protocol)
            items.append(Item(subset, one.emotion, facs.normalise_emotion(answer), one.failed))
            parts[subset].append(one)
    summary = summarise(items, config.protocol, seed=seed)
    for name, part in summary["subsets"].items():
        part |= _zooms(parts[name])
    summary["overall"] |= _zooms([one for part in parts.values() for one in part])
    return summary


def measure_predictions(predictions: Sequence[Prediction], *, config: Config, seed: int) -> Summary:
    """As `measure`, with `protocols` (the overall figures by protocol) and `repeated` (items beyond a picture's first).

    Raises:
      UserError: an item's subset is unknown; the message says where.
    """
    subsets = [_subset(prediction) for prediction in predictions]
    by_protocol = {
        protocol: summarise(
            [
                Item(subset, one.true_label, _read(one, subset, protocol), one.failed)
                for one, subset in zip(predictions, subsets, strict=True)
            ],
            protocol,
            seed=seed,
        )
        for protocol in PROTOCOLS
    }
    pictures = {(subset, one.image_path) for one, subset in zip(predictions, subsets, strict=True)}
    return {
        **by_protocol[config.protocol],
        "protocols": {
            protocol: {figure: summary["overall"][figure] for figure in ("accuracy", "macro_f1")}
            for protocol, summary in by_protocol.items()
        },
        "repeated": len(predictions) - len(pictures),
    }


def read_answers(predictions: Sequence[Prediction], *, config: Config) -> list[Answer]:
    """The predictions that count, in their order, named as the data set names its samples."""
    answers, times = [], Counter[str]()
    for one in predictions:
        subset, name = _subset(one), one.image_path.lstrip("/")
        times[name] += 1
        name += f"#{times[name]}" if times[name] > 1 else ""
        labels, truth, text = _labels(one, subset), one.true_label, one.response
        answers.append(Answer("ferbench", name, labels, truth, None, text, strata=(subset,), failed=one.failed))
    return [read for answer in answers if (read := reread(answer, config)) is not None]


def reread(answer: Answer, config: Config) -> Answer | None:
    if answer.failed:
        return replace(answer, predicted=None) if config.protocol == "strict" else None
    subset = next((name for name in answer.strata if name in SUBSETS), "")
    read = read_answer(answer.response, answer.labels, subset, config.protocol)
    return replace(answer, predicted=read if read in answer.labels else None)


def row(summary: Summary) -> dict[str, Interval]:
    parts = {"": summary["overall"]} | {f"{name}_": part for name, part in summary["subsets"].items()}
    return {
        f"{prefix}{key}": dict(zip(("value", "low", "high"), (part[key], *part[f"{key}_interval"]), strict=True))
        for prefix, part in parts.items()
        for key in _SHOWN
    }


def report(summaries: Mapping[str, Summary]) -> str:
    rows = [["", "subset", "n", "official", "errors", "unknown", "accuracy", "macro-F1", "zoom rate", "zoom pitch"]]
    notes = []
    for title, summary in summaries.items():
        for name, part in {**summary["subsets"], "overall": summary["overall"]}.items():
            counts = [str(part[key]) for key in ("n", "official", "errors", "unknown")]
            zooms = (part.get(key) for key in ("zoom_rate", "zoom_pitch"))  # Predictions have none.
            zoomed = ("-" if number is None else f"{number:.2f}" for number in zooms)
            rows.append([title, name, *counts, _cell(part, "accuracy"), _cell(part, "macro_f1"), *zoomed])
            title = ""
        if "protocols" in summary:
            moves = (_moved(summary["protocols"], key, text) for key, text in _SHOWN.items())
            notes.append(f"The scorer alone, on the same responses, moves {' and '.join(moves)}.")
        if summary.get("repeated"):
            notes.append(f"{summary['repeated']} items repeat a picture of their subset; each was counted.")
    return "\n".join([align(rows, left=2), *([""] if notes else []), *notes])


def figures(summaries: Mapping[str, Summary]) -> Sequence[Figure]:
    overall = next(iter(summaries.values()))["overall"]
    return [plots.confusion_figure({**overall, "accuracy": {"value": overall["accuracy"]}})]


def _zooms(outcomes: Sequence[Outcome]) -> Summary:
    counted = [one for one in outcomes if not one.failed]
    rate = sum(one.inspected for one in counted) / len(counted) if counted else None
    return {"zoom_rate": rate, "zoom_pitch": zoom_pitch(counted)}


def _subset(prediction: Prediction) -> str:
    if prediction.subset is None:
        found = subset_of(prediction.image_path, prediction.candidate_labels)
        problem = "neither a folder in image_path nor candidate_labels tells the subset; add subset,"
    else:
        found = subset_named(prediction.subset)
        problem = f"subset is {prediction.subset!r}; it must be"
    if found is None:
        raise UserError(f"{prediction.place}: {problem} one of {', '.join(SUBSETS)}")
    return found


def _labels(prediction: Prediction, subset: str) -> tuple[str, ...]:
    """The labels that the prompt offered: those of the file, or else the subset's."""
    if prediction.candidate_labels:
        return prediction.candidate_labels
    labels = SUBSETS[subset].labels
    if prediction.true_label not in labels:
        raise UserError(
            f"{prediction.place}: the true label is {prediction.true_label!r}, none of {subset}'s ({', '.join(labels)})"
        )
    return labels


def _read(prediction: Prediction, subset: str, protocol: str) -> str:
    if prediction.failed:
        return UNKNOWN
    return read_answer(prediction.response, _labels(prediction, subset), subset, protocol)


def _cell(part: Summary, key: str) -> str:
    low, high = part[f"{key}_interval"]
    return "-" if part[key] is None else f"{part[key]:.4f} ±{(high - low) / 2:.4f}"


def _moved(protocols: Mapping[str, Summary], key: str, name: str) -> str:
    by_value = {protocol: figures[key] for protocol, figures in protocols.items() if figures[key] is not None}
    if not by_value:
        return f"no {name}"
    if len(set(by_value.values())) == 1:
        return f"{name} by nothing"
    low, high = min(by_value, key=by_value.__getitem__), max(by_value, key=by_value.__getitem__)
    return (
        f"{name} by {100 * (by_value[high] - by_value[low]):.2f} points"
        f" ({low} {by_value[low]:.4f}, {high} {by_value[high]:.4f})"
    )
