"""Where a text names the findings of a dictionary."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from .report_cues import folded_term

_GAP = "\0"  # stands for `…`, which NFKC would turn into three full stops
# Up to 12 characters of the same clause, a bracket counting as one; `淋巴结15枚,均未见癌转移` is one clause
_GAP_PATTERN = r"((?:\([^()\n]{0,60}\)|[^()\n;。!?,.]|,(?= ?(?:[均皆都]|其中))|\.(?=\d)){0,12}?)"
# `lymphovascular or perineural invasion` names both: up to three other words may stand before the last one
_COORDINATION = r"(?:(?: ?(?:,|/|&|、|\band/or\b|\band\b|\bor\b)){1,2} ?[a-z-]+){0,3}?"

_TWO_WORDS = re.compile(r"(?:^|[ \0])[a-z-]{4,} [a-z-]{4,}$")
_FIRST_OF_WORD, _FIRST_OF_NUMBER, _END_OF_WORD = r"(?<![a-z])", r"(?<![a-z0-9])", r"(?![a-z0-9])"  # `4/20LN`


class Kind(IntEnum):
    """What a term says by itself, the stronger ones first."""

    IGNORED = 0  # a term that contains another one and means something else
    DENIAL = 1
    DOUBT = 2
    NAME = 3
    QUESTION = 4  # says nothing without an answer


@dataclass(frozen=True)
class Term:
    """A way to write a finding.

    Attributes:
        folded: In the form of a folded text, with a gap for `…`.
        literal: A piece of every text that has it.
    """

    finding: str
    kind: Kind
    folded: str
    literal: str

    @classmethod
    def of(cls, finding: str, kind: Kind, phrase: str) -> Term:
        """From the phrase of a dictionary: a blank is a blank or colon or none, `…` up to 12 characters, and Latin
        words are matched whole."""
        text = folded_term(phrase.replace("…", _GAP)).strip()
        literal = max(re.split(r"[\s\0(]+", text), key=len)
        return cls(finding, kind, text, literal)

    @cached_property  # few of a dictionary's terms are in a text that is read
    def pattern(self) -> re.Pattern[str]:
        """Of the folded text; each `…` of the term is a group."""
        return re.compile(_pattern(self.folded))


@dataclass(frozen=True)
class Mention:
    """A term in a text: its place, and what stands for its `…`."""

    start: int
    end: int
    term: Term
    gaps: tuple[tuple[int, int], ...]

    @property
    def finding(self) -> str:
        return self.term.finding

    @property
    def kind(self) -> Kind:
        return self.term.kind


def mentions(text: str, terms: Mapping[str, Sequence[Term]], ignored: Sequence[Term] = ()) -> list[Mention]:
    """The terms in a folded text by place. Those of a finding do not overlap: the stronger kind wins, then the longer.

    Args:
        text: The folded text.
        terms: The terms of each finding.
        ignored: A term within one of these, and shorter, is none.
    """
    hidden = sorted(_of_one_finding(text, ignored), key=lambda mention: mention.start)
    begins = [mention.start for mention in hidden]
    found: list[Mention] = [*hidden]
    for own in terms.values():
        for mention in _of_one_finding(text, own):
            place = bisect_right(begins, mention.start) - 1
            if place < 0 or not _is_part(mention, hidden[place]):
                found.append(mention)
    return sorted(found, key=lambda mention: (mention.start, -mention.end))


def _is_part(mention: Mention, other: Mention) -> bool:
    return mention.end <= other.end and mention.end - mention.start < other.end - other.start


def _of_one_finding(text: str, terms: Iterable[Term]) -> Iterator[Mention]:
    present = [term for term in terms if term.literal in text]  # most terms are not in a text: this is what takes time
    candidates = [Mention(match.start(), match.end(), term, _gaps(match))
                  for term in present for match in term.pattern.finditer(text)]
    candidates.sort(key=lambda mention: (mention.kind, mention.start - mention.end, mention.start, len(mention.gaps)))
    taken: list[tuple[int, int]] = []  # by place, disjoint
    for mention in candidates:
        place = bisect_left(taken, (mention.end, 0))  # the first that begins at its end or later
        if place == 0 or taken[place - 1][1] <= mention.start:
            taken.insert(place, (mention.start, mention.end))
            yield mention


def _gaps(match: re.Match[str]) -> tuple[tuple[int, int], ...]:
    return tuple(match.span(number) for number in range(1, (match.re.groups or 0) + 1))


def _pattern(text: str) -> str:
    """The pattern of a folded term."""
    pattern = re.sub(r"(?:\\ )+", "[ :]*", re.escape(text))
    pattern = pattern.replace(r"\(", r"[ :]*\( *").replace(re.escape(_GAP), _GAP_PATTERN)
    if _TWO_WORDS.search(text):
        head, _, last = pattern.rpartition("[ :]*")
        pattern = rf"{head}{_COORDINATION}[ :]*{last}"
    first = _FIRST_OF_NUMBER if text[0].isdecimal() else _FIRST_OF_WORD
    return first * _is_latin(text[0]) + pattern + _END_OF_WORD * (_is_latin(text[-1]) or text[-1] == "-")


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
