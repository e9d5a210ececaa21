"""Whether probabilities mean what they say: expected calibration error, and intervals over slides.

Shapes: S slides, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

BINS = 10  # of equal width; Guo et al. 2017 take 15 for thousands of examples, validation sets have fewer
_RESAMPLES = 1000


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015) in bins of equal width; NaN without slides.

    Args:
        probabilities: That each answer is right, (S,).
        right: Whether it is, (S,), or how far it is, between 0 and 1.
    """
    if not len(probabilities):
        return math.nan
    bins = bin_of(probabilities)
    gaps = np.bincount(bins, probabilities - right, BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def bin_of(probabilities: np.ndarray) -> np.ndarray:
    """The number of the bin of each probability; 1 is in the last."""
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)


def resampled(statistic: Callable[[np.ndarray], float], num_slides: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a statistic over slides drawn with replacement; NaN where it never is defined.

    Args:
        statistic: Of indices of slides, (S,); NaN where it is not defined, as AUROC without errors.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, num_slides, num_slides)) for _ in range(_RESAMPLES)]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
