"""Findings in a report: present, absent, uncertain or not mentioned.

A rule-based reader of phrases in the manner of NegEx (Chapman et al. 2001, https://doi.org/10.1006/jbin.2001.1029) for
Chinese and English: a negation reaches the phrases of its own clause. A caption may share every token with its
reference and say the opposite; here that is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.files import expand
from ..config.yaml_file import load_plain_yaml
from .assertions import statements
from .finding_terms import Kind, Term, mentions
from .report_cues import folded
from .report_scope import ABSENT, PRESENT, UNCERTAIN
from .text_metrics import Statistic, mean_of

SHIPPED = Path(__file__).parent / "dictionaries"
_WEIGHT = {PRESENT: 3, ABSENT: 2, UNCERTAIN: 1}
_ENTRY_FORMAT = "write finding: {phrases: [...], negations: [...], uncertain: [...], questions: [...], ignore: [...]}"
_TEXTS_KEPT = 1 << 16  # of 1 kB or so with their findings: captions change from epoch to epoch
_FOR_ALL = ""  # no finding has this name
_DANGEROUS, _DISTINCT = "dangerous", "distinct"  # keys beside the findings, as `ignore` is
_KINDS = {"phrases": Kind.NAME, "negations": Kind.DENIAL, "uncertain": Kind.DOUBT, "questions": Kind.QUESTION,
          "ignore": Kind.IGNORED}


@dataclass(frozen=True, eq=False)  # two are never equal: caches know them by identity
class FindingDictionary:
    """The terms of each finding, and those in which no finding is meant.

    Attributes:
        findings: {finding: its terms}.
        ignored: Terms in which none is meant.
        dangerous: The findings that are dangerous to assert or deny wrongly.
        distinct: {folded term: its meaning}, of terms that say more than that their finding is there.
    """

    findings: dict[str, list[Term]]
    ignored: list[Term]
    dangerous: frozenset[str] = frozenset()
    distinct: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, names: Iterable[str]) -> FindingDictionary:
        """Read YAML files of {finding: {phrases: [...], and if need be the other keys}}.

        `phrases` name the finding, `negations` deny it outright as `HER2(0)` does, `uncertain` leave it open as
        `HER2(2+)` does, `questions` say nothing without an answer (`ER: 90%`, `切缘:阴性`), and what is in `ignore`
        contains one of the others and means something else (`nuclear grade 3`). An `ignore` beside the findings is for
        all of them. Beside them may also stand `dangerous: [finding, ...]`, and `distinct: [[phrase, ...], ...]`:
        phrases of one finding with another meaning than its other phrases, those of a list with the same meaning.

        A finding that is in several files has the terms of all. In a term a blank is any white space or colon or none,
        and `…` is up to 12 characters of the same clause.

        Args:
            names: Paths, or names of shipped dictionaries.

        Raises:
            UserError: For a missing or unusable file.
        """
        terms: dict[str, list[Term]] = {}
        dangerous: set[str] = set()
        distinct: dict[str, str] = {}
        for path in map(_dictionary_path, names):
            content = load_plain_yaml(path, _ENTRY_FORMAT)
            for finding, entry in _entries(content, path):
                terms.setdefault(finding, []).extend(_terms_of(finding, entry))
            dangerous.update(_names_beside(content, path))
            distinct |= _distinct_beside(content, path)
        ignored = terms.pop(_FOR_ALL, [])
        return cls(terms, ignored, frozenset(dangerous), distinct)

    @classmethod
    def shipped(cls) -> FindingDictionary:
        """All shipped dictionaries as one, the same object each time."""
        return _shipped()

    @cached_property
    def read(self) -> Callable[[str], dict[str, str]]:
        """Reads {finding: present, absent or uncertain} of those a text mentions.

        An assertion in one clause outweighs negations in others: cancer in the stomach, none at its margin, is cancer.
        References are read once for all baselines and epochs.
        """
        return lru_cache(_TEXTS_KEPT)(self._read)

    def _read(self, text: str) -> dict[str, str]:
        text = folded(text)
        result: dict[str, str] = {}
        for statement in statements(text, mentions(text, self.findings, self.ignored)):
            finding, status = statement.mention.finding, statement.status
            if _WEIGHT[status] > _WEIGHT.get(result.get(finding), 0):
                result[finding] = status
        return result


def finding_statistics(dictionary: FindingDictionary, captions: Sequence[str],
                       references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """Precision and recall of presence and of absence over all findings, and contradictions per slide: the caption
    asserts what the reference denies, or the reverse."""
    pairs = _read_pairs(dictionary, captions, references)
    scores: dict[str, Statistic] = {}
    for status, name in ((PRESENT, "presence"), (ABSENT, "absence")):
        agreed = [sum(c.get(finding) == status for finding, s in r.items() if s == status) for c, r in pairs]
        scores[f"finding_{name}_precision"] = _ratio(agreed, [_count(c, status) for c, _ in pairs])
        scores[f"finding_{name}_recall"] = _ratio(agreed, [_count(r, status) for _, r in pairs])
    scores["finding_contradictions"] = mean_of([_contradictions(c, r) for c, r in pairs])
    return scores


def findings_table(dictionary: FindingDictionary, captions: Sequence[str],
                   references: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Per finding that a caption or reference mentions: counts, precision, recall of its presence, contradictions."""
    pairs = _read_pairs(dictionary, captions, references)
    table = {}
    for name in dictionary.findings:
        statuses = [(caption.get(name), reference.get(name)) for caption, reference in pairs]
        if any(pair != (None, None) for pair in statuses):
            table[name] = _table_row(statuses)
    return table


def _table_row(statuses: Sequence[tuple[str | None, str | None]]) -> dict[str, Any]:
    """A row of the table from the statuses of one finding in (caption, reference) of each slide."""
    in_captions = [caption for caption, _ in statuses].count(PRESENT)
    in_references = [reference for _, reference in statuses].count(PRESENT)
    agreed = statuses.count((PRESENT, PRESENT))
    return {
        "present": in_references,
        "absent": [reference for _, reference in statuses].count(ABSENT),
        "precision": agreed / in_captions if in_captions else None,
        "recall": agreed / in_references if in_references else None,
        "contradictions": sum(contradicts(caption, reference) for caption, reference in statuses),
    }


def contradicts(caption: str | None, reference: str | None) -> bool:
    """Whether one asserts what the other denies."""
    return {caption, reference} == {PRESENT, ABSENT}


def _contradictions(caption: dict[str, str], reference: dict[str, str]) -> int:
    return sum(contradicts(status, reference.get(finding)) for finding, status in caption.items())


def _count(statuses: dict[str, str], status: str) -> int:
    return list(statuses.values()).count(status)


def _ratio(parts: Sequence[int], wholes: Sequence[int]) -> Statistic:
    """The sum of the parts over the sum of the wholes, one of each per slide; NaN where that is 0 over 0."""
    part, whole = np.array(parts, dtype=float), np.array(wholes, dtype=float)

    def ratio(indices: np.ndarray) -> float:
        total = whole[indices].sum()
        return float(part[indices].sum() / total) if total else math.nan

    return ratio


def _read_pairs(dictionary: FindingDictionary, captions: Sequence[str],
                references: Sequence[Sequence[str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """What the caption and the references of each slide say."""
    return [(dictionary.read(caption), dictionary.read("\n".join(texts)))
            for caption, texts in zip(captions, references, strict=True)]


def _dictionary_path(name: str) -> Path:
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if shipped.is_file() else expand(name)
    if not path.is_file():
        names = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
        raise UserError(name, "no such dictionary", f"give a YAML file or one of {', '.join(names)}")
    return path


def _entries(content: Any, path: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    if not isinstance(content, dict):
        raise UserError(path, "is not a dictionary of findings", _ENTRY_FORMAT)
    entries = {finding: entry for finding, entry in content.items() if finding not in (_DANGEROUS, _DISTINCT)}
    for finding, entry in entries.items():
        if finding == "ignore" and _is_phrases(entry):
            yield _FOR_ALL, {"ignore": entry}
            continue
        if not _is_entry(entry):
            raise UserError(path, f"finding {finding!r} has no usable phrases", _ENTRY_FORMAT)
        yield finding, entry


def _terms_of(finding: str, entry: dict[str, list[str]]) -> Iterator[Term]:
    for key, phrases in entry.items():
        for phrase in dict.fromkeys(phrases):
            yield Term.of(finding, _KINDS[key], phrase)


def _names_beside(content: dict[str, Any], path: Path) -> list[str]:
    """`dangerous` of a dictionary. Raises UserError for one that is no list of its findings."""
    names = content.get(_DANGEROUS, [])
    if not isinstance(names, list) or not set(map(str, names)) <= content.keys():
        raise UserError(path, f"{_DANGEROUS} is no list of its findings", f"write {_DANGEROUS}: [finding, ...]")
    return names


def _phrases_beside(content: dict[str, Any], path: Path) -> list[list[str]]:
    """`distinct` of a dictionary. Raises UserError for one that is no list of lists of phrases."""
    groups = content.get(_DISTINCT, [])
    if not isinstance(groups, list) or not all(map(_is_phrases, groups)) or not all(groups):
        raise UserError(path, f"{_DISTINCT} is no list of lists of phrases", f"write {_DISTINCT}: [[phrase, ...], ...]")
    return groups


def _distinct_beside(content: dict[str, Any], path: Path) -> dict[str, str]:
    """{folded phrase of `distinct`: the first phrase with its meaning}."""
    meanings: dict[str, str] = {}
    for phrases in _phrases_beside(content, path):
        meanings |= {Term.of("", Kind.NAME, phrase).folded: phrases[0] for phrase in phrases}
    return meanings


@cache
def _shipped() -> FindingDictionary:
    return FindingDictionary.load(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not entry.keys() <= _KINDS.keys():
        return False
    if not (entry.get("phrases") or entry.get("questions")):
        return False
    return all(map(_is_phrases, entry.values()))


def _is_phrases(phrases: Any) -> bool:
    return isinstance(phrases, list) and all(isinstance(phrase, str) and phrase.strip(" …") for phrase in phrases)
