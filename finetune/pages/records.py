"""JSON records of a run folder, read so that a damaged line or value leaves a gap and nothing worse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_MAX_EPOCH = 10**9
_MAX_NUMBER = 1e300  # the difference of two must be a finite number, too


def read_records(path: Path) -> Iterator[Record]:
    """The JSON objects of a file, one per line; none of a missing file. A line that a crash has cut is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def has_epoch(record: Record) -> bool:
    """Whether the record belongs to an epoch that can be drawn."""
    epoch = record.get("epoch")
    return type(epoch) is int and 0 <= epoch < _MAX_EPOCH


def finite_or_nan(value: Any) -> float:
    """The value as a float; NaN for anything but a number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < _MAX_NUMBER else math.nan
