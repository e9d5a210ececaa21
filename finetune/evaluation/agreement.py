"""Whether a caption may stand for its reference: acceptable, and safe.

With the share of equal texts (`exact_match`, strict) these are three levels that one can report to a hospital. The idea
of reporting strict, acceptable and safe is HiPath's (https://arxiv.org/abs/2603.19957); the definitions are ours:

- acceptable: equal to a reference once each finding is called by one name, in any order of the clauses.
- safe: no dangerous contradiction. Neither denies what the other asserts of a finding that the dictionary, or our list
  for every organ, calls dangerous (invasion, metastasis, margins), nor is one malignant and the other not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from .assertions import statements
from .finding_terms import Kind, Mention, mentions
from .findings import ABSENT, PRESENT, FindingDictionary, contradicts
from .report_cues import Cue, folded, marks
from .text_metrics import Statistic, mean_of

_MALIGNANCY_FILE = Path(__file__).parent / "malignancy.yaml"
_MALIGNANCY, _BENIGN, _TUMOR = "malignancy", "benign", "tumor"
_CLAUSE_END = re.compile(r"[,;。!\n]|\.(?!\d)")
_NO_CONTENT = re.compile(r"[\s:()·、/\-]+")  # between a finding and its answer
# Cues that say something besides the status of a finding
_CONTENT = {Cue.FIXED, Cue.NUMBER, Cue.ZERO, Cue.PLACE, Cue.DENIES_NEXT}
_SIGNS = {Cue.OPEN, Cue.CLOSE, Cue.END, Cue.COMMA, Cue.COLON, Cue.DASH}


class Meaning(NamedTuple):
    """What a text says, whatever words it uses for findings.

    Attributes:
        findings: (name, status) of all statements; a term of another meaning than its finding's adds it to the name.
        others: Clauses with more in them than findings and their status, findings by name.
    """

    findings: frozenset[tuple[str, str]]
    others: frozenset[tuple[str, int]]


def agreement_statistics(dictionary: FindingDictionary, captions: Sequence[str],
                         references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """Shares of acceptable and of safe captions.

    Args:
        dictionary: The findings and their synonyms.
        captions: One per slide.
        references: One or more texts per slide.
    """
    pairs = list(zip(captions, references, strict=True))
    return {"acceptable_match": mean_of([is_acceptable(dictionary, c, texts) for c, texts in pairs]),
            "safe_match": mean_of([is_safe(dictionary, c, texts) for c, texts in pairs])}


def is_acceptable(dictionary: FindingDictionary, caption: str, references: Iterable[str]) -> bool:
    """Whether a caption says what a reference says, synonyms of findings and the order of clauses aside."""
    said = None
    for text in references:
        if caption == text:
            return True
        said = said or meaning(dictionary, caption)
        if said == meaning(dictionary, text):
            return True
    return False


def is_safe(dictionary: FindingDictionary, caption: str, references: Sequence[str]) -> bool:
    """Whether a caption does not contradict its references in anything dangerous. An acceptable one never does."""
    text = "\n".join(references)
    if _reverses_danger(dictionary, caption, text):
        return False
    is_reversed = _reverses_danger(_general(), caption, text) or contradicts(malignancy(caption), malignancy(text))
    return not is_reversed or is_acceptable(dictionary, caption, references)


def _reverses_danger(dictionary: FindingDictionary, caption: str, text: str) -> bool:
    """Whether one text asserts a dangerous finding that the other denies."""
    said, true = dictionary.read(caption), dictionary.read(text)
    return any(contradicts(said.get(name), true.get(name)) for name in dictionary.dangerous)


def malignancy(text: str) -> str | None:
    """Whether a text says that there is a malignant tumour: present, absent, uncertain, or None where it says nothing.

    A benign diagnosis, or that there is no tumour, says that there is none, where no malignant one stands beside it.
    """
    found = _general().read(text)
    if _MALIGNANCY in found:
        return found[_MALIGNANCY]
    return ABSENT if found.get(_BENIGN) == PRESENT or found.get(_TUMOR) == ABSENT else None


@cache
def _general() -> FindingDictionary:
    """What counts in every organ."""
    return FindingDictionary.load([str(_MALIGNANCY_FILE)])


@lru_cache(1 << 14)  # references come again in each column of a table and each epoch
def meaning(dictionary: FindingDictionary, text: str) -> Meaning:
    """What a text says: equal for texts that differ only in synonyms, in the order of clauses and in their ends."""
    text = folded(text)
    found = mentions(text, dictionary.findings, dictionary.ignored)
    named = [mention for mention in found if mention.kind != Kind.IGNORED]
    said = frozenset((_name(dictionary, statement.mention), statement.status) for statement in statements(text, found))
    others = Counter(_other_clauses(text, [(mention, _name(dictionary, mention)) for mention in named]))
    return Meaning(said, frozenset(others.items()))


def _name(dictionary: FindingDictionary, mention: Mention) -> str:
    distinct = dictionary.distinct.get(mention.term.folded)
    return mention.finding if distinct is None else f"{mention.finding}={distinct}"


def _other_clauses(text: str, named: Sequence[tuple[Mention, str]]) -> list[str]:
    """The clauses that say more than findings and their status, with names in place of the terms."""
    names_at = _names_by_place(named)
    cues = _places_of_cues(text)
    clauses = [(begin, end) for begin, end in _clauses(text, names_at.keys()) if text[begin:end].strip()]
    return [_renamed(text, *clause, names_at) for clause in clauses if _says_more(text, clause, names_at.keys(), cues)]


def _says_more(text: str, clause: tuple[int, int], named: Set[int], cues: Set[int]) -> bool:
    """Whether a clause has more in it than findings and their status: all of one that names none, as the second one of
    `EBER检测，阴性`."""
    places = range(*clause)
    if named.isdisjoint(places):
        return True
    rest = (text[place] for place in places if place not in named and place not in cues)
    return bool(_NO_CONTENT.sub("", "".join(rest)))


def _names_by_place(named: Sequence[tuple[Mention, str]]) -> dict[int, set[str]]:
    """{place in the text: the findings that a term there names}"""
    names_at: dict[int, set[str]] = {}
    for mention, name in named:
        for place in _fixed_places(mention):
            names_at.setdefault(place, set()).add(name)
    return names_at


def _places_of_cues(text: str) -> set[int]:
    """The places of the words that tell the status of a finding, and nothing else."""
    places: set[int] = set()
    for mark in marks(text):
        if mark.cue not in _CONTENT | _SIGNS:
            places.update(range(mark.start, mark.end))
    return places


def _clauses(text: str, within_terms: Iterable[int]) -> list[tuple[int, int]]:
    """(begin, end) of the clauses of a text; punctuation within a term ends none."""
    inside, clauses, begin = set(within_terms), [], 0
    for match in _CLAUSE_END.finditer(text):
        if match.start() not in inside:
            clauses.append((begin, match.start()))
            begin = match.end()
    return [*clauses, (begin, len(text))]


def _renamed(text: str, begin: int, end: int, names_at: dict[int, set[str]]) -> str:
    """A clause with the names of its findings in place of their terms, without white space."""
    parts: list[str] = []
    for place in range(begin, end):
        names = names_at.get(place)
        part = f"<{'+'.join(sorted(names))}>" if names else text[place].strip()
        if not (names and parts and parts[-1] == part):
            parts.append(part)
    return "".join(parts)


def _fixed_places(mention: Mention) -> Iterable[int]:
    """The places of a term's own characters: what stands for its `…` is no part of a synonym."""
    in_gaps = {place for begin, end in mention.gaps for place in range(begin, end)}
    return (place for place in range(mention.start, mention.end) if place not in in_gaps)
