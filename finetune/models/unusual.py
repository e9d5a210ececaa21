"""Which slides are unlike the training slides, so that nothing is known of what a caption of them is worth.

A slide is held against the training slides by its distance to the third nearest of them, in Prism's space and in the
contrastive one (deep nearest neighbours, Sun et al. 2022, https://arxiv.org/abs/2204.06507); what is far is measured on
the training slides themselves, each against all others that are not of its patient. Beside that stand facts about its
tiles. A distance is 1 - cosine.

Shapes: N training slides, V validation slides, S slides, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..data.tile_facts import TileFacts
from .training_texts import SlideVectors, TrainingTexts

SPACES = {"prism": "Prism's space", "contrastive": "the contrastive space"}
_NEIGHBOUR = 3  # of the training slides by nearness: the first may be a copy, or a region of the same slide
_LEAST_SLIDES = 20  # fewer do not show what is far
_SHARE = 0.99  # of the training slides that are nearer to others than the limit
# Slides of a kind lie in tight knots where the contrastive loss has pulled them together: a new one that is a little
# apart is none the worse for it. On the demo's slides, noise and mixed slides are 20 times as far.
_MARGIN = {"prism": 1.0, "contrastive": 2.0}
_SMALLEST = 1e-4  # a distance that rounding to half precision may make; slides of a set may be copies of each other
# Of the tiles: some extractors leave a few empty, and a failed one leaves a part of the slide
_MOST_ZERO = 0.25
_ROWS = 1000  # compared with all others at a time: 80 MB for 20 000 slides


class Range(NamedTuple):
    """How far slides are from the training slides: the median, and the limit above which one is unusual."""

    median: float
    limit: float


@dataclass(frozen=True)
class UsualSlides:
    """What slides of the kind that the model was trained on are like.

    Attributes:
        least_tiles: Of any training slide.
        ranges: {space: its range}, without the spaces that show nothing.
    """

    least_tiles: int
    ranges: Mapping[str, Range]

    @classmethod
    def of(cls, training: TrainingTexts, num_tiles: Sequence[int], groups: Sequence[str] | None = None,
           unseen: SlideVectors | None = None, trained: Collection[str] = ("contrastive",)) -> UsualSlides:
        """Measured on N training slides.

        Args:
            training: With their vectors.
            num_tiles: Of each.
            groups: Of each, such as its patient: those of one are not compared. None compares all.
            unseen: Vectors of V validation slides.
            trained: Spaces in which training has pulled its own slides together: there the ranges are stretched by how
                much farther unseen slides are, and without any there is no range.
        """
        vectors = {"prism": training.centred, "contrastive": training.contrastive}
        owners = np.arange(len(num_tiles)) if groups is None else np.unique(groups, return_inverse=True)[1]
        far = {} if unseen is None else distances(training, unseen)
        ranges = {}
        for space, points in vectors.items():
            found = _range_of(points, owners, space in trained, far.get(space), _MARGIN[space])
            if found is not None:
                ranges[space] = found
        return cls(min(num_tiles), ranges)

    def reasons_of(self, training: TrainingTexts, slides: SlideVectors, facts: Sequence[TileFacts]) -> list[list[str]]:
        """Why each of S slides is unusual, in words; nothing for one that is not."""
        far = distances(training, slides)
        return [self.reasons(of_slide, {space: float(found[row]) for space, found in far.items()})
                for row, of_slide in enumerate(facts)]

    def reasons(self, facts: TileFacts, found: Mapping[str, float]) -> list[str]:
        """Why a slide is unusual, in words; nothing if it is not.

        Args:
            facts: About its tiles.
            found: {space: its distance to the training slides}.
        """
        return tile_reasons(facts, self.least_tiles) + [
            f"far from the training slides in {SPACES[space]} ({found[space]:.3g}, limit {known.limit:.3g})"
            for space, known in self.ranges.items() if found.get(space, 0.0) > known.limit]

    def to_dict(self) -> dict[str, float]:
        """Numbers by name, for a file."""
        numbers: dict[str, float] = {"least_tiles": self.least_tiles}
        for space, known in self.ranges.items():
            numbers |= {f"{space}_{name}": value for name, value in known._asdict().items()}
        return numbers

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> UsualSlides:
        """What `to_dict` gave; `checkpoints.nearest_index` has checked it."""
        ranges = {space: Range(numbers[f"{space}_median"], numbers[f"{space}_limit"])
                  for space in SPACES if f"{space}_limit" in numbers}
        return cls(int(numbers["least_tiles"]), ranges)


def tile_reasons(facts: TileFacts, least_tiles: int = 1) -> list[str]:
    """What is unusual about the tiles alone. least_tiles: of any training slide, 1 if that is not known."""
    reasons = []
    if facts.are_zero:
        reasons.append("all its tiles are zero")
    elif facts.are_equal:
        reasons.append("all its tiles are equal")
    elif facts.zero_share > _MOST_ZERO:
        reasons.append(f"{facts.zero_share:.0%} of its tiles are zero")
    if facts.num_tiles < least_tiles:
        reasons.append(f"fewer tiles than any training slide ({facts.num_tiles}, the fewest were {least_tiles})")
    elif facts.num_tiles == 1:
        reasons.append("a single tile")
    return reasons


def distances(training: TrainingTexts, slides: SlideVectors) -> dict[str, np.ndarray]:
    """{space: the distance of each of S slides to the training slides, (S,)}, of the spaces that there are."""
    return {space: _distance(cosines) for space, cosines in training.cosines(slides).items()}


def _distance(cosines: np.ndarray) -> np.ndarray:
    """To the third nearest of N slides, or the farthest of fewer; cosines (S, N) -> (S,)."""
    place = max(cosines.shape[1] - _NEIGHBOUR, 0)
    return 1 - np.partition(cosines, place, axis=1)[:, place]


def _left_out_distances(points: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The distance of each of N unit vectors (N, D) to those of other owners (N,); of those that have as many."""
    found = []
    for begin in range(0, len(points), _ROWS):
        rows = slice(begin, begin + _ROWS)
        cosines = points[rows] @ points.T
        cosines[owners[rows, None] == owners] = -np.inf
        found.append(_distance(cosines))
    joined = np.concatenate(found)
    return joined[np.isfinite(joined)]


def _range_of(points: np.ndarray | None, owners: np.ndarray, is_trained: bool, unseen: np.ndarray | None,
              margin: float) -> Range | None:
    """The range of a space from unit vectors (N, D) of owners (N,); None where it shows nothing.

    Args:
        is_trained: Whether training has pulled its own slides together there.
        unseen: Distances of the validation slides (V,), which a trained space needs.
    """
    if points is None or (is_trained and unseen is None):
        return None
    left_out = _left_out_distances(points, owners)
    if len(left_out) < _LEAST_SLIDES:
        return None
    return _range(left_out, unseen if is_trained else left_out, margin)


def _range(left_out: np.ndarray, unseen: np.ndarray, margin: float) -> Range:
    """unseen: distances of slides by whose median those of the training slides are stretched."""
    median, limit = np.median(left_out), margin * np.quantile(left_out, _SHARE, method="higher")
    stretch = max(1.0, np.median(unseen) / max(median, _SMALLEST))
    return Range(max(float(median * stretch), _SMALLEST), max(float(limit * stretch), _SMALLEST))
