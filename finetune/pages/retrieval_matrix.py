"""retrieval.json as the coloured matrix of the report: a row per slide, a column per text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..common.files import read_regular
from ..common.run_folder import MOST_RETRIEVED

_DARKEST = 9  # shades are .h0 to .h9 in page.css


def read_retrieval(path: Path) -> dict[str, Any] | None:
    """The matrix as the template shows it; None if the file is missing or damaged.

    Returns:
        ids: Slides, and in the same order their texts.
        slides: How many were captioned; the matrix has the first of them.
        rows: Per slide [(cosine, shade 0 to 9, whether it is the highest of the row)].
        low, high: The range of the cosines.
        first: The number of slides whose own text has the highest cosine.
    """
    try:
        ids, cosines, num_slides = _load(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    low, high = float(cosines.min()), float(cosines.max())
    spread = high - low if high > low else 1.0  # all equal: the lightest shade
    shades = np.rint(_DARKEST * (cosines - low) / spread).astype(int)
    is_highest = cosines == cosines.max(axis=1, keepdims=True)
    rows = []
    for columns in zip(cosines.tolist(), shades.tolist(), is_highest.tolist(), strict=True):
        rows.append(list(zip(*columns, strict=True)))
    return {"ids": ids, "slides": num_slides, "low": low, "high": high, "first": int(is_highest.diagonal().sum()),
            "rows": rows}


def _load(path: Path) -> tuple[list[str], np.ndarray, int]:
    """The ids and the cosines (N, N) of the first N slides and their texts, and the number of all slides."""
    content = json.loads(read_regular(path))
    ids = [str(slide_id) for slide_id in content["ids"]][:MOST_RETRIEVED]
    cosines = np.array([row[:len(ids)] for row in content["similarity"][:len(ids)]], dtype=float)
    if not ids or cosines.shape != (len(ids), len(ids)) or not np.isfinite(cosines).all():
        raise ValueError("no square matrix of finite numbers")
    return ids, cosines, max(int(content.get("slides", 0)), len(ids))
