"""Texts that occur on both sides of a split, word for word or nearly so."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SIMILARITY_THRESHOLD = 0.8  # Jaccard similarity of two texts' character trigrams from which they differ in details only
_MAX_CHARACTERS = 1000  # of a text that are compared
_MAX_CANDIDATES = 50  # training texts that one text is compared with: with 100 000 of one template time is quadratic
_SKETCH_BITS = 1 << 12
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


def near_duplicate_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Texts that are alike another, as in `count_overlap`.

    Returns:
        (number of a text, number of an earlier one) for each text that equals an earlier one but for width, case, white
        space and punctuation, or is a near duplicate of one; of several earlier ones, the first that is found.
    """
    simple = list(map(_simplify, texts))
    first: dict[str, int] = {}
    for number, text in enumerate(simple):
        first.setdefault(text, number)
    first.pop("", None)
    index, number_of = _TrigramIndex(list(first)), list(first.values())
    place_of = {number: place for place, number in enumerate(number_of)}
    pairs = []
    for number, text in enumerate(simple):
        if not text:
            continue
        earlier = first[text]
        if earlier == number:
            earlier = number_of[index.first_similar(place_of[number])]
        if earlier < number:
            pairs.append((number, earlier))
    return pairs


class _Sketch(NamedTuple):
    """What is kept of the set of trigrams of a text: its size, the rarest of it, and a bit for each hash in it."""

    size: int
    rarest: np.ndarray
    bits: int

    def may_be_similar(self, other: _Sketch) -> bool:
        """False if the two sets differ in more trigrams than near duplicates may.

        Each bit that differs is a trigram of only one of the sets (bitmap filter, https://doi.org/10.1016/j.is.2019.101449).
        """
        most = (1 - SIMILARITY_THRESHOLD) / (1 + SIMILARITY_THRESHOLD) * (self.size + other.size)
        return (self.bits ^ other.bits).bit_count() <= most + 1e-6  # rounding must not exclude a pair at the threshold


class _TrigramIndex:
    """Texts by their rarest trigrams."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._frequency = np.zeros(_TABLE_SIZE, np.int64)
        trigrams = list(map(_trigrams, texts))
        for trigrams_of_text in trigrams:
            self._frequency[_bucket(trigrams_of_text)] += 1
        self._sketches = list(map(self._sketch, trigrams))
        self._texts_with: dict[int, list[int]] = defaultdict(list)  # trigram -> numbers of texts
        for number, sketch in enumerate(self._sketches):
            for trigram in sketch.rarest.tolist():
                self._texts_with[trigram].append(number)

    def has_similar(self, text: str) -> bool:
        """Whether a text of the index is a near duplicate of `text`."""
        return next(self._similar(text, self._sketch(_trigrams(text))), None) is not None

    def first_similar(self, number: int) -> int:
        """The number of an earlier text of the index that is a near duplicate of text `number`; else `number`."""
        similar = self._similar(self._texts[number], self._sketches[number])
        return next((other for other in similar if other < number), number)

    def _similar(self, text: str, sketch: _Sketch) -> Iterator[int]:
        candidates: dict[int, None] = {}  # in order, without repeats
        for trigram in sketch.rarest.tolist():
            candidates.update(dict.fromkeys(self._texts_with.get(trigram, [])[:_MAX_CANDIDATES]))
        trigrams = None
        for number in list(candidates)[:_MAX_CANDIDATES]:
            if sketch.may_be_similar(self._sketches[number]):
                trigrams = _trigrams(text) if trigrams is None else trigrams
                if _jaccard(trigrams, _trigrams(self._texts[number])) >= SIMILARITY_THRESHOLD:
                    yield number

    def _sketch(self, trigrams: np.ndarray) -> _Sketch:
        hashes = np.zeros(_SKETCH_BITS, np.uint8)
        hashes[_bucket(trigrams) % _SKETCH_BITS] = 1
        bits = int.from_bytes(np.packbits(hashes).tobytes(), "big")
        # The trigrams of which two near duplicates must share one: the |x| - ceil(0.8 |x|) + 1 rarest of a set x
        count = len(trigrams) - int(np.ceil(SIMILARITY_THRESHOLD * len(trigrams))) + 1
        order = np.lexsort((trigrams, self._frequency[_bucket(trigrams)]))  # by frequency, then by value
        return _Sketch(len(trigrams), trigrams[order[:count]], bits)


class _Compared(dict[int, int | None]):
    """For `str.translate`: each code point itself, or None for punctuation, white space and control characters."""

    def __missing__(self, code: int) -> int | None:
        is_compared = unicodedata.category(chr(code))[0] not in "PZC"
        self[code] = code if is_compared else None
        return self[code]


_COMPARED = _Compared()


def _simplify(text: str) -> str:
    """Reduce a text to what is compared: letters, digits and signs such as +, in one width and case."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_COMPARED)[:_MAX_CHARACTERS]


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
