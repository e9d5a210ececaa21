"""Texts cut at their punctuation, and clauses cut into characters or words, for finding a template in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

_HAN = "\u3400-\u9fff\uf900-\ufaff"
# the end of a clause; a colon is none, as it stands between a question and its answer. A full stop in 3.5 is none
_END = re.compile(rf"(?:\s*(?:[，。；、！？\n]|(?<=[{_HAN}）])[,;.!?]|[,;.!?](?=\s|$|[{_HAN}]))\s*)+")
_SENTENCE = re.compile(rf"(?:\s*(?:[。！？\n]|(?<=[{_HAN}）])[.!?]|[.!?](?=\s|$|[{_HAN}]))\s*)+")
_NOWHERE = re.compile(r"(?!)")
CUTS = (_END, _SENTENCE, _NOWHERE)
_ATOM = re.compile(rf"[{_HAN}]|\d+(?:\.\d+)?|[^\W\d_{_HAN}]+|\s+|.", re.DOTALL)
_LABEL = re.compile(r"[：:]\s*")


@dataclass(frozen=True)
class Clauses:
    """A text cut at its punctuation: text = lead[0] + clause[0] + lead[1] + ... + end; lead[0] is mostly empty."""

    leads: tuple[str, ...]
    clauses: tuple[str, ...]
    end: str

    @cached_property
    def questions(self) -> tuple[str, ...]:
        """Of each clause `question`."""
        return tuple(map(question, self.clauses))

    @classmethod
    def of(cls, text: str, cut: re.Pattern[str] = _END) -> Clauses:
        leads, clauses, position = [""], [], 0
        for match in cut.finditer(text):
            if match.start() == 0:
                leads[0] = match[0]
            else:
                clauses.append(text[position:match.start()])
                leads.append(match[0])
            position = match.end()
        if position < len(text):
            return cls(tuple(leads), (*clauses, text[position:]), "")
        return cls(tuple(leads[:-1]), tuple(clauses), leads[-1])


@lru_cache(1 << 16)
def atoms(text: str) -> tuple[str, ...]:
    """Chinese characters, words and numbers of other scripts, signs: a value begins and ends between two of them."""
    return tuple(_ATOM.findall(text))


def question(clause: str) -> str:
    """`脉管侵犯：` of `脉管侵犯：有`, as that is one clause whatever its answer; a clause without a colon itself."""
    match = _LABEL.search(clause)
    return clause[:match.end()] if match else clause


def likeness(one: str, other: str) -> float:
    """Share of their different atoms that both have, 0 to 1 (Dice)."""
    first, second = _atom_set(one), _atom_set(other)
    return 2 * len(first & second) / (len(first) + len(second))


@lru_cache(1 << 16)
def _atom_set(text: str) -> frozenset[str]:
    return frozenset(atoms(text))


def common_beginning(texts: Iterable[str]) -> str:
    """The longest beginning of whole atoms that all have."""
    return "".join(_common([atoms(text) for text in texts]))


def common_end(texts: Iterable[str]) -> str:
    """The longest end of whole atoms that all have."""
    return "".join(_common([atoms(text)[::-1] for text in texts])[::-1])


def _common(sequences: Sequence[Sequence[str]]) -> Sequence[str]:
    if not sequences:
        return ()
    first, last = min(sequences), max(sequences)  # what these two share all have
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]
