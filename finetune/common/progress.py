"""The progress bar of every long work: how much is done, the rate, the time that remains."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable | None, name: str, total: int, unit: str, **options: Any) -> tqdm:
    """A bar over `items`, or one moved by hand if None. Shown on terminals only; never in CI, where some pretend to be
    one, nor by the processes of a run that are quiet."""
    hidden = bool(os.environ.get("CI")) or logging.getLogger("prism_coca").level >= logging.CRITICAL
    return tqdm(items, name, total, unit=unit, leave=False, disable=hidden or None, **options)
