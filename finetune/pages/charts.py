"""Line charts as numbers: where the points, ticks and lines of an SVG go. `pages/report.html` draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 24, 40
_MOST = 1e300  # the difference of two values must be a number, too
_MOST_POINTS = 200  # of one line: more than there are pixels for
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """title, y_label: (Chinese, English). lines: name -> (points of the polyline, [(x, y, its text)]); all in pixels.
    x_ticks, y_ticks: (pixel, text)."""

    title: tuple[str, str]
    y_label: tuple[str, str]
    lines: dict[str, tuple[str, list[tuple[float, float, str]]]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def line_chart(title: tuple[str, str], y_label: tuple[str, str], series: Mapping[str, Points]) -> Chart | None:
    """A chart of values over epochs; None if there is no finite value to draw."""
    kept = {name: thin([(x, y) for x, y in points if abs(y) < _MOST]) for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return None
    xs, ys = zip(*(point for points in kept.values() for point in points), strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs), whole=True), ticks(min(ys), max(ys))
    x_low, x_high = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])
    y_low, y_high = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def place(value: float, low: float, high: float, start: float, end: float) -> float:
        return round(start + (end - start) * ((value - low) / (high - low) if high > low else 0.5), 1)

    def x_at(x: float) -> float:
        return place(x, x_low, x_high, _LEFT + 6, WIDTH - _RIGHT - 6)

    def y_at(y: float) -> float:
        return place(y, y_low, y_high, HEIGHT - _BOTTOM, _TOP)

    lines = {}
    for name, points in kept.items():
        placed = [(x_at(x), y_at(y), f"{name}, epoch {x:g}: {y:.5g}") for x, y in points]
        lines[name] = " ".join(f"{x},{y}" for x, y, _ in placed), placed
    return Chart(title, y_label, lines, [(x_at(t), f"{t:g}") for t in x_ticks],
                 [(y_at(t), f"{t:.4g}") for t in y_ticks])


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers around low..high, steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = (low - 1, high + 1) if whole else (low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if whole:  # no epoch before the first or after the last
        first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points: lowest and highest of each stretch, so that no spike is lost, and both ends."""
    points = list(points)
    if len(points) <= most:
        return points
    size, kept = len(points) / (most / 2 - 1), {0, len(points) - 1}
    for part in range(most // 2 - 1):
        stretch = range(int(part * size), min(int((part + 1) * size), len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]
