"""The captions of the report: a table of all of them for captions.js, and where they are wrong.

The texts of 20 000 slides would make a page of tens of megabytes: each different text is in it once, deflated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.run_folder import Record
from ..common.score_table import SCORES, canonical_name
from .chinese import reasons_in_words
from .drawable import finite_or_nan, has_epoch
from .finding_names import finding_label
from .html import packed
from .score_notes import note
from .topics import (
    Confusion,
    Fields,
    FindingRow,
    Statuses,
    Text,
    confusion,
    finding_names,
    finding_row,
    is_wrong,
    statuses_of,
)

MAX_CHARACTERS = 1500  # of a text on the page
_MAX_PACKED = 4_000_000  # characters: with charts and tables the page stays below 5 MB
_SAMPLE = 500  # rows that tell how well the others can be deflated
_DIGITS = 3


@dataclass(frozen=True)
class CaptionTable:
    """The newest captions of a run.

    Attributes:
        epoch: They were written after it.
        packed: What captions.js unpacks, those least like their references first.
        num_rows: Of `packed`.
        num_captions, num_right: All of them, and those equal to a reference.
        num_cut: Those that did not end by themselves.
        confusions: Of the fields of the texts, if they have fields.
        findings: Of the shipped dictionaries.
    """

    epoch: int
    packed: str
    num_rows: int
    num_captions: int
    num_right: int
    num_cut: int
    confusions: list[Confusion]
    findings: list[FindingRow]


@dataclass(frozen=True)
class _Row:
    """A line of a captions file."""

    slide_id: str
    caption: str
    references: list[str]
    scores: dict[str, float]
    confidence: float
    is_cut: bool
    statuses: Statuses
    unusual: str  # why its slide is, empty if it is not

    @property
    def is_right(self) -> bool:
        return self.caption in self.references

    @property
    def order(self) -> tuple[float, str]:
        """ROUGE-L; where a file has none, 1 for a caption that equals a reference and 0 for any other."""
        likeness = self.scores.get("rouge_l", math.nan)
        return float(self.is_right) if math.isnan(likeness) else likeness, self.slide_id


def caption_table(records: Iterable[Record]) -> CaptionTable | None:
    """The captions of the newest epoch in a captions file; None if there are none."""
    epoch, rows = _newest(records)
    if not rows:
        return None
    rows.sort(key=lambda row: row.order)
    fields = Fields.of([row.references[0] for row in rows])
    findings = finding_names([row.statuses for row in rows])
    said, true = _field_values(fields, rows)
    topics = [*fields.names, *map(finding_label, findings)]
    text, num_rows = _packed_rows(rows, topics, _wrong_topics(rows, said, true, findings))
    return CaptionTable(
        epoch, text, num_rows, len(rows),
        num_right=sum(row.is_right for row in rows),
        num_cut=sum(row.is_cut for row in rows),
        confusions=_confusions(fields, said, true),
        findings=_finding_rows(rows, findings))


def _newest(records: Iterable[Record]) -> tuple[int, list[_Row]]:
    """(the newest epoch, its rows)."""
    newest, rows = 0, []
    for record in records:
        if not _is_usable(record) or record["epoch"] < newest:
            continue
        if record["epoch"] > newest:
            newest, rows = record["epoch"], []
        rows.append(_row(record))
    return newest, rows


def _is_usable(record: Record) -> bool:
    references = record.get("references")
    has_references = isinstance(references, list) and len(references) > 0
    return has_epoch(record) and isinstance(record.get("caption"), str) and has_references


def _row(record: Record) -> _Row:
    return _Row(str(record.get("id")), record["caption"], [str(text) for text in record["references"]],
                _scores(record.get("scores")), finite_or_nan(record.get("confidence")),
                record.get("finished") is False, statuses_of(record.get("findings")),
                str(record.get("unusual_reason") or ""))


def _scores(scores: Any) -> dict[str, float]:
    if not isinstance(scores, dict):
        return {}
    return {canonical_name(name): finite_or_nan(value) for name, value in scores.items()}


def _field_values(fields: Fields, rows: Sequence[_Row]) -> tuple[list[list[str]], list[list[str]]]:
    """The values of the fields in the captions, and in the first references."""
    said = [fields.values(row.caption) for row in rows]
    true = [fields.values(row.references[0]) for row in rows]
    return said, true


def _finding_rows(rows: Sequence[_Row], names: Sequence[str]) -> list[FindingRow]:
    statuses = [row.statuses for row in rows]
    return [finding_row(name, statuses) for name in names]


def _wrong_topics(rows: Sequence[_Row], said: Sequence[Sequence[str]], true: Sequence[Sequence[str]],
                  findings: Sequence[str]) -> list[list[int]]:
    """For each row the numbers of the topics that are wrong: fields first, then findings."""
    wrong = []
    for row, in_caption, in_reference in zip(rows, said, true, strict=True):
        num_fields = len(in_reference)
        wrong.append(_differing(in_caption, in_reference) + _wrong_findings(row.statuses, findings, num_fields))
    return wrong


def _differing(said: Sequence[str], true: Sequence[str]) -> list[int]:
    """The numbers of the fields in which a caption differs from its reference."""
    return [number for number, pair in enumerate(zip(said, true, strict=True)) if pair[0] != pair[1]]


def _wrong_findings(statuses: Statuses, names: Sequence[str], first: int) -> list[int]:
    """The numbers of the findings that a caption has wrong; topics count from `first` on."""
    return [first + number for number, name in enumerate(names) if name in statuses and is_wrong(statuses[name])]


def _confusions(fields: Fields, said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> list[Confusion]:
    """The tables of the fields that have one."""
    tables = []
    for name, captions, references in zip(fields.names, zip(*said, strict=True), zip(*true, strict=True), strict=True):
        table = confusion(name, captions, references)
        if table is not None:
            tables.append(table)
    return tables


def _packed_rows(rows: Sequence[_Row], topics: Sequence[Text], wrong: Sequence[list[int]]) -> tuple[str, int]:
    """The rows for the page, as many as fit into it, and how many they are."""
    count = min(len(rows), _SAMPLE)
    text = _pack(rows[:count], topics, wrong)
    if count < len(rows):  # a guess, a little high: more rows share more of their texts
        count = min(len(rows), int(1.2 * count * _MAX_PACKED / len(text)))
        text = _pack(rows[:count], topics, wrong)
    while len(text) > _MAX_PACKED:
        count = int(count * 0.95 * _MAX_PACKED / len(text))
        text = _pack(rows[:count], topics, wrong)
    return text, count


def _pack(rows: Sequence[_Row], topics: Sequence[Text], wrong: Sequence[list[int]]) -> str:
    return packed(_content(rows) | {"topics": topics, "wrong": wrong[:len(rows)]})


def _content(rows: Sequence[_Row]) -> dict[str, Any]:
    """The columns of the table."""
    names = _score_names(rows)
    return _text_columns(rows) | {
        "ids": [row.slide_id for row in rows],
        "confidence": [_rounded(row.confidence) for row in rows],
        "cut": [int(row.is_cut) for row in rows],
        "unusual": [reasons_in_words(row.unusual) if row.unusual else None for row in rows],
        "right": [int(row.is_right) for row in rows],
        "scores": [_score_column(name, rows) for name in names],
        "first": names.index("rouge_l") if "rouge_l" in names else 0,
    }


def _text_columns(rows: Sequence[_Row]) -> dict[str, Any]:
    """Each different text once, and the numbers of those that belong to each row."""
    numbers: dict[str, int] = {}  # text -> its place in `texts`

    def number(text: str) -> int:
        return numbers.setdefault(_shortened(text), len(numbers))

    captions = [number(row.caption) for row in rows]
    references = [list(map(number, row.references)) for row in rows]
    return {"captions": captions, "references": references, "texts": list(numbers)}


def _score_names(rows: Sequence[_Row]) -> list[str]:
    present = {name for row in rows for name in row.scores}
    return [name for name in SCORES if name in present]


def _score_column(name: str, rows: Sequence[_Row]) -> dict[str, Any]:
    score = SCORES[name]
    values = [_rounded(row.scores.get(name, math.nan)) for row in rows]
    return {"name": (score.chinese, score.english), "note": note(name), "better": score.better, "values": values}


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DIGITS)
