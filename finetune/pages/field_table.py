"""held_out_fields.json: the fields of held-out captions, where the training texts follow a template."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.files import read_regular
from .drawable import finite_or_nan
from .topics import Confusion, Text, confusion

SCORES: dict[str, Text] = {  # of a field, in the order of the table
    "accuracy": ("准确率", "accuracy"),
    "macro_f1": ("宏平均 F1", "macro-F1"),
    "auroc": ("AUROC", "AUROC"),
    "auroc_right": ("AUROC（对与错）", "AUROC, right against wrong"),
    "ece": ("校准误差 ECE", "calibration error (ECE)"),
}


@dataclass(frozen=True)
class FieldRow:
    """One field.

    Attributes:
        slides: Where caption or reference has a value.
        scores: {name in SCORES: (value, low, high)}; NaN for what is not known.
        confusion: None where there is nothing to confuse.
    """

    name: str
    slides: int
    scores: dict[str, tuple[float, float, float]]
    confusion: Confusion | None


@dataclass(frozen=True)
class FieldTable:
    """All fields; of `slides`, `captions_off` have a caption that does not follow the template."""

    slides: int
    captions_off: int
    rows: list[FieldRow]

    @property
    def columns(self) -> list[tuple[str, Text]]:
        """[(score, heading)] of those that a field has."""
        return [(name, heading) for name, heading in SCORES.items()
                if any(not math.isnan(row.scores[name][0]) for row in self.rows)]

    @property
    def confusions(self) -> list[Confusion]:
        """The tables of the fields that have one."""
        return [row.confusion for row in self.rows if row.confusion is not None]


def read_fields(path: Path) -> FieldTable | None:
    """The fields of a run; None if the file is missing or damaged, or has none."""
    try:
        content = json.loads(read_regular(path))
        rows = [_row(name, field) for name, field in content["fields"].items()]
        return FieldTable(int(content["slides"]), int(content["captions_off_template"]), rows)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _row(name: str, field: dict[str, Any]) -> FieldRow:
    scores = {score: _numbers(field.get(score)) for score in SCORES}
    said, true = [], []
    for reference, captions in field["confusion"].items():
        for caption, count in captions.items():
            said += [caption] * int(count)
            true += [reference] * int(count)
    return FieldRow(name, int(field["slides"]), scores, confusion((name, name), said, true))


def _numbers(values: Any) -> tuple[float, float, float]:
    value, low, high = values or (None, None, None)
    return finite_or_nan(value), finite_or_nan(low), finite_or_nan(high)
