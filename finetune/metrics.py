"""Scores of captions against reference texts that need no tokenizer: whole texts and the phrases of templates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_SEPARATORS = re.compile(r"(?:[，。；、,;\n]|\.(?!\d))+")  # 3.5 cm is one number


def exact_match(captions: Sequence[str], references: Sequence[str]) -> float:
    """Share of captions equal to their reference."""
    return sum(c == r for c, r in zip(captions, references, strict=True)) / len(references)


def phrase_accuracy(captions: Sequence[str], references: Sequence[str]) -> list[float] | None:
    """Accuracy of each phrase by its place, where all references are of one template (equal numbers of phrases)."""
    split = [phrases(r) for r in references]
    count = len(split[0])
    if any(len(s) != count for s in split):
        return None
    written = [phrases(c) for c in captions]
    return [sum(place < len(w) and w[place] == s[place] for w, s in zip(written, split, strict=True)) / len(split)
            for place in range(count)]


def most_common_share(references: Sequence[str]) -> float:
    """Exact match of the dullest captioner there is: the most frequent reference for every slide."""
    return Counter(references).most_common(1)[0][1] / len(references)


def distinct_share(captions: Sequence[str]) -> float:
    """Number of different captions over the number of captions; 1 caption for all slides is a collapsed model."""
    return len(set(captions)) / len(captions)


def phrases(text: str) -> list[str]:
    """The phrases of a text, between Chinese or English punctuation."""
    return [p.strip() for p in _SEPARATORS.split(text) if p.strip()]
