"""What captions get right and wrong, topic by topic: the fields of structured texts, and findings.

A field is what stands behind a key (`分化：低分化`), or, where all texts are of one template, a clause by its position.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .finding_names import finding_label

_CLAUSE_END = re.compile(r"[，。；;\n]|,(?!\d)|\.(?!\d)")
_KEYED = re.compile(r"\s*([^:：]{1,20}?)\s*[:：]\s*(.+)", re.DOTALL)
_ALIKE = 0.8  # share of the texts that must have the same number of clauses, or the key
_MAX_FIELDS = 12
_MAX_VALUES = 8  # rows and columns of a confusion table; the others are one
_COVERED = 0.6  # share of the references whose value must be among them: dates and sizes are not confused
_NOT_SAID = "–"
_OTHER = "…"
PRESENT, ABSENT = "present", "absent"
Text = tuple[str, str]  # Chinese, English
Statuses = dict[str, tuple[str | None, str | None]]  # {finding: (status in the caption, in the references)}


@dataclass(frozen=True)
class Confusion:
    """What captions say where references say something.

    Attributes:
        values: Of the references, the commonest first; then what else there is.
        counts: counts[i][j]: how often the reference says values[i] and the caption values[j].
    """

    name: Text
    values: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class FindingRow:
    """How often captions and references agree about a finding.

    Attributes:
        both: Present in both.
        missed: Present in the reference, not in the caption.
        added: Present in the caption, not in the reference.
        contradicted: One asserts what the other denies; among missed and added.
        absent: Denied by both.
    """

    name: Text
    both: int
    missed: int
    added: int
    contradicted: int
    absent: int


@dataclass(frozen=True)
class Fields:
    """The fields that texts of one kind have.

    Attributes:
        names: Of the fields; none for free texts.
        keys: Behind which they stand; empty where they are known by their position.
    """

    names: list[Text]
    keys: list[str]

    @classmethod
    def of(cls, references: Sequence[str]) -> Fields:
        """The fields that most of the references have."""
        clauses = [_clauses(text) for text in references]
        keys = _common_keys(clauses)
        if keys:
            return cls([(key, key) for key in keys], keys)
        template = _template(clauses)
        return cls([_named_by_values(number, values) for number, values in enumerate(template)], [])

    def values(self, text: str) -> list[str]:
        """The value of each field in a text, "–" for a field that it does not have."""
        clauses = _clauses(text)
        if self.keys:
            values = _by_key(clauses)
            return [values.get(key, _NOT_SAID) for key in self.keys]
        missing = len(self.names) - len(clauses)
        return clauses[:len(self.names)] + [_NOT_SAID] * missing


def _clauses(text: str) -> list[str]:
    parts = (part.strip() for part in _CLAUSE_END.split(text))
    return [part for part in parts if part]


def _common_keys(clauses: Sequence[Sequence[str]]) -> list[str]:
    """The keys that most of the texts have, in the order of their first use."""
    counts: Counter[str] = Counter()
    for parts in clauses:
        counts.update(list(_by_key(parts)))
    return [key for key, count in counts.items() if count >= _ALIKE * len(clauses)][:_MAX_FIELDS]


def _by_key(clauses: Sequence[str]) -> dict[str, str]:
    """{key: value} of the clauses that have a key."""
    values: dict[str, str] = {}
    for clause in clauses:
        match = _KEYED.fullmatch(clause)
        if match:
            values.setdefault(match[1], match[2].strip())
    return values


def _template(clauses: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each position the clauses of all texts, where most texts have the same number of clauses; else none."""
    lengths = Counter(map(len, clauses))
    if not lengths:
        return []
    length, count = lengths.most_common(1)[0]
    if count < _ALIKE * len(clauses) or not 1 < length <= _MAX_FIELDS:
        return []
    return list(zip(*(parts for parts in clauses if len(parts) == length), strict=True))


def _named_by_values(number: int, values: Sequence[str]) -> Text:
    examples = " / ".join(value[:12] for value, _ in Counter(values).most_common(2))
    return f"第 {number + 1} 项：{examples}", f"part {number + 1}: {examples}"


def confusion(name: Text, said: Sequence[str], true: Sequence[str]) -> Confusion | None:
    """The confusion table of a field; None where it has one value only, or too many to be confused.

    Args:
        name: Of the field.
        said, true: Its value in the caption and in the reference of each slide.
    """
    counts = Counter(true)
    common = [value for value, _ in counts.most_common(_MAX_VALUES)]
    if len(common) < 2 or sum(counts[value] for value in common) < _COVERED * len(true):
        return None
    pairs = Counter((_grouped(reference, common), _grouped(caption, common))
                    for caption, reference in zip(said, true, strict=True))
    values = common + ([_OTHER] if any(_OTHER in pair for pair in pairs) else [])
    return Confusion(name, values, [[pairs[row, column] for column in values] for row in values])


def _grouped(value: str, common: Sequence[str]) -> str:
    return value if value in common else _OTHER


def finding_names(records: Sequence[Statuses]) -> list[str]:
    """The findings that a caption or reference asserts, those that references assert most first."""
    counts: Counter[str] = Counter()
    for statuses in records:
        for name, pair in statuses.items():
            if PRESENT in pair:
                counts[name] += pair[1] == PRESENT
    return [name for name, _ in counts.most_common()]


def finding_row(name: str, records: Sequence[Statuses]) -> FindingRow:
    """The row of a finding over all slides."""
    pairs = Counter(statuses.get(name, (None, None)) for statuses in records)
    missed = sum(count for (said, true), count in pairs.items() if true == PRESENT != said)
    added = sum(count for (said, true), count in pairs.items() if said == PRESENT != true)
    contradicted = pairs[PRESENT, ABSENT] + pairs[ABSENT, PRESENT]
    return FindingRow(finding_label(name), pairs[PRESENT, PRESENT], missed, added, contradicted, pairs[ABSENT, ABSENT])


def is_wrong(pair: tuple[str | None, str | None]) -> bool:
    """Whether a caption asserts what its references do not, or the reverse."""
    return (pair[0] == PRESENT) != (pair[1] == PRESENT)


def statuses_of(value: Any) -> Statuses:
    """The findings of a line of a captions file; none of a damaged one."""
    if not isinstance(value, dict):
        return {}
    pairs = {name: tuple(pair) for name, pair in value.items() if isinstance(pair, list) and len(pair) == 2}
    return {name: (said, true) for name, (said, true) in pairs.items() if _is_status(said) and _is_status(true)}


def _is_status(value: Any) -> bool:
    return value is None or isinstance(value, str)
