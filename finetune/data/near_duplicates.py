"""Texts that occur on both sides of a split, word for word or nearly so."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

SIMILARITY_THRESHOLD = 0.8  # Jaccard similarity of two texts' character trigrams from which they differ in details only
_MAX_CHARACTERS = 1000  # of a text that are compared
_MAX_CANDIDATES = 50  # training texts that one text is compared with: with 100 000 of one template time is quadratic
_TABLE_SIZE = 1 << 20  # counters of how many texts have a trigram


def count_overlap(texts: Sequence[str], training_texts: Sequence[str]) -> tuple[int, int]:
    """Count the texts that are also training texts. Width, case, white space and punctuation are ignored.

    Near duplicates are texts whose sets of character trigrams have a Jaccard similarity of 0.8 or more. Only texts
    that share one of their rarest trigrams are compared, as sets so similar must share one (prefix filtering,
    https://doi.org/10.1109/ICDE.2006.9): time grows with the number of texts, not with its square.

    Returns:
        (number of exact duplicates, number of other near duplicates).
    """
    known = dict.fromkeys(map(_simplify, training_texts))
    known.pop("", None)
    index = _TrigramIndex(list(known))
    num_exact = num_near = 0
    for text, count in Counter(map(_simplify, texts)).items():
        if text in known:
            num_exact += count
        elif index.has_similar(text):
            num_near += count
    return num_exact, num_near


class _TrigramIndex:
    """Texts by their rarest trigrams."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._frequency = np.zeros(_TABLE_SIZE, np.int64)
        for text in texts:
            self._frequency[_bucket(_trigrams(text))] += 1
        self._texts_with: dict[int, list[int]] = defaultdict(list)  # trigram -> numbers of texts
        for number, text in enumerate(texts):
            for trigram in self._rarest(_trigrams(text)):
                self._texts_with[trigram].append(number)

    def has_similar(self, text: str) -> bool:
        """Whether a text of the index is a near duplicate of `text`."""
        trigrams = _trigrams(text)
        candidates: dict[int, None] = {}  # in order, without repeats
        for trigram in self._rarest(trigrams):
            candidates.update(dict.fromkeys(self._texts_with.get(trigram, [])[:_MAX_CANDIDATES]))
        for number in list(candidates)[:_MAX_CANDIDATES]:
            if _jaccard(trigrams, _trigrams(self._texts[number])) >= SIMILARITY_THRESHOLD:
                return True
        return False

    def _rarest(self, trigrams: np.ndarray) -> list[int]:
        """The trigrams of which two near duplicates must share one: the |x| - ceil(0.8 |x|) + 1 rarest of a set x."""
        count = len(trigrams) - int(np.ceil(SIMILARITY_THRESHOLD * len(trigrams))) + 1
        order = np.lexsort((trigrams, self._frequency[_bucket(trigrams)]))  # by frequency, then by value
        return trigrams[order[:count]].tolist()


def _simplify(text: str) -> str:
    """Reduce a text to what is compared: letters, digits and signs such as +, in one width and case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if unicodedata.category(c)[0] not in "PZC")[:_MAX_CHARACTERS]


def _trigrams(text: str) -> np.ndarray:
    """Sorted set of the trigrams of a text, each packed into one number."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if len(codes) < 3:
        return codes
    return np.unique(codes[:-2] << 42 | codes[1:-1] << 21 | codes[2:])  # a code point has 21 bits


def _bucket(trigrams: np.ndarray) -> np.ndarray:
    """Index of each trigram in the table of frequencies (Fibonacci hashing, to its 20 bits)."""
    return (trigrams * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(44)).astype(np.int64)


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)
