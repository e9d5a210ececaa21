"""Filters for the records of a run folder: a damaged value only leaves a gap in a chart."""

from __future__ import annotations

import math
from typing import Any

from ..common.run_folder import Record

_MAX_EPOCH = 10**9
MAX_NUMBER = 1e300  # the difference of two must be a finite number, too


def has_epoch(record: Record) -> bool:
    """Whether the record belongs to an epoch that can be drawn."""
    epoch = record.get("epoch")
    return type(epoch) is int and 0 <= epoch < _MAX_EPOCH


def finite_or_nan(value: Any) -> float:
    """The value as a float; NaN for anything but a number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < MAX_NUMBER else math.nan
