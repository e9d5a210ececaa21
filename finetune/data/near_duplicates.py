"""Texts that stand on both sides of a split, word for word or nearly so."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

_NEAR = 0.8  # Jaccard similarity of two texts' character trigrams from which they count as the same but for details
_LONGEST = 1000  # characters of a text that are compared
_CANDIDATES = 50  # training texts that one validation text is compared with: 100 000 templates would be quadratic
_TABLE = 1 << 20  # counters of how many texts have a trigram


def overlap(texts: Sequence[str], trained: Sequence[str]) -> tuple[int, int]:
    """(how many of `texts` are among `trained` word for word, how many others nearly are).

    Width, case, blanks and punctuation do not count. Near: the Jaccard similarity of the sets of character trigrams is
    0.8 or more. Candidates share one of the rarest trigrams, as sets so similar must (prefix filtering, Chaudhuri et
    al. 2006), so that time grows with the number of texts, not with its square.
    """
    known = {plain: None for t in trained if (plain := _plain(t))}  # in order, without repeats
    wanted = [_plain(t) for t in texts]
    exact = [t in known for t in wanted]
    distinct = list(known)
    frequency = np.zeros(_TABLE, np.int64)
    for text in distinct:
        frequency[_bucket(_trigrams(text))] += 1
    places: dict[int, list[int]] = defaultdict(list)
    for number, text in enumerate(distinct):
        for trigram in _rarest(_trigrams(text), frequency):
            places[trigram].append(number)
    near: dict[str, bool] = {}
    for text, found in zip(wanted, exact, strict=True):
        if not found and text not in near:
            mine = _trigrams(text)
            candidates = dict.fromkeys(n for trigram in _rarest(mine, frequency)
                                       for n in places.get(trigram, ())[:_CANDIDATES])
            near[text] = any(_jaccard(mine, _trigrams(distinct[n])) >= _NEAR for n in list(candidates)[:_CANDIDATES])
    return sum(exact), sum(near.get(t, False) for t in wanted)


def _plain(text: str) -> str:
    """What of a text is compared: letters, digits and signs such as +, in one width and case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if unicodedata.category(c)[0] not in "PZC")[:_LONGEST]


def _trigrams(text: str) -> np.ndarray:
    """Sorted set of the trigrams of a text, each as one number."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if len(codes) < 3:
        return codes
    return np.unique(codes[:-2] << 42 | codes[1:-1] << 21 | codes[2:])  # a code point has 21 bits


def _bucket(trigrams: np.ndarray) -> np.ndarray:
    """Where in the table of frequencies they are counted (Fibonacci hashing, to its 20 bits)."""
    return (trigrams * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(44)).astype(np.int64)


def _rarest(trigrams: np.ndarray, frequency: np.ndarray) -> list[int]:
    """Those of which two sets as similar as _NEAR share one: the first |x| - ceil(0.8 |x|) + 1 in an order of all."""
    count = len(trigrams) - int(np.ceil(_NEAR * len(trigrams))) + 1
    order = np.lexsort((trigrams, frequency[_bucket(trigrams)]))
    return trigrams[order[:count]].tolist()


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)
