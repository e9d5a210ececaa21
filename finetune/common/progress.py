"""The progress bar of long work: fraction done, rate, remaining time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable | None, name: str, total: int, unit: str, **options: Any) -> tqdm:
    """A progress bar over `items`, or one updated by hand if None.

    Shown on terminals only, never in CI (some CI systems emulate a terminal) nor by quiet processes of a run.
    """
    hidden = bool(os.environ.get("CI")) or logging.getLogger("prism_coca").level >= logging.CRITICAL
    return tqdm(items, name, total, unit=unit, leave=False, disable=hidden or None, **options)
