"""The ranking score of the REG2025 challenge: 0.15 (ROUGE + BLEU) + 0.4 keywords + 0.3 embedding.

The formula is on https://reg2025.grand-challenge.org/submission-evaluation; how its parts are computed follows the
organisers' evaluation code as participants republished it (`metric/eval.py`, class `REG_Evaluator`), peculiarities
included, since a number that is to be compared with the challenge's must have them:

- BLEU is the share of the caption's 4-grams, case counting, that the reference has; a 4-gram that occurs n times in
  both counts n times n, so that repetition can bring it above 1. A caption of less than 4 words has 0, even if right.
- ROUGE is the F1 of the longest common subsequence of lower-cased words.
- Words are what stands between white space: a Chinese text is one word. `text_findings` is for those.
- Without a keyword in either text the keyword score is 0.
- A cosine above 0.5 is stretched to 0 to 1, one of 0.5 or less stays as it is: 0.51 counts less than 0.5.

Here a slide with several references is compared with its first one, as the challenge has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .text_metrics import Statistic, longest_common_subsequence, mean_of

KeywordModel = Callable[[str], Iterable[str]]  # a text -> the entities in it
EmbeddingModel = Callable[[str], Sequence[float]]  # a text -> its vector (D,)
_WEIGHTS = {"reg2025_rouge": 0.15, "reg2025_bleu": 0.15, "reg2025_keywords": 0.4, "reg2025_embedding": 0.3}
_SHORTEST_KEYWORD = 3  # characters
_ORDER = 4
_STRETCHED_FROM = 0.5


@dataclass(frozen=True)
class RegModels:
    """What the score needs besides texts. None for a model that is not given: its part and the sum are left out.

    Attributes:
        names: Of the keyword and of the embedding model, for the signature.
    """

    keywords: KeywordModel | None = None
    embedding: EmbeddingModel | None = None
    names: tuple[str, str] = ("none", "none")

    def parts(self) -> dict[str, Callable[[str, str], float]]:
        """{part of the score: its function of (caption, reference)}, of those that can be computed."""
        parts: dict[str, Callable[[str, str], float]] = {"reg2025_rouge": rouge, "reg2025_bleu": bleu}
        if self.keywords:
            keywords = cache(lambda text: keyword_set(self.keywords(text)))
            parts["reg2025_keywords"] = lambda caption, reference: jaccard(keywords(caption), keywords(reference))
        if self.embedding:
            vector = cache(lambda text: np.asarray(self.embedding(text), dtype=float).ravel())
            parts["reg2025_embedding"] = lambda caption, reference: stretched_cosine(vector(caption), vector(reference))
        return parts

    def signature(self) -> str:
        """The models that two comparable scores must share."""
        return f"reg2025:keywords {self.names[0]},embedding {self.names[1]}"


def reg2025_statistics(models: RegModels, captions: Sequence[str],
                       references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """The parts of the score, and the score where both models are given; means over slides."""
    pairs = [(caption, texts[0]) for caption, texts in zip(captions, references, strict=True)]
    parts = {}
    for name, score_pair in models.parts().items():
        parts[name] = np.array([score_pair(caption, reference) for caption, reference in pairs])
    if parts.keys() == _WEIGHTS.keys():
        parts["reg2025"] = sum(weight * parts[name] for name, weight in _WEIGHTS.items())
    return {name: mean_of(values) for name, values in parts.items()}


def rouge(caption: str, reference: str) -> float:
    """F1 of the longest common subsequence of lower-cased words."""
    return subsequence_f1(caption.lower().split(), reference.lower().split())


def subsequence_f1(caption: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of the shares of the longest common subsequence in both."""
    common = longest_common_subsequence(caption, reference)
    return 2 * common / (len(caption) + len(reference)) if common else 0.0


def bleu(caption: str, reference: str) -> float:
    """The challenge's precision of 4-grams; see the head of this module."""
    said, true = _grams(caption.split()), _grams(reference.split())
    total = sum(said.values())
    return sum(count * min(count, true[gram]) for gram, count in said.items()) / total if total else 0.0


def _grams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i:i + _ORDER]) for i in range(len(words) - _ORDER + 1))


def keyword_set(keywords: Iterable[str]) -> frozenset[str]:
    """Keywords as they are compared: of 3 characters or more, lower-cased."""
    return frozenset(keyword.lower() for keyword in keywords if len(keyword) >= _SHORTEST_KEYWORD)


def jaccard(said: frozenset, true: frozenset) -> float:
    """Shared elements over all elements; 0 without any."""
    return len(said & true) / len(said | true) if said | true else 0.0


def stretched_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two vectors (D,), stretched to 0 to 1 where it is above 0.5; 0 for a vector of zeros."""
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(first @ second) / norms if norms else 0.0
    return (cosine - _STRETCHED_FROM) / (1 - _STRETCHED_FROM) if cosine > _STRETCHED_FROM else cosine
