"""Line charts as numbers: where the points, ticks and lines of an SVG go. `templates/report.html` draws them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .drawable import MAX_NUMBER

WIDTH, HEIGHT = 460, 270  # pixels, as the margins
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 24, 40
_INSET = 6  # between the axis and the first and last epoch
_MAX_POINTS = 200  # of one line: more cannot be told apart at this width
_TICKS = 5
_SAME = 1e-9  # values that differ by less, relative to their size, are drawn as equal
Points = Sequence[tuple[float, float]]
Text = tuple[str, str]  # Chinese, English


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        polyline: As SVG has it.
        points: [(x, y, epoch, value)], the last two as text.
    """

    name: Text
    polyline: str
    points: list[tuple[float, float, str, str]]


@dataclass(frozen=True)
class Chart:
    """A line chart in pixels.

    Attributes:
        note: A line of explanation.
        x_ticks, y_ticks: (position, text).
        mark: x of the epoch of the best model, None if it is not in the chart.
    """

    title: Text
    y_label: Text
    note: Text
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    mark: float | None = None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Axis:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], ticks: Sequence[float], start: float, end: float) -> _Axis:
        return cls(min(*values, *ticks), max(*values, *ticks), start, end)

    def pixel(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + (self.end - self.start) * share, 1)


def line_chart(title: Text, y_label: Text, series: Mapping[Text, Points], note: Text = ("", ""),
               marked_epoch: int | None = None) -> Chart | None:
    """A chart of values over epochs.

    Args:
        title, y_label: (Chinese, English).
        series: Name of a line -> its points (epoch, value); those that are not finite are left out.
        note: A line of explanation.
        marked_epoch: Of the best model.

    Returns:
        None if there is no value to draw.
    """
    drawn = _drawable(series)
    if not drawn:
        return None
    xs, ys = zip(*itertools.chain(*drawn.values()), strict=True)
    x_ticks, y_ticks = epoch_ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_axis = _Axis.around(xs, x_ticks, _LEFT + _INSET, WIDTH - _RIGHT - _INSET)
    y_axis = _Axis.around(ys, y_ticks, HEIGHT - _BOTTOM, _TOP)  # SVG counts y from the top
    lines = []
    for name, points in drawn.items():
        placed = [(x_axis.pixel(x), y_axis.pixel(y), f"{x:g}", f"{y:.5g}") for x, y in points]
        lines.append(Line(name, " ".join(f"{x},{y}" for x, y, _, _ in placed), placed))
    is_marked = marked_epoch is not None and min(xs) <= marked_epoch <= max(xs)
    return Chart(title, y_label, note, lines,
                 x_ticks=[(x_axis.pixel(tick), f"{tick:g}") for tick in x_ticks],
                 y_ticks=[(y_axis.pixel(tick), f"{tick:.4g}") for tick in y_ticks],
                 mark=x_axis.pixel(marked_epoch) if is_marked else None)


def _drawable(series: Mapping[Text, Points]) -> dict[Text, Points]:
    """The lines that have a finite value, without the points that have none."""
    lines: dict[Text, Points] = {}
    for name, points in series.items():
        finite = [(x, y) for x, y in points if abs(y) < MAX_NUMBER]
        if finite:
            lines[name] = thin(finite)
    return lines


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose low..high."""
    if high - low <= _SAME * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    step = _round_step(low, high)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def epoch_ticks(low: float, high: float) -> list[float]:
    """About five round whole numbers within low..high: no epoch before the first or after the last."""
    if high <= low:
        low, high = low - 1, high + 1
    step = max(_round_step(low, high), 1.0)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _round_step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten, for about five ticks."""
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def thin(points: Points, limit: int = _MAX_POINTS) -> Points:
    """At most `limit` of the points: lowest and highest of each stretch, so that no spike is lost, and both ends."""
    if len(points) <= limit:
        return points
    stretches = limit // 2 - 1
    size = len(points) / stretches
    kept = {0, len(points) - 1}
    for number in range(stretches):
        stretch = range(int(number * size), min(int((number + 1) * size), len(points)))
        kept.add(min(stretch, key=lambda i: points[i][1]))
        kept.add(max(stretch, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]
