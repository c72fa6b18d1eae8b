"""How well a policy knows when it is right.

Shapes: N answers, B bins of confidence, S the figure itself and its resamples.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actfer_jax.evaluation.bootstrap import Bootstrap, Floats, interval, ratio, value

BINS = 10


def expected_calibration_error(confidence_N: ArrayLike, correct_N: ArrayLike, bins: int = BINS) -> float:
    """The mean distance between confidence and accuracy over bins of equal width, by their answers (Guo et al., 2017).

    Args:
      confidence_N: the probability of each answer, in 0..1; at least one.
      correct_N: whether it was right.

    Returns:
      0 for a policy that is right as often as it says, up to 1.
    """
    confidence, correct = np.asarray(confidence_N, np.float64), np.asarray(correct_N, np.float64)
    size = len(confidence)
    alone = Bootstrap("samples", np.arange(size), np.ones((1, size)))
    return float(_errors(alone, confidence - correct, _in_bins(confidence, bins))[0])


def reliability(drawn: Bootstrap, confidence_N: Floats, correct_N: NDArray[np.bool_]) -> dict[str, Any]:
    """The expected calibration error with its interval, and what a reliability diagram shows.

    Args:
      confidence_N: the probability of each answer; NaN where it is not known, or the truth is not.
      correct_N: whether it was right.

    Returns:
      ece, {"value", "low", "high"}; calibration: answers (how many are known), confidence (their mean), bins: of each
      of `BINS` bins of equal width answers, confidence, and accuracy with its interval.
    """
    known_N = ~np.isnan(confidence_N)
    confidence_N = np.where(known_N, confidence_N, 0.0)
    inside_NxB = _in_bins(confidence_N, BINS) & known_N[:, None]
    answers_B = inside_NxB.sum(0)
    sums_B = inside_NxB.T @ confidence_N
    accuracy_SxB = ratio(drawn.total(inside_NxB & correct_N[:, None]), drawn.total(inside_NxB))
    return {
        "ece": interval(_errors(drawn, confidence_N - correct_N, inside_NxB)),
        "calibration": {
            "answers": int(known_N.sum()),
            "confidence": value(drawn.mean(confidence_N, known_N)),
            "bins": [
                {
                    "answers": int(answers_B[b]),
                    "confidence": float(sums_B[b] / answers_B[b]) if answers_B[b] else None,
                    "accuracy": interval(accuracy_SxB[:, b]),
                }
                for b in range(BINS)
            ],
        },
    }


def _in_bins(confidence_N: Floats, bins: int) -> NDArray[np.bool_]:
    """Which bin each confidence is in [N, B]."""
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    inside_NxB: NDArray[np.bool_] = bin_N[:, None] == np.arange(bins)
    return inside_NxB


def _errors(drawn: Bootstrap, gap_N: Floats, inside_NxB: NDArray[np.bool_]) -> Floats:
    """The expected calibration errors [S] from the gap between the confidence and the outcome of each answer."""
    gaps_SxB = drawn.total(gap_N[:, None] * inside_NxB)
    return ratio(np.abs(gaps_SxB).sum(1), drawn.total(inside_NxB).sum(1))
