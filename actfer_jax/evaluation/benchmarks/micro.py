"""Micro-expressions: UF1 and UAR, pooled over all subjects, and for each data set of a composite (MEGC 2019).

UF1 is the mean of the classes' F1, UAR the mean of their recalls. Both come from the counts of all clips together, also
where each subject was tested on a policy of its own (leaving one subject out). The reference code leaves a class out
that neither occurs nor is answered, without a word; `Config.absent_class` says what is done here. Intervals resample
subjects.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from matplotlib.figure import Figure

from actfer_jax.config import one_of
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import BenchmarkConfig, Published
from actfer_jax.evaluation.bootstrap import Floats, bootstrap, interval, nanmean, value
from actfer_jax.evaluation.items import Interval
from actfer_jax.evaluation.metrics import INVALID, Outcome, Summary, class_scores, confusion_counts
from actfer_jax.evaluation.tables import align, percent, percent_with_interval

log = logging.getLogger(__name__)

FIGURES = ("confusion",)
POOLS_RUNS = True
_LOSO = "composite, one subject left out"
PUBLISHED = (Published("SOFP", {"uf1": 0.9284, "uar": 0.9293}, _LOSO, "github.com/Healer-ML/MER", tools="none"),)


@dataclass(frozen=True)
class Config(BenchmarkConfig):
    """Its constants.

    Attributes:
      absent_class: a class that no clip is of has no recall, and no F1 if no answer names it either: it is "left_out"
        of that mean, with a warning; or it counts as "zero".
    """

    absent_class: Annotated[str, one_of("left_out", "zero")] = "left_out"


def measure(outcomes: Sequence[Outcome], *, config: Config, seed: int) -> Summary:
    """
    Returns:
      As `_figures` for all clips, and as `sets` for those of each stratum; accuracy; resampled ("subjects" or
      "samples"); confusion, as in `metrics.summarise`.
    """
    known = [one for one in outcomes if one.emotion is not None]
    labels = list(dict.fromkeys(label for one in known for label in one.labels))
    strata = sorted(set().union(*(one.strata for one in known)))
    drawn = bootstrap([one.subject for one in known], seed=seed)
    counts_SxCxK = confusion_counts(drawn, known, labels)
    whole = _figures(known, labels, config, seed)
    if whole["absent"]:
        log.warning("no clip is of the class %s (benchmark.absent_class)", " or ".join(whole["absent"]))
    return {
        **whole,
        "sets": {name: _figures([one for one in known if name in one.strata], labels, config, seed) for name in strata},
        "accuracy": interval(drawn.mean([one.correct for one in known], np.ones(len(known), bool))),
        "resampled": drawn.resampled,
        "confusion": {
            "labels": labels,
            "columns": [*labels, INVALID],
            "counts": counts_SxCxK[0].astype(int).tolist(),
        },
    }


def _figures(clips: Sequence[Outcome], labels: Sequence[str], config: Config, seed: int) -> Summary:
    """clips, subjects; uf1 and uar, with intervals; classes, for each clips, f1 and recall; and absent, the classes of
    which there is no clip."""
    drawn = bootstrap([one.subject for one in clips], seed=seed)
    counts_SxCxK = confusion_counts(drawn, clips, labels)
    _, recall_SxC, f1_SxC = class_scores(counts_SxCxK)
    clips_C = counts_SxCxK[0].sum(-1).astype(int)
    return {
        "clips": len(clips),
        "subjects": len({one.subject for one in clips if one.subject}),
        "uf1": interval(_mean(f1_SxC, config)),
        "uar": interval(_mean(recall_SxC, config)),
        "classes": {
            label: {"clips": int(clips_C[c]), "f1": value(f1_SxC[:, c]), "recall": value(recall_SxC[:, c])}
            for c, label in enumerate(labels)
        },
        "absent": [label for label, there in zip(labels, clips_C, strict=True) if not there],
    }


def _mean(values_SxC: Floats, config: Config) -> Floats:
    if config.absent_class == "zero" and values_SxC.shape[1]:
        return np.nan_to_num(values_SxC).mean(1)
    return nanmean(values_SxC)


def row(summary: Summary) -> dict[str, Interval]:
    parts = {"": summary} | {f"{name}_": part for name, part in summary["sets"].items()}
    return {f"{prefix}{key}": part[key] for prefix, part in parts.items() for key in ("uf1", "uar")}


def report(summaries: Mapping[str, Summary]) -> str:
    rows, absent = [["control", "clips of", "clips", "subjects", "UF1", "UAR"]], dict[str, list[str]]()
    for control, summary in summaries.items():
        for name, part in {"all": summary, **summary["sets"]}.items():
            scores = map(percent_with_interval, (part["uf1"], part["uar"]))
            cells = [name, str(part["clips"]), str(part["subjects"]), *scores]
            rows.append([control if name == "all" else "", *cells])
            if part["absent"]:
                absent[name] = part["absent"]
    drawn = " or ".join(sorted({summary["resampled"] for summary in summaries.values()}))
    notes = [f"In percent; ± is half of the 95% interval over resampled {drawn}."]
    notes += [
        f"No clip{'' if name == 'all' else f' of {name}'} is {' or '.join(labels)}." for name, labels in absent.items()
    ]
    published = [["published, not measured here", "on", "UF1", "UAR", "source"]]
    for one in PUBLISHED:
        published.append([one.model, one.data, *map(percent, one.figures.values()), one.source])
    return "\n".join([align(rows, left=2), "", *notes, "", align(published, left=2)])


def figures(summaries: Mapping[str, Summary]) -> Sequence[Figure]:
    first = next(iter(summaries.values()))
    return [plots.confusion_figure(first)]
