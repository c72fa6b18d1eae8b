"""F1 of each action unit over pictures, and its mean, by both conventions in use, for the benchmarks of action units.

Models that were not trained on a data set are measured on all of its pictures together. Papers that train on it count
each fold by itself, and average the folds. An action unit that is never found has F1 0, also where it never occurs.
Intervals resample subjects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import Published
from actfer_jax.evaluation.bootstrap import Bootstrap, Floats, bootstrap, interval
from actfer_jax.evaluation.metrics import Outcome, Summary, au_counts, au_entries
from actfer_jax.evaluation.tables import align, percent, percent_with_interval, published_table

FIGURES = ("aus",)
ALL_FRAMES, MEAN_OF_FOLDS = "all frames", "mean of folds"
"""What `f1` and `f1_folds` are measured on."""


@dataclass(frozen=True)
class ActionUnits:
    """A benchmark of action units: its methods are the functions of `evaluation.benchmarks.Benchmark`.

    Attributes:
      aus: those whose F1 is averaged.
      published: rows of papers, each with one figure.
      folds: the subjects by fold; empty where the data set has no folds.
    """

    aus: tuple[int, ...]
    published: tuple[Published, ...]
    folds: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def measure(self, outcomes: Sequence[Outcome], *, config: Any, seed: int) -> Summary:
        """
        Returns:
          frames (those with known action units), subjects; resampled ("subjects" or "samples"); f1 (mean over `aus`,
          all frames together), {"value", "low", "high"}; aus: for each name, true_positives, false_positives,
          false_negatives, f1; no_answer, zoom_rate. With folds also f1_folds (mean of the folds; None unless all are
          there), and folds: for each that occurs, frames, f1, aus (the F1 of each).
        """
        known = [one for one in outcomes if one.aus is not None]
        drawn = bootstrap([one.subject for one in known], seed=seed)
        counts_3xSxA = au_counts(drawn, known, self.aus)
        f1_SxA = _f1(*counts_3xSxA)
        return {
            "frames": len(known),
            "subjects": len({one.subject for one in known if one.subject}),
            "resampled": drawn.resampled,
            "f1": interval(f1_SxA.mean(1) if known else np.full(1, np.nan)),
            "aus": au_entries(self.aus, counts_3xSxA, f1_SxA),
            **(self._by_fold(drawn, known) if self.folds else {}),
            "no_answer": float(np.mean([not one.answered for one in outcomes])),
            "zoom_rate": float(np.mean([one.inspected for one in outcomes])),
        }

    def _by_fold(self, drawn: Bootstrap, known: Sequence[Outcome]) -> Summary:
        by_fold = {}
        means_FxS = []
        for fold, subjects in self.folds.items():
            inside_N = np.array([one.subject in subjects for one in known], bool)
            frames_S, f1_SxA = drawn.total(inside_N), _f1(*au_counts(drawn, known, self.aus, where_N=inside_N))
            means_FxS.append(np.where(frames_S > 0, f1_SxA.mean(1), np.nan))
            if inside_N.any():
                by_fold[str(fold)] = {
                    "frames": int(inside_N.sum()),
                    "f1": float(f1_SxA[0].mean()),
                    "aus": {f"AU{au}": float(f1) for au, f1 in zip(self.aus, f1_SxA[0], strict=True)},
                }
        return {"f1_folds": interval(np.mean(means_FxS, 0)), "folds": by_fold}

    def report(self, summaries: Mapping[str, Summary]) -> str:
        rows = [["control", "measured on", "frames", *(f"AU{au}" for au in self.aus), "mean"]]
        for control, summary in summaries.items():
            f1s = [entry["f1"] for entry in summary["aus"].values()]
            mean = percent_with_interval(summary["f1"])
            rows.append([control, ALL_FRAMES, str(summary["frames"]), *map(percent, f1s), mean])
            folds = summary.get("folds", {})
            for fold, part in folds.items():
                f1s = list(part["aus"].values())
                rows.append(["", f"fold {fold}", str(part["frames"]), *map(percent, f1s), percent(part["f1"])])
            if folds and len(folds) == len(self.folds):
                f1s = [float(np.mean([part["aus"][f"AU{au}"] for part in folds.values()])) for au in self.aus]
                rows.append(["", MEAN_OF_FOLDS, "", *map(percent, f1s), percent_with_interval(summary["f1_folds"])])
        drawn = " or ".join(sorted({summary["resampled"] for summary in summaries.values()}))
        note = f"F1 in percent; ± is half of the 95% interval over resampled {drawn}."
        return f"{align(rows, left=2)}\n\n{note}\n\n{published_table(self.published)}"

    def figures(self, summaries: Mapping[str, Summary]) -> Sequence[Figure]:
        """One for each of `FIGURES`."""
        return [plots.aus_figure(summaries)]


def _f1(true: Floats, false: Floats, missed: Floats) -> Floats:
    bottom = 2 * true + false + missed
    return np.divide(2 * true, bottom, out=np.zeros_like(bottom), where=bottom > 0)
