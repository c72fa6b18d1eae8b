"""Tests between two runs on the same samples, in plain numpy.

Runs are compared by counts of units that are drawn or swapped as a whole: pictures that do not depend on each other, or
all frames of a subject. A figure is a function of pooled counts, so that it is always computed anew from the sum over
units, never averaged over them.

Shapes: U units, C the shape of a unit's counts, S resamples or swaps.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from actfer_jax.evaluation.bootstrap import RESAMPLES, bootstrap_weights, interval, nanmean, ratio
from actfer_jax.evaluation.items import Interval
from actfer_jax.evaluation.metrics import class_scores

Counts = NDArray[np.float64]
Figure = Callable[[Counts], NDArray[np.float64]]
"""From pooled counts [S, *C] to values [S]; NaN where it is not defined."""

SWAPS = 10_000


def mcnemar(first_N: NDArray[np.bool_], second_N: NDArray[np.bool_]) -> tuple[int, int, float]:
    """The exact test of McNemar, on pictures that do not depend on each other.

    Args:
      first_N, second_N: whether each picture was right in the one run and in the other.

    Returns:
      How many only the first had right, how many only the second, and the two-sided p.
    """
    only_first, only_second = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    total = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, total).pvalue) if total else 1.0


def bootstrap(first_UxC: Counts, second_UxC: Counts, figure: Figure, *, seed: int = 0) -> tuple[Interval, float]:
    """The difference of a figure between the runs, first minus second, on units resampled with replacement.

    Returns:
      The difference with its 95% interval, and a two-sided p: twice the share of resamples on the other side of 0. A
      single unit, which says nothing of others, has no interval, and p 1.
    """
    units = len(first_UxC)
    weights_SxU = bootstrap_weights(units, seed=seed, resamples=RESAMPLES if units > 1 else 0)
    differences_S = figure(np.tensordot(weights_SxU, first_UxC, 1)) - figure(np.tensordot(weights_SxU, second_UxC, 1))
    resampled = differences_S[1:][~np.isnan(differences_S[1:])]
    tail = min(np.sum(resampled <= 0), np.sum(resampled >= 0))
    return interval(differences_S), min(1.0, 2 * (1 + tail) / (1 + len(resampled)))


def sign_flips(first_UxC: Counts, second_UxC: Counts, figure: Figure, *, seed: int = 0, swaps: int = SWAPS) -> float:
    """The two-sided p of a figure's difference if the runs were alike, so that they could be swapped within each unit.

    Every way to swap is tried where there are at most `swaps`, else so many at random.
    """
    units = len(first_UxC)
    exact = 2**units <= swaps
    if exact:
        swapped_SxU = (np.arange(2**units)[:, None] >> np.arange(units)) & 1
    else:
        swapped_SxU = np.random.default_rng(seed).integers(0, 2, (swaps, units))
    first_C, second_C, change_UxC = first_UxC.sum(0), second_UxC.sum(0), second_UxC - first_UxC
    moved_SxC = np.tensordot(swapped_SxU.astype(float), change_UxC, 1)
    found = np.abs(figure(first_C[None]) - figure(second_C[None]))[0]
    as_large = np.abs(figure(first_C + moved_SxC) - figure(second_C - moved_SxC)) >= found - 1e-12
    return float(as_large.mean()) if exact else float((1 + as_large.sum()) / (1 + swaps))


def accuracy(counts_SxCxK: Counts) -> NDArray[np.float64]:
    """From counts of (truth, answer), the last column for answers that are no label."""
    size = counts_SxCxK.shape[1]
    return ratio(np.einsum("scc->s", counts_SxCxK[:, :, :size]), counts_SxCxK.sum((1, 2)))


def macro_f1(counts_SxCxK: Counts) -> NDArray[np.float64]:
    """The mean over the labels that occur in truth or answers, from the same counts."""
    return nanmean(class_scores(counts_SxCxK)[2])


def au_f1(counts_SxAx3: Counts, *, absent_is_zero: bool = False) -> NDArray[np.float64]:
    """The mean over action units of F1, from their true and false positives and false negatives.

    Args:
      absent_is_zero: whether all of them count, 0 where one is never found; else only those that occur in truth.
    """
    true_SxA, false_SxA, missed_SxA = np.moveaxis(counts_SxAx3, -1, 0)
    f1_SxA = ratio(2 * true_SxA, 2 * true_SxA + false_SxA + missed_SxA)
    if absent_is_zero:
        return np.nan_to_num(f1_SxA).mean(1)
    return nanmean(np.where(true_SxA + missed_SxA > 0, f1_SxA, np.nan))
