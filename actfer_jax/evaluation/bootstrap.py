"""Resampling with replacement, for intervals: of subjects where it is known who is shown, else of samples.

The frames of one person are much alike. An interval over frames would be far too narrow.

Shapes: N samples, U units that are drawn, S rows of weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """Sums over all samples, and over resamples of them.

    Attributes:
      resampled: "subjects", or "samples" where no subject is known.
      unit_N: the unit that each sample belongs to.
      weights_SxU: how often each unit counts: a row of ones, which gives the figure itself, then the resamples. There
        are none of a single unit, which says nothing about others.
    """

    resampled: str
    unit_N: NDArray[np.intp]
    weights_SxU: Floats

    def total(self, values: ArrayLike) -> Floats:
        """The sums [S, ...] of values [N, ...], with every sample as often as its unit counts."""
        values = np.asarray(values, np.float64)
        if len(self.unit_N) > self.weights_SxU.shape[1]:
            sums = np.zeros((self.weights_SxU.shape[1], *values.shape[1:]))
            np.add.at(sums, self.unit_N, values)
            values = sums
        return np.tensordot(self.weights_SxU, values, 1)

    def mean(self, values_N: ArrayLike, where_N: NDArray[np.bool_]) -> Floats:
        """The means [S] of the samples of a part; NaN where a resample has none."""
        return ratio(self.total(np.asarray(values_N, np.float64) * where_N), self.total(where_N))

    @property
    def without_resamples(self) -> "Bootstrap":
        """The figures alone."""
        return Bootstrap(self.resampled, self.unit_N, self.weights_SxU[:1])


def bootstrap(subjects: Sequence[str], *, seed: int, resamples: int = RESAMPLES) -> Bootstrap:
    """Draws the resamples.

    Args:
      subjects: who each sample shows; "" where that is not known. Such a sample is a unit of its own.
      seed: of the drawing.
    """
    names = [subject or index for index, subject in enumerate(subjects)]
    place = {name: unit for unit, name in enumerate(dict.fromkeys(names))}
    return Bootstrap(
        "subjects" if any(subjects) else "samples",
        np.array([place[name] for name in names], np.intp),
        bootstrap_weights(len(place), seed=seed, resamples=resamples if len(place) > 1 else 0),
    )


def bootstrap_weights(units: int, *, seed: int, resamples: int) -> Floats:
    """The weight of each unit, float64 [1 + resamples, U]: a row of ones, then resamples with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples) if units else np.ones((0, 0))
    return np.concatenate([np.ones((1, units)), drawn])


def ratio(top: Floats, bottom: Floats) -> Floats:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)


def nanmean(values_SxC: Floats) -> Floats:
    """The mean over the classes whose value is defined [S]; NaN where none is."""
    return ratio(np.nansum(values_SxC, 1), (~np.isnan(values_SxC)).sum(1))


def value(values_S: Floats) -> float | None:
    """The figure itself; None where it is not defined."""
    return None if np.isnan(values_S[0]) else float(values_S[0])


def interval(values_S: Floats) -> dict[str, float | None]:
    """The figure, and the 2.5% and 97.5% quantiles of the resamples in which it is defined."""
    resampled = values_S[1:][~np.isnan(values_S[1:])]
    if np.isnan(values_S[0]) or not len(resampled):
        return {"value": value(values_S), "low": None, "high": None}
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {"value": value(values_S), "low": float(low), "high": float(high)}
