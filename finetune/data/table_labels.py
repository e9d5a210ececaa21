"""From the rows of a table to cases: several rows of a case become its slides or its texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..common.log import logger, notice
from .columns import ColumnNames, Columns, case_columns, find_columns
from .slide_names import base_name, path_parts
from .tables import Table

_BETWEEN_SLIDES = re.compile(r"[;；|\n、,，]+")
_EXCEL_ERRORS = ("#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!", "#NULL!", "#SPILL!", "#CALC!")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "训练", "训练集"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "验证", "验证集"), "val"),
    **dict.fromkeys(("test", "testing", "测试", "测试集"), "test"),
}
_MAX_LISTED = 12  # columns that the log lists


@dataclass
class _Case:
    """What the rows of one case say, each list in file order without repeats.

    Attributes:
        pairs: (texts, slides) of each place in the file that has both.
    """

    texts: dict[str, None] = field(default_factory=dict)
    slides: dict[str, None] = field(default_factory=dict)
    splits: dict[str, None] = field(default_factory=dict)
    pairs: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)

    def add(self, place: str, text: str, slides: list[str], split: str) -> None:
        """Add a row."""
        self.texts |= dict.fromkeys(filter(None, [text]))
        self.slides |= dict.fromkeys(slides)
        self.splits |= dict.fromkeys(filter(None, [split]))
        if text and slides:
            texts_here, slides_here = self.pairs.setdefault(place, (set(), set()))
            texts_here.add(text)
            slides_here.update(slides)


def cases_of_table(table: Table, named: ColumnNames | None = None) -> tuple[list[tuple[str, Any]], dict[str, str]]:
    """The cases of a table, and a log line that says which columns were taken.

    Args:
        table: A table with a row for each case, slide or text.
        named: The columns that the user has named.

    Returns:
        ((id, value in the form of a JSON label) of each case in file order, {id or row: problem}).

    Raises:
        UserError: It is not certain which column is which.
    """
    columns = find_columns(table.columns, table.path, named)
    cases, problems = _gather(table, columns)
    problems |= {case_id: problem for case_id, case in cases.items() if (problem := _problem(case, columns))}
    _log_columns(table, columns, cases)
    return [(case_id, _value(case)) for case_id, case in cases.items() if case_id not in problems], problems


def numbers_of_cases(table: Table, named: ColumnNames | None = None) -> dict[str, set[tuple[str, str]]]:
    """{id: {(column, cell)}} of the columns that name a case or a patient and are not the id: a pathology number whose
    slides are labels of their own.

    Arguments and exceptions as in `cases_of_table`.
    """
    columns = find_columns(table.columns, table.path, named)
    more = [column for column in case_columns(table.columns) if column not in columns.used]
    ids = _ids_of_slides(table, columns) if columns.id_is_slide else {}
    numbers: dict[str, set[tuple[str, str]]] = {}
    for row in table.rows:
        case_id = ids.get(row[columns.id], row[columns.id])
        numbers.setdefault(case_id, set()).update((column, row[column]) for column in more if row[column])
    return numbers


def _gather(table: Table, columns: Columns) -> tuple[dict[str, _Case], dict[str, str]]:
    """({id: what its rows say}, {row: problem} of the rows without an id)."""
    cases: dict[str, _Case] = {}
    ids = _ids_of_slides(table, columns) if columns.id_is_slide else {}
    for row, place in zip(table.rows, table.places, strict=True):
        name = row[columns.id]
        if name:
            case = cases.setdefault(ids.get(name, name), _Case())
            case.add(place, row[columns.text], _slides(row, columns), row.get(columns.split or "", ""))
    return cases, _without_id(table, columns)


def _without_id(table: Table, columns: Columns) -> dict[str, str]:
    """{row: problem} of the rows that have a text and no id."""
    rows = zip(table.rows, table.places, strict=True)
    return {f"row {place}": f"no id in column {columns.id!r}" for row, place in rows
            if row[columns.text] and not row[columns.id]}


def _ids_of_slides(table: Table, columns: Columns) -> dict[str, str]:
    """{path of a slide: its id}: its base name, or the path where several slides have that name."""
    paths = dict.fromkeys(filter(None, (row[columns.id] for row in table.rows)))
    num_paths = Counter(base_name(path) for path in paths)
    return {path: base_name(path) if num_paths[base_name(path)] == 1 else "/".join(path_parts(path)) for path in paths}


def _slides(row: dict[str, str], columns: Columns) -> list[str]:
    """The slides that a row names: one cell may hold several."""
    if columns.id_is_slide:
        return [row[columns.id]]
    if columns.slide is None:
        return []
    names = (name.strip() for name in _BETWEEN_SLIDES.split(row[columns.slide]))
    return [name for name in names if name]


def _problem(case: _Case, columns: Columns) -> str | None:
    """Why the rows of a case cannot be one label, or None."""
    if _is_mixed(case):
        return (f"its {len(case.pairs)} rows have different texts and different slides; "
                f"if each slide has its own text, set data.id_column={columns.slide}")
    splits = {_SPLIT_NAMES.get(split.casefold(), split) for split in case.splits}
    if len(splits) > 1:
        return f"is in {' and in '.join(sorted(splits))}"
    errors = [text for text in case.texts if text in _EXCEL_ERRORS]
    return f"{errors[0]} is an error of Excel" if errors else None


def _is_mixed(case: _Case) -> bool:
    """Whether each row pairs a text of its own with slides of its own: joined, texts would get wrong slides."""
    texts = {frozenset(texts) for texts, _ in case.pairs.values()}
    slides = {frozenset(slides) for _, slides in case.pairs.values()}
    return len(texts) > 1 and len(slides) > 1


def _value(case: _Case) -> dict[str, Any]:
    value: dict[str, Any] = {"text": list(case.texts) or ""}
    if case.slides:
        value["slides"] = list(case.slides)
    for split in case.splits:
        value["split"] = _SPLIT_NAMES.get(split.casefold(), split)
    return value


def _log_columns(table: Table, columns: Columns, cases: dict[str, _Case]) -> None:
    """Say what was taken: a wrong column must not pass unnoticed."""
    notice("%s: %s; not used: %s", table.path.name, columns, _listed(set(table.columns) - columns.used, table))
    num_slides = sum(len(case.slides) > 1 for case in cases.values())
    num_texts = sum(len(case.texts) > 1 for case in cases.values())
    logger.info("%s: %d rows, %d cases, of which %d have several slides and %d several texts", table.path.name,
                len(table.rows), len(cases), num_slides, num_texts)


def _listed(names: Iterable[str], table: Table) -> str:
    names = [name for name in table.columns if name in set(names)]
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return (", ".join(names[:_MAX_LISTED]) or "none") + more
