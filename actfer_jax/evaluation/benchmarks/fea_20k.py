"""FEA-20K: accuracy, F1 of action units and ROUGE-L by the rules of its authors (Facial-R1, arXiv 2511.10254).

The label is the first word of the answer, and must be the true one to the letter. Action units are those that the
thought names as AU4; what no item of a source has is ignored in that source. F1 is over all action units together
("micro"), and the mean of each that occurs ("macro"). ROUGE-L, with stemming, compares the whole response with the
description. Without tags, the whole response is the answer and the thought. A response is the last turn of an episode.

Shapes: N outcomes, A action units, S the figure itself and its resamples.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from actfer_jax.config import FieldError, one_of
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.action_units import FIGURES
from actfer_jax.evaluation.benchmarks import BenchmarkConfig, Published
from actfer_jax.evaluation.bootstrap import Floats, bootstrap, interval, nanmean, ratio
from actfer_jax.evaluation.items import Answer
from actfer_jax.evaluation.metrics import Outcome, Summary, au_counts, au_entries
from actfer_jax.evaluation.tables import align, percent_with_interval, published_table

__all__ = ["FIGURES", "PUBLISHED", "Config", "figures", "measure", "report", "reread"]

_PAPER = "arXiv 2511.10254"
PUBLISHED = tuple(
    Published(model, {"rouge_l": rouge_l}, "fea_20k test, ROUGE-L", _PAPER, tools="none")
    for model, rouge_l in (
        ("Facial-R1", 0.373),
        ("GPT-4o", 0.323),
        ("EmoLA", 0.301),
        ("Shikra", 0.297),
        ("Qwen2.5-VL", 0.280),
    )
)
_ALL = "all"
_SHOWN = {"accuracy": "accuracy", "au_micro_f1": "AU micro-F1", "au_macro_f1": "AU macro-F1", "rouge_l": "ROUGE-L"}


@dataclass(frozen=True)
class Config(BenchmarkConfig):
    """Its constants.

    Attributes:
      aus_in: where a response names action units: in the "think" part, as the authors read it, or in the "aus" part of
        the answer, which the grammar of this package asks for and theirs does not have.
    """

    aus_in: Annotated[str, one_of("think", "aus")] = "think"

    def __post_init__(self) -> None:
        super().__post_init__()
        if find_spec("rouge_score") is None:
            raise FieldError(
                "name", f"is {self.name!r}, which needs the package rouge-score: pip install 'actfer_jax[rouge]'"
            )


def measure(outcomes: Sequence[Outcome], *, config: Config, seed: int) -> Summary:
    """
    Returns:
      items, labelled, described (how many have a label, a description), resampled; accuracy, au_micro_f1, au_macro_f1
      and rouge_l, each {"value", "low", "high"}, None where no item has what it takes; aus: for each name of an action
      unit, its counts and f1; strata: for each source episodes and these four figures; no_answer, zoom_rate.
    """
    drawn = bootstrap([one.subject for one in outcomes], seed=seed)
    labelled_N = np.array([one.emotion is not None for one in outcomes])
    correct_N = np.array([one.emotion is not None and _label(one.response) == one.emotion for one in outcomes])
    descriptions = [str(one.extra.get("description", "")) for one in outcomes]
    described_N = np.array([bool(text) for text in descriptions])
    rouge_N = np.array(_rouge_l((one.response for one in outcomes), descriptions))
    read = _read(outcomes, config.aus_in)
    aus = sorted(frozenset[int]().union(*(one.aus or () for one in read)))

    def scores(where_N: NDArray[np.bool_]) -> dict[str, dict[str, float | None]]:
        counts_3xSxA = au_counts(drawn, read, aus, where_N)
        return {
            "accuracy": interval(drawn.mean(correct_N, labelled_N & where_N)),
            "au_micro_f1": interval(_f1(*(counts_SxA.sum(1) for counts_SxA in counts_3xSxA))),
            "au_macro_f1": interval(nanmean(_f1(*counts_3xSxA))),
            "rouge_l": interval(drawn.mean(rouge_N, described_N & where_N)),
        }

    everywhere_N = np.ones(len(outcomes), bool)
    sources = np.array([_source(one) for one in outcomes])
    counts_3xSxA = au_counts(drawn.without_resamples, read, aus)
    return {
        "items": len(outcomes),
        "labelled": int(labelled_N.sum()),
        "described": int(described_N.sum()),
        "resampled": drawn.resampled,
        **scores(everywhere_N),
        "aus": au_entries(aus, counts_3xSxA, _f1(*counts_3xSxA)),
        "strata": {
            source: {"episodes": int((sources == source).sum()), **scores(sources == source)}
            for source in sorted({*sources} - {""})
        },
        "no_answer": float(np.mean([not one.answered for one in outcomes])),
        "zoom_rate": float(np.mean([one.inspected for one in outcomes])),
    }


def reread(answer: Answer, config: Config) -> Answer | None:
    if answer.failed:
        return None
    label = _label(answer.response)
    named = answer.predicted_aus if config.aus_in == "aus" else _named(answer.response)
    return replace(answer, predicted=label if label in answer.labels else None, predicted_aus=named)


def report(summaries: Mapping[str, Summary]) -> str:
    rows = [["control", "source", "n", *_SHOWN.values()]]
    for control, summary in summaries.items():
        for title, source, count, found in (
            (control, _ALL, summary["items"], summary),
            *(("", name, part["episodes"], part) for name, part in summary["strata"].items()),
        ):
            rows.append([title, source, str(count), *(percent_with_interval(found[key]) for key in _SHOWN)])
    note = "In percent; ± is half of the 95% interval."
    return f"{align(rows, left=2)}\n\n{note}\n\n{published_table(PUBLISHED)}"


def figures(summaries: Mapping[str, Summary]) -> Sequence[Figure]:
    return [plots.aus_figure(summaries)]


def _f1(true: Floats, false: Floats, missed: Floats) -> Floats:
    """NaN where nothing is there to be found."""
    return np.where(true + missed > 0, ratio(2 * true, 2 * true + false + missed), np.nan)


def _label(response: str) -> str:
    """The first word of the answer; "" where there is none."""
    found = re.search(r"<answer>(.*?)</answer>", response, re.DOTALL)
    words = re.split(r"[,;，；\s]+", (found[1] if found else response).strip())
    return next(filter(None, words), "")


def _named(response: str) -> frozenset[int]:
    """The action units that the thought names."""
    found = re.search(r"<think>(.*?)</think>", response, re.DOTALL)
    return frozenset(int(number) for number in re.findall(r"AU(\d+)", found[1] if found else response))


def _source(one: Outcome) -> str:
    return one.strata[0] if one.strata else ""


def _read(outcomes: Sequence[Outcome], aus_in: str) -> list[Outcome]:
    """The outcomes with the action units that they count as having and naming: also true ones that no answer of ours
    can name, and no named ones that none of their source has."""
    true = [None if one.aus is None else one.aus | {*one.extra.get("other_aus", ())} for one in outcomes]
    by_source = defaultdict[str, set[int]](set)
    for one, aus in zip(outcomes, true, strict=True):
        by_source[_source(one)] |= aus or set()
    named = [one.predicted_aus or frozenset() if aus_in == "aus" else _named(one.response) for one in outcomes]
    return [
        replace(one, aus=aus, predicted_aus=there & by_source[_source(one)])
        for one, aus, there in zip(outcomes, true, named, strict=True)
    ]


def _rouge_l(responses: Iterable[str], descriptions: Sequence[str]) -> list[float]:
    """The F-measures of ROUGE-L with stemming."""
    from rouge_score.rouge_scorer import RougeScorer  # Slow to import, and not needed for anything else.

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        scorer.score(description, response)["rougeL"].fmeasure
        for response, description in zip(responses, descriptions, strict=True)
    ]
