"""FEA-20K: accuracy, F1 of action units and ROUGE-L by the rules of its authors (Facial-R1, arXiv 2511.10254).

The label is the first word of the answer, and must be the true one to the letter. Action units are those that the
thought names as AU4; what no item of a source has is ignored in that source. F1 is over all action units together
("micro"), and the mean of each that occurs ("macro"). ROUGE-L, with stemming, compares the whole response with the
description. Without tags, the whole response is the answer and the thought. A response is the last turn of an episode.

Shapes: N outcomes, A action units, S the figure itself and its resamples.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from actfer_jax import facs
from actfer_jax.config import FieldError, one_of
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.action_units import FIGURES
from actfer_jax.evaluation.benchmarks import BenchmarkConfig, Published
from actfer_jax.evaluation.bootstrap import Bootstrap, bootstrap, interval, nanmean, ratio
from actfer_jax.evaluation.items import Answer
from actfer_jax.evaluation.metrics import Outcome, Summary
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
    aus, true_NxA, named_NxA = _action_units(outcomes, config.aus_in)

    def figures(where_N: NDArray[np.bool_]) -> dict[str, dict[str, float | None]]:
        hits, wrong, missed = _counts(drawn, true_NxA, named_NxA, where_N)
        f1_SxA = np.where(hits + missed > 0, ratio(2 * hits, 2 * hits + wrong + missed), np.nan)
        total_hits, total_others = hits.sum(1), (wrong + missed).sum(1)
        return {
            "accuracy": interval(drawn.mean(correct_N, labelled_N & where_N)),
            "au_micro_f1": interval(ratio(2 * total_hits, 2 * total_hits + total_others)),
            "au_macro_f1": interval(nanmean(f1_SxA)),
            "rouge_l": interval(drawn.mean(rouge_N, described_N & where_N)),
        }

    everywhere_N = np.ones(len(outcomes), bool)
    sources = np.array([_source(one) for one in outcomes])
    hits, wrong, missed = _counts(drawn.without_resamples, true_NxA, named_NxA, everywhere_N)
    return {
        "items": len(outcomes),
        "labelled": int(labelled_N.sum()),
        "described": int(described_N.sum()),
        "resampled": drawn.resampled,
        **figures(everywhere_N),
        "aus": {
            f"AU{au}": {
                "name": facs.AU_NAMES.get(au, ""),
                "true_positives": int(hits[0, a]),
                "false_positives": int(wrong[0, a]),
                "false_negatives": int(missed[0, a]),
                "f1": float(2 * hits[0, a] / (2 * hits[0, a] + wrong[0, a] + missed[0, a])),
            }
            for a, au in enumerate(aus)
        },
        "strata": {
            source: {"episodes": int((sources == source).sum()), **figures(sources == source)}
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


def _action_units(outcomes: Sequence[Outcome], aus_in: str) -> tuple[list[int], NDArray[np.bool_], NDArray[np.bool_]]:
    """The action units that occur, and which each item has, and is answered to have, bool [N, A] each. What no item of
    a source has is answered in none of its items."""
    true = [frozenset[int]() if one.aus is None else one.aus | {*one.extra.get("other_aus", ())} for one in outcomes]
    by_source = dict[str, frozenset[int]]()
    for one, there in zip(outcomes, true, strict=True):
        by_source[_source(one)] = by_source.get(_source(one), frozenset()) | there
    named = [
        ((one.predicted_aus or frozenset()) if aus_in == "aus" else _named(one.response)) & by_source[_source(one)]
        if one.aus is not None
        else frozenset[int]()
        for one in outcomes
    ]
    aus = sorted(frozenset[int]().union(*true))

    def table(sets: Iterable[frozenset[int]]) -> NDArray[np.bool_]:
        return np.array([[au in there for au in aus] for there in sets], bool).reshape(len(outcomes), len(aus))

    return aus, table(true), table(named)


def _counts(
    drawn: Bootstrap, true_NxA: NDArray[np.bool_], named_NxA: NDArray[np.bool_], where_N: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], ...]:
    """True positives, false positives and false negatives of a part of the items, [S, A] each."""
    inside_Nx1 = where_N[:, None]
    return (
        drawn.total(true_NxA & named_NxA & inside_Nx1),
        drawn.total(named_NxA & ~true_NxA & inside_Nx1),
        drawn.total(true_NxA & ~named_NxA & inside_Nx1),
    )


def _rouge_l(responses: Iterable[str], descriptions: Sequence[str]) -> list[float]:
    """The F-measures of ROUGE-L with stemming."""
    from rouge_score.rouge_scorer import RougeScorer  # Slow to import, and not needed for anything else.

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        scorer.score(description, response)["rougeL"].fmeasure
        for response, description in zip(responses, descriptions, strict=True)
    ]
