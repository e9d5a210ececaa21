"""Retrieval both ways: the texts of a slide among all texts, and the slides of a text among all slides.

Shapes: S slides, M texts, D dimensions of their common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .text_metrics import Statistic, mean_of

_ROWS = 1024  # of the cosines at a time: all those of 20 000 slides and texts take 1.6 GB, what is compared as much


@dataclass(frozen=True)
class Cosines:
    """The cosines of queries and candidates, (queries, candidates), of which only some rows are ever in memory.

    Attributes:
        queries: Unit vectors, (queries, D).
        candidates: Unit vectors, (candidates, D).
    """

    queries: np.ndarray
    candidates: np.ndarray

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The cosines of some queries, (rows, candidates)."""
        return self.queries[rows] @ self.candidates.T

    @property
    def T(self) -> Cosines:
        """With queries and candidates exchanged."""
        return Cosines(self.candidates, self.queries)

    def take(self, rows: np.ndarray) -> Cosines:
        """With other queries. rows: their indices."""
        return Cosines(self.queries[rows], self.candidates)


def retrieval_statistics(similarity: Cosines, texts: Sequence[str],
                         references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """Recall at 1, 5, 10 and median rank both ways: from a slide to any of its texts among all different texts, from a
    slide's first text to any slide that has it. Slides with equal texts are all right answers.

    Args:
        similarity: Of S slides and M texts.
        texts: The M different texts.
        references: The texts of each slide, among `texts`.
    """
    number_of = {text: number for number, text in enumerate(texts)}
    texts_of = [[number_of[text] for text in own] for own in references]
    first_text_of = [numbers[0] for numbers in texts_of]
    of_slides = first_hit_ranks(similarity, texts_of)
    of_texts = first_hit_ranks(similarity.T, _slides_with(texts_of, len(texts)))
    return _of_ranks("image_to_text", of_slides) | _of_ranks("text_to_image", of_texts[first_text_of])


def _slides_with(texts_of: Sequence[Sequence[int]], num_texts: int) -> list[list[int]]:
    """Of each text the slides that have it."""
    slides: list[list[int]] = [[] for _ in range(num_texts)]
    for slide, numbers in enumerate(texts_of):
        for number in numbers:
            slides[number].append(slide)
    return slides


def _of_ranks(direction: str, ranks: np.ndarray) -> dict[str, Statistic]:
    """The scores of one direction, of the rank of each slide (S,)."""
    scores = {f"{direction}_r{k}": mean_of(ranks <= k) for k in (1, 5, 10)}
    scores[f"{direction}_median_rank"] = lambda indices: float(np.median(ranks[indices]))
    return scores


def first_hit_ranks(similarity: Cosines, hits: Sequence[Sequence[int]]) -> np.ndarray:
    """Rank from 1 of the most similar hit of each query.

    A wrong candidate just as similar ranks before it, so that equal embeddings for all gain nothing.

    Args:
        similarity: Of queries and candidates.
        hits: The right candidates of each query. A query without one ranks behind all.

    Returns:
        (queries,)
    """
    ranks = np.empty(len(hits), dtype=np.int64)
    for start in range(0, len(hits), _ROWS):
        rows = slice(start, start + _ROWS)
        cosines = similarity[rows]
        right = np.zeros(cosines.shape, dtype=bool)
        for row, columns in enumerate(hits[rows]):
            right[row, columns] = True
        best = np.where(right, cosines, -np.inf).max(1, keepdims=True)
        ranks[rows] = 1 + (~right & (cosines >= best)).sum(1)
    return ranks
