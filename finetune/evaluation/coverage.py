"""How accurate answers are if only the most confident are given, and from which confidence on they are accurate enough.

Selective prediction: Geifman and El-Yaniv 2017, https://arxiv.org/abs/1705.08500. Shapes: S answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..common.terminal import aligned_lines
from ..common.visible import visible
from ..common.wilson import wilson_interval

COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25)  # of the table
FEWEST = 10  # answers that a threshold must leave: the accuracy of fewer says nothing
_FOLDS, _SEED = 10, 0


@dataclass(frozen=True)
class Point:
    """What is answered from a confidence on.

    Attributes:
        threshold: Answers of this confidence or more are given, as --abstain_below does.
        answered: How many they are.
        right: How many of these are right.
    """

    threshold: float
    answered: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.answered

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (Wilson)."""
        return wilson_interval(self.right, self.answered)


@dataclass(frozen=True)
class Selection:
    """Answers, their confidence, and whether they are right.

    Attributes:
        name: What was answered: `captions` or a field.
        confidence: (S,), without NaN.
        right: (S,) of booleans.
    """

    name: str
    confidence: np.ndarray
    right: np.ndarray

    @cached_property
    def points(self) -> list[Point]:
        """A point for each different confidence, the highest first: equal ones cannot be told apart."""
        order = np.argsort(-self.confidence, kind="stable")
        confidence, right = self.confidence[order], np.cumsum(self.right[order])
        is_last = np.append(confidence[1:] != confidence[:-1], True) if len(order) else []
        return [Point(float(confidence[i]), int(i) + 1, int(right[i])) for i in np.flatnonzero(is_last)]

    def at_coverage(self, coverage: float) -> Point:
        """The point that answers this share of the slides, or the least more that equal confidences allow."""
        return next(point for point in self.points if point.answered >= coverage * len(self.right) - 1e-9)

    def for_accuracy(self, wanted: float) -> Point | None:
        """The point that answers most at this accuracy or a better one; None if there is none with 10 answers."""
        enough = [point for point in self.points if point.answered >= FEWEST and point.accuracy >= wanted]
        return enough[-1] if enough else None

    def most_accurate(self) -> Point | None:
        """The point of highest accuracy with 10 answers, the one that answers most among equals."""
        enough = [point for point in self.points if point.answered >= FEWEST]
        return max(enough, key=lambda point: (point.accuracy, point.answered), default=None)

    def on_others(self, wanted: float) -> tuple[int, int]:
        """(answered, right) if each tenth of the slides is judged by the threshold that the others choose."""
        order = np.random.default_rng(_SEED).permutation(len(self.right))
        answered = right = 0
        for fold in np.array_split(order, min(_FOLDS, len(order))):
            others = np.setdiff1d(order, fold)
            chosen = Selection(self.name, self.confidence[others], self.right[others]).for_accuracy(wanted)
            if chosen:
                threshold = 0.0 if chosen.answered == len(others) else chosen.threshold  # all are accurate enough
                given = self.confidence[fold] >= threshold
                answered += int(given.sum())
                right += int(self.right[fold][given].sum())
        return answered, right

    def short_threshold(self, point: Point) -> float:
        """The shortest number between the last confidence that is answered and the next lower one, which is not; 0
        where all are answered."""
        lower = max((float(c) for c in self.confidence if c < point.threshold), default=None)
        if lower is None:
            return 0.0
        for digits in range(2, 17):
            short = round(point.threshold, digits)
            if lower < short <= point.threshold:
                return short
        return point.threshold

    def to_dict(self, wanted: float) -> dict[str, Any]:
        """Strict JSON: the rows of the table, and the point for the wanted accuracy (None if it is not reached)."""
        result: dict[str, Any] = {"slides": len(self.right), "wanted_accuracy": wanted, "coverage": []}
        if not len(self.right):
            return result | {"chosen": None, "best": None}
        for coverage in COVERAGES:
            result["coverage"].append({"wanted_coverage": coverage, **self._described(self.at_coverage(coverage))})
        best = self.most_accurate()
        return result | {"chosen": self._chosen(wanted), "best": best and self._described(best)}

    def _chosen(self, wanted: float) -> dict[str, Any] | None:
        """The point for a wanted accuracy, and how it does on slides that did not choose it."""
        point = self.for_accuracy(wanted)
        if point is None:
            return None
        answered, right = self.on_others(wanted)
        return self._described(point) | {"on_other_slides": {"answered": answered, "right": right}}

    def _described(self, point: Point) -> dict[str, Any]:
        low, high = point.interval()
        return {"threshold": self.short_threshold(point), "coverage": round(point.answered / len(self.right), 6),
                "answered": point.answered, "right": point.right, "accuracy": round(point.accuracy, 6),
                "interval": [round(low, 6), round(high, 6)]}


def coverage_lines(tables: dict[str, dict[str, Any]], wanted: float) -> list[str]:
    """The table of `to_dict` of some selections for a terminal, then a line for each about the wanted accuracy."""
    heads = ["accuracy of the most confident:", *(f"{share:.0%}" for share in COVERAGES)]
    rows = [heads]
    for name, table in tables.items():
        if table["coverage"]:
            accuracies = [f"{row['accuracy']:.3f}" for row in table["coverage"]]
            rows.append([f"  {name} ({table['slides']} slides)", *accuracies])
    return [*aligned_lines(rows),
            *(_sentence(name, table, wanted) for name, table in tables.items() if table["slides"]),
            *_line_of_unknown([name for name, table in tables.items() if not table["slides"]])]


def _line_of_unknown(names: list[str]) -> list[str]:
    """That there is no threshold for fields of which no answer has a probability."""
    if not names:
        return []
    return [f"{visible(', '.join(names))}: no threshold, as no answer has a probability (free captions have none of "
            "their fields: fill them with --template or --choices)"]


def _sentence(name: str, table: dict[str, Any], wanted: float) -> str:
    """From which confidence on answers are accurate enough."""
    name, chosen, best = visible(name), table["chosen"], table["best"]
    if chosen:
        others = chosen["on_other_slides"]
        needs = f"needs a threshold of {chosen['threshold']}" if chosen["threshold"] else "needs no threshold"
        return (f"{name}: {wanted:.1%} right {needs}: {_counted(chosen)}, "
                f"{chosen['coverage']:.0%} of the slides; chosen on other slides each time, {others['right']} of "
                f"{others['answered']} are right")
    if best:
        return f"{name}: {wanted:.1%} right is not reached; best from {best['threshold']} on: {_counted(best)}"
    return f"{name}: too few answers to choose a threshold ({table['slides']} of at least {FEWEST})"


def _counted(point: dict[str, Any]) -> str:
    low, high = point["interval"]
    return (f"{point['right']} of {point['answered']} are right ({point['accuracy']:.1%}, 95 % interval {low:.1%} to "
            f"{high:.1%})")
