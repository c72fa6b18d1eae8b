"""DISFA: F1 of each of 8 action units over frames, and its mean, by both conventions in use.

Models that were not trained on DISFA are measured on all of its frames together. Papers that train on it count each of
the three folds by itself, and average the three. An action unit that is never found has F1 0, also where it never
occurs. Intervals resample subjects.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from actfer_jax import facs
from actfer_jax.data.datasets.disfa import EVALUATED, FOLDS, fold_of
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import BenchmarkConfig as Config
from actfer_jax.evaluation.benchmarks import Published
from actfer_jax.evaluation.bootstrap import Floats, bootstrap, interval, value
from actfer_jax.evaluation.metrics import Outcome, Summary, au_counts
from actfer_jax.evaluation.tables import align

__all__ = ["AUS", "FIGURES", "PUBLISHED", "Config", "figures", "measure", "report"]

FIGURES = ("aus",)


_ALL, _FOLDS = "all frames", "mean of folds"
_ACTFER, _UNTRAINED = "arXiv 2604.08990", "not trained on DISFA"
PUBLISHED = (
    Published("ActFER", {"f1": 0.582}, _ALL, f"{_ACTFER}, {_UNTRAINED}", tools="InsightFace"),
    Published("FEALLM", {"f1": 0.426}, _ALL, f"{_ACTFER}, {_UNTRAINED}", tools="none"),
    Published("Qwen3-VL-4B", {"f1": 0.381}, _ALL, f"{_ACTFER}, {_UNTRAINED}: what ActFER begins with", tools="none"),
    Published("EmoLA", {"f1_folds": 0.651}, _FOLDS, "arXiv 2511.10254", tools="none"),
    Published("ME-GraphAU, ResNet-50", {"f1_folds": 0.631}, _FOLDS, "its public code", tools="none"),
    Published("JAA-Net", {"f1_folds": 0.56}, _FOLDS, "arXiv 2511.10254", tools="none"),
)
AUS = EVALUATED


def measure(outcomes: Sequence[Outcome], *, config: Config, seed: int) -> Summary:
    """
    Returns:
      frames (those with known action units), subjects; resampled ("subjects" or "samples"); f1 (mean over the 8, all
      frames together) and f1_folds (mean of the three folds; None unless all are there), each {"value", "low", "high"};
      aus: for each name, true_positives, false_positives, false_negatives, f1; folds: for each that occurs, frames, f1,
      aus (the F1 of each); no_answer, zoom_rate.
    """
    known = [one for one in outcomes if one.aus is not None]
    drawn = bootstrap([one.subject for one in known], seed=seed)
    counts_3xSxA = au_counts(drawn, known, EVALUATED)
    f1_SxA = _f1(*counts_3xSxA)
    by_fold = {}
    means_FxS = []
    for fold in FOLDS:
        inside_N = np.array([fold_of(one.subject) == fold for one in known], bool)
        of_fold = au_counts(drawn, known, EVALUATED, where_N=inside_N)
        frames_S, fold_f1_SxA = drawn.total(inside_N), _f1(*of_fold)
        means_FxS.append(np.where(frames_S > 0, fold_f1_SxA.mean(1), np.nan))
        if inside_N.any():
            by_fold[str(fold)] = {
                "frames": int(inside_N.sum()),
                "f1": float(fold_f1_SxA[0].mean()),
                "aus": {f"AU{au}": float(f1) for au, f1 in zip(EVALUATED, fold_f1_SxA[0], strict=True)},
            }
    return {
        "frames": len(known),
        "subjects": len({one.subject for one in known if one.subject}),
        "resampled": drawn.resampled,
        "f1": interval(f1_SxA.mean(1) if known else np.full(1, np.nan)),
        "f1_folds": interval(np.mean(means_FxS, 0)),
        "aus": {
            f"AU{au}": {
                "name": facs.AU_NAMES[au],
                **{
                    name: int(counts_SxA[0, a])
                    for name, counts_SxA in zip(
                        ("true_positives", "false_positives", "false_negatives"), counts_3xSxA, strict=True
                    )
                },
                "f1": value(f1_SxA[:, a]),
            }
            for a, au in enumerate(EVALUATED)
        },
        "folds": by_fold,
        "no_answer": float(np.mean([not one.answered for one in outcomes])),
        "zoom_rate": float(np.mean([one.inspected for one in outcomes])),
    }


def report(summaries: Mapping[str, Summary]) -> str:
    rows = [["control", "measured on", "frames", *(f"AU{au}" for au in EVALUATED), "mean"]]
    for control, summary in summaries.items():
        f1s = [entry["f1"] for entry in summary["aus"].values()]
        rows.append([control, _ALL, str(summary["frames"]), *map(_percent, f1s), _with_interval(summary["f1"])])
        folds = summary["folds"]
        for fold, part in folds.items():
            f1s = list(part["aus"].values())
            rows.append(["", f"fold {fold}", str(part["frames"]), *map(_percent, f1s), _percent(part["f1"])])
        if len(folds) == len(FOLDS):
            f1s = [float(np.mean([part["aus"][f"AU{au}"] for part in folds.values()])) for au in EVALUATED]
            rows.append(["", _FOLDS, "", *map(_percent, f1s), _with_interval(summary["f1_folds"])])
    published = [["published, not measured here", "on", "mean", "tools (here: dlib)", "source"]]
    for one in PUBLISHED:
        (mean,) = one.figures.values()
        published.append([one.model, one.data, _percent(mean), one.tools, one.source])
    drawn = " or ".join(sorted({summary["resampled"] for summary in summaries.values()}))
    note = f"F1 in percent; ± is half of the 95% interval over resampled {drawn}."
    return f"{align(rows, left=2)}\n\n{note}\n\n{align(published, left=5)}"


def figures(summaries: Mapping[str, Summary]) -> Sequence[Figure]:
    return [plots.aus_figure(summaries)]


def _f1(true: Floats, false: Floats, missed: Floats) -> Floats:
    bottom = 2 * true + false + missed
    return np.divide(2 * true, bottom, out=np.zeros_like(bottom), where=bottom > 0)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _with_interval(figure: Mapping[str, float | None]) -> str:
    low, high = figure["low"], figure["high"]
    half = "" if low is None or high is None else f" ±{50 * (high - low):.1f}"
    return _percent(figure["value"]) + half
