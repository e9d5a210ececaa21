"""The progress bar of every long work: how much is done, the rate, the time that remains."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable | None, name: str, total: int, unit: str, **options: Any) -> tqdm:
    """A bar over `items`, or one moved by hand if None. Shown on terminals only, and never in CI, where some pretend to
    be one."""
    return tqdm(items, name, total, unit=unit, leave=False, disable=bool(os.environ.get("CI")) or None, **options)
