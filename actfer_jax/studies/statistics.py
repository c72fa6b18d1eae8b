"""Statistics over seeds, in plain numpy.

Seeds and samples are crossed: every seed of every method answers the same samples. An interval over samples alone would
hold for one training run only, and one over seeds alone for these samples only.

Shapes: K seeds, N samples, R repetitions or resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from actfer_jax.evaluation.items import Interval

Floats = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8


def seed_interval(values_K: Floats) -> Interval:
    """The mean over seeds with its t interval, which holds for other seeds on the same samples.

    A single seed says nothing of others: it has no interval.
    """
    count = len(values_K)
    variance = float(np.var(values_K, ddof=1)) / count if count > 1 else None
    return _t_interval(float(np.mean(values_K)), variance, count - 1)


def crossed_interval(values_KxN: Floats) -> Interval:
    """The mean with an interval that holds for other seeds and other samples.

    The variance is that of a two-way layout with random rows and columns; the degrees of freedom are those of Hillis
    (Statistics in Medicine 26, 2007), who compares readers of the same cases. Where all samples are alike it is
    `seed_interval`. It keeps its level down to three seeds; resampling both ways does not, since a resample of three
    seeds has two thirds of their variance.

    Args:
      values_KxN: what each seed has for each sample, such as 1 where it is right.
    """
    seeds, samples = values_KxN.shape
    mean = float(values_KxN.mean())
    if seeds == 1:
        return _t_interval(mean, None, 0)
    by_seed_K, by_sample_N = values_KxN.mean(1), values_KxN.mean(0)
    rest_KxN = values_KxN - by_seed_K[:, None] - by_sample_N + mean
    between_seeds = samples * float(np.var(by_seed_K, ddof=1))
    between_samples = rest = 0.0
    if samples > 1:
        between_samples = seeds * float(np.var(by_sample_N, ddof=1))
        rest = float((rest_KxN**2).sum()) / ((seeds - 1) * (samples - 1))
    # In expectation it is at least the rest. A few seeds may agree by chance.
    between_seeds = max(between_seeds, rest)
    total = between_seeds + max(between_samples - rest, 0.0)
    freedom = (total / between_seeds) ** 2 * (seeds - 1) if between_seeds else math.inf
    return _t_interval(mean, total / (seeds * samples), freedom)


def _t_interval(mean: float, variance: float | None, freedom: float) -> Interval:
    if variance is None:
        return {"value": mean, "low": None, "high": None}
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return {"value": mean, "low": mean - half, "high": mean + half}


@dataclass(frozen=True)
class PairedT:
    """A paired t test.

    Attributes:
      difference: the mean difference, with its interval over seeds.
      deviation: the standard deviation of the differences.
      t: the statistic; None where there is no deviation.
      p: two-sided; None for a single seed.
    """

    difference: Interval
    deviation: float | None
    t: float | None
    p: float | None


def paired_t(differences_K: Floats) -> PairedT:
    """Tests whether the differences between two methods, seed by seed, have the mean 0."""
    count, difference = len(differences_K), seed_interval(differences_K)
    if count == 1:
        return PairedT(difference, None, None, None)
    mean, deviation = float(np.mean(differences_K)), float(np.std(differences_K, ddof=1))
    if deviation == 0:
        # All seeds agree to the last digit: with any spread at all, however small, a difference would be sure.
        return PairedT(difference, 0.0, None, 0.0 if mean else 1.0)
    t = mean / (deviation / math.sqrt(count))
    return PairedT(difference, deviation, t, float(2 * stats.t.sf(abs(t), count - 1)))


def holm(p: Sequence[float]) -> list[float]:
    """The p values adjusted by Holm (1979): with all below 0.05 rejected, the chance of any false one is at most 5%."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def smallest_difference(seeds: int, *, contrasts: int = 1) -> float | None:
    """The mean difference that a paired t test finds with power 0.8, in standard deviations of the differences.

    Args:
      seeds: how many pairs there are.
      contrasts: how many are tested: Holm compares the smallest p with 0.05 divided by it.

    Returns:
      None for a single seed, which can show no difference.
    """
    if seeds < 2:
        return None
    freedom = seeds - 1
    limit = stats.t.isf((1 - LEVEL) / 2 / contrasts, freedom)

    def lack(size: float) -> float:
        return float(stats.nct.sf(limit, freedom, size * math.sqrt(seeds))) - POWER

    most = 1.0
    while lack(most) < 0:
        most *= 2
    return float(optimize.brentq(lack, 0.0, most))
