"""The 95 % interval of a share, which is not [100 %, 100 %] where all of a few are right, as resamples have it."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # of a 95 % interval


def wilson_interval(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of the share `right` / `of` (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953)."""
    share = right / of
    center = (share + _Z**2 / (2 * of)) / (1 + _Z**2 / of)
    half = _Z / (1 + _Z**2 / of) * math.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2))
    return max(0.0, center - half), min(1.0, center + half)
