"""How well a policy knows when it is right."""

import numpy as np
from numpy.typing import ArrayLike


def expected_calibration_error(confidence_N: ArrayLike, correct_N: ArrayLike, bins: int = 10) -> float:
    """The mean distance between confidence and accuracy over bins of equal width, by their answers (Guo et al., 2017).

    Args:
      confidence_N: the probability of each answer, in 0..1; at least one.
      correct_N: whether it was right.

    Returns:
      0 for a policy that is right as often as it says, up to 1.
    """
    confidence, correct = np.asarray(confidence_N, np.float64), np.asarray(correct_N, np.float64)
    bin_N = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_N, confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
