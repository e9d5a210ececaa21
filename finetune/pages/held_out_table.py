"""The table of report.html that compares the captions with looking up: a reader of held_out.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.score_table import SCORES
from .drawable import finite_or_nan

_SCORES = ("exact_match", "rouge_l", "bleu_4", "cider")
_BASELINES = {  # a baseline in the file -> its heading
    "nearest_training_text": ("最近训练切片的文本", "nearest training text"),
    "linear_probe": ("线性探针", "linear probe"),
    "most_common_text": ("最常见的训练文本", "most common text"),
    "shuffled_slides": ("打乱切片", "shuffled slides"),
}
Text = tuple[str, str]  # Chinese, English


def read_held_out(path: Path) -> dict[str, Any] | None:
    """`slides`, `columns` (headings) and `rows` (heading, cells); None if the file is missing or damaged.

    A cell is a number, then the paired 95 % interval of the captions minus the baseline, None for the captions.
    """
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        return _table(scores)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _table(scores: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in _BASELINES if name in scores["baselines"]]
    rows: list[tuple[Text, list[tuple[float, tuple[float, float] | None]]]] = []
    for score in _SCORES:
        cells: list[tuple[float, tuple[float, float] | None]] = [(finite_or_nan(scores[score]), None)]
        for name in names:
            _, low, high = scores["differences"][name][score]
            interval = finite_or_nan(low), finite_or_nan(high)
            cells.append((finite_or_nan(scores["baselines"][name][score]), interval))
        rows.append(((SCORES[score].chinese, SCORES[score].english), cells))
    columns = [("描述", "captions"), *(_BASELINES[name] for name in names)]
    return {"slides": int(scores["slides"]), "columns": columns, "rows": rows}
