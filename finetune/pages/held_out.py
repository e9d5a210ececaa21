"""held_out.json: how the captions compare with looking up, as numbers that can be shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.files import read_regular
from ..common.score_table import CAPTIONS, COMMON, NEAREST_TEXT, PROBE_TEXT, SCORES, SHUFFLED
from ..common.wilson import wilson_interval
from .drawable import finite_or_nan

Text = tuple[str, str]  # Chinese, English
BASELINES = {  # a baseline in the file -> its heading
    NEAREST_TEXT: ("最近训练切片的文本", "nearest training text"),
    PROBE_TEXT: ("线性探针", "linear probe"),
    COMMON: ("最常见的训练文本", "most common training text"),
    SHUFFLED: ("打乱切片", "shuffled slides"),
}
LOOK_UPS = (NEAREST_TEXT, PROBE_TEXT, COMMON)  # those that answer with a training text


@dataclass(frozen=True)
class Cell:
    """A score with its 95 % interval; of a baseline the interval is that of the captions minus it, paired."""

    value: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class HeldOut:
    """The scores of validation slides.

    Attributes:
        slides: How many.
        cells: {CAPTIONS or a baseline: {score: cell}}; all have the same scores.
    """

    slides: int
    cells: dict[str, dict[str, Cell]]

    @property
    def scores(self) -> list[str]:
        """The names of the scores, in the order of the table of all scores."""
        return [name for name in SCORES if name in self.cells[CAPTIONS]]

    @property
    def columns(self) -> list[tuple[str, Text]]:
        """[(name, heading)] of the captions and of the baselines there are."""
        return [(CAPTIONS, ("模型的描述", "captions")), *((name, BASELINES[name]) for name in self.cells
                                                     if name != CAPTIONS)]


def read_held_out(path: Path) -> HeldOut | None:
    """The scores of a run; None if the file is missing or damaged."""
    try:
        return _held_out(json.loads(read_regular(path)))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _held_out(content: dict[str, Any]) -> HeldOut | None:
    baselines, differences = content["baselines"], content["differences"]
    present = [name for name in BASELINES if name in baselines]
    names = [name for name in SCORES if name in content and all(name in differences[column] for column in present)]
    if not names:
        return None
    slides = int(content["slides"])
    cells = {CAPTIONS: _own_cells(content, names, slides)}
    for column in present:
        cells[column] = {name: _cell(baselines[column][name], differences[column][name]) for name in names}
    return HeldOut(slides, cells)


def _own_cells(content: dict[str, Any], names: list[str], slides: int) -> dict[str, Cell]:
    """{score: cell} of the captions."""
    intervals = content.get("intervals", {})
    cells = {name: _cell(content[name], [None, *intervals.get(name, (None, None))]) for name in names}
    if "exact_match" in cells:
        cells["exact_match"] = _share(cells["exact_match"], slides)
    return cells


def _cell(value: Any, interval: list[Any]) -> Cell:
    difference, low, high = interval
    return Cell(*map(finite_or_nan, (value, difference, low, high)))


def _share(cell: Cell, slides: int) -> Cell:
    """A share of the slides with the interval of a share: resamples of slides that are all right are all right too."""
    if not 0 <= cell.value <= 1 or slides < 1:  # a damaged file
        return cell
    low, high = wilson_interval(round(cell.value * slides), slides)
    return replace(cell, low=low, high=high)
