"""The rows of a table as cases with texts, slides and splits; and what is left out, each with its reason."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..common.errors import UserError
from ..data.columns import ColumnNames, Columns, find_columns, list_columns, simple_name
from ..data.labels import id_problem
from ..data.slide_names import slide_name
from ..data.table_labels import cases_of_table
from ..data.tables import Table
from .report_text import CleanedText
from .rules import Rules
from .sections import DEFAULT

_NO_TEXT = "no text"  # why a row becomes no label


@dataclass(frozen=True)
class Layout:
    """Which column of a table is what.

    Attributes:
        columns: The id, slide and split.
        texts: (section, column) of each column that is read as text.
        patient, doctor: Columns whose values identify somebody.
    """

    columns: Columns
    texts: tuple[tuple[str, str], ...]
    patient: tuple[str, ...]
    doctor: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A case that becomes a label. Its rows are numbers of rows of the table; `slides` is () without a slide column."""

    case_id: str
    rows: tuple[int, ...]
    texts: tuple[str, ...]
    slides: tuple[str, ...]
    split: str | None

    def label(self) -> Any:
        """The case as a value of the labels JSON, as short as it can be."""
        texts: Any = self.texts[0] if len(self.texts) == 1 else list(self.texts)
        fields = {"text": texts}
        if self.slides and self.slides != (self.case_id,):
            fields["slides"] = list(self.slides)
        if self.split:
            fields["split"] = self.split
        return fields if len(fields) > 1 else texts


@dataclass(frozen=True)
class LeftOut:
    """A row or case that becomes no label."""

    case_id: str
    place: str  # in the table
    reason: str


def find_layout(table: Table, rules: Rules, named: ColumnNames, text_columns: Sequence[str] = ()) -> Layout:
    """Say which column is what.

    Args:
        table: The table.
        rules: They name the columns of the sections and of identifiers.
        named: Columns that the user has named; `text` is not used.
        text_columns: The columns of texts that the user has named, if any.

    Raises:
        UserError: Listing the columns, if the id or a text is not to be found.
    """
    texts = _named_texts(table, rules, named, text_columns) or _section_columns(table, rules)
    first_text = texts[0][1] if texts else None
    columns = find_columns(table.columns, table.path, replace(named, text=first_text))
    if not texts:
        texts = [(_section_of(columns.text, rules), columns.text)]
    _check_kept(texts, table, rules)
    taken = [column for _, column in texts]
    return Layout(columns, tuple(texts), _others_named(table, taken, rules.patient_columns),
                  _others_named(table, taken, rules.doctor_columns))


def _named_texts(table: Table, rules: Rules, named: ColumnNames, names: Sequence[str]) -> list[tuple[str, str]]:
    texts = {}  # an ordered set
    for name in names:
        column = find_columns(table.columns, table.path, replace(named, text=name)).text
        texts[_section_of(column, rules), column] = None
    return list(texts)


def _section_of(column: str, rules: Rules) -> str:
    """The section that a column of this name holds; a column of another name may hold any."""
    name = simple_name(column)
    for section_name, section in rules.sections.items():
        if name in map(simple_name, section.columns):
            return section_name
    return DEFAULT


def _others_named(table: Table, taken: Sequence[str], names: frozenset[str]) -> tuple[str, ...]:
    """The columns of these names that are not read as text."""
    return tuple(column for column in table.columns if column not in taken and simple_name(column) in names)


def _section_columns(table: Table, rules: Rules) -> list[tuple[str, str]]:
    """For each section to keep, its column that the rules name first."""
    by_name = {simple_name(column): column for column in reversed(table.columns)}
    texts = []
    for section in rules.keep_sections:
        names = map(simple_name, rules.sections[section].columns)
        columns = [by_name[name] for name in names if name in by_name]
        if columns:
            texts.append((section, columns[0]))
    return texts


def _check_kept(texts: Sequence[tuple[str, str]], table: Table, rules: Rules) -> None:
    """Raise UserError if the only texts are of a section that is not kept and may hold no other."""
    sections = {section for section, _ in texts}
    if not sections & {*rules.keep_sections, DEFAULT}:
        name = texts[0][0]
        raise UserError(table.path, f"no column of the section {', '.join(rules.keep_sections)}, only of {name}; "
                        f"its columns: {list_columns(table.columns)}", f"add --sections {name}, or name --text_column")


def known_values(row: dict[str, str], columns: Iterable[str]) -> tuple[str, ...]:
    """The values of a row in columns that identify somebody."""
    values = (part.strip() for column in columns for part in re.split(r"[,，、;；/\n]", row[column]))
    return tuple(dict.fromkeys(filter(None, values)))


def group_rows(table: Table, layout: Layout, cleaned: Sequence[CleanedText]) -> tuple[list[Case], list[LeftOut]]:
    """The cases in table order, and the rows and cases that become no label.

    Rows of one id are joined as in labels that are a table themselves (`data.table_labels`).

    Raises:
        UserError: Only some of the cases have a split.
    """
    kept, left_out = _kept_rows(table, layout.columns.id, cleaned)
    if not kept:
        return [], left_out
    values, problems = _join_rows(table, layout, {number: cleaned[number].text for number in kept})
    rows_of = _rows_of_cases(table, layout, values, kept)
    taken: set[str] = set()
    cases = []
    for case_id, value in values:
        problem = _id_problem(case_id, value, taken)
        taken.add(slide_name(case_id))
        if problem:
            problems[case_id] = problem
        else:
            cases.append(_case(case_id, value, rows_of[case_id]))
    for case_id, problem in problems.items():
        places = ", ".join(table.places[row] for row in rows_of[case_id])
        left_out.append(LeftOut(case_id, places, problem))
    _check_splits(cases, table, layout)
    return cases, left_out


def _kept_rows(table: Table, id_column: str, cleaned: Sequence[CleanedText]) -> tuple[list[int], list[LeftOut]]:
    """The numbers of the rows that say something of a case, and the others."""
    ids = [row[id_column] for row in table.rows]
    reasons = _reasons(ids, cleaned)
    left_out = [LeftOut(ids[number], table.places[number], reason) for number, reason in enumerate(reasons) if reason]
    return [number for number, reason in enumerate(reasons) if not reason], left_out


def _reasons(ids: Sequence[str], cleaned: Sequence[CleanedText]) -> list[str]:
    """Of each row why it becomes no label, or ''."""
    reasons = [_text_problem(result) if case_id else "no id" for case_id, result in zip(ids, cleaned, strict=True)]
    with_text = {case_id for case_id, reason in zip(ids, reasons, strict=True) if not reason}
    # a report stands beside the first of its slides only: the rows below name the others
    return ["" if reason == _NO_TEXT and case_id in with_text else reason
            for case_id, reason in zip(ids, reasons, strict=True)]


def _text_problem(result: CleanedText) -> str:
    if result.placeholder:
        return f"placeholder: {result.placeholder}"
    if not result.before:
        others = ", ".join(dict.fromkeys(part.section for part in result.other_parts))
        return f"no text in the kept sections, only: {others}" if others else _NO_TEXT
    if not result.text:
        rules = sorted({piece.rule for piece in (*result.removed, *result.masked)})
        return f"nothing left by the rules: {', '.join(rules)}"
    return ""


def _join_rows(table: Table, layout: Layout, texts: dict[int, str]) -> tuple[list[tuple[str, Any]], dict[str, str]]:
    """The rows that have a text as `cases_of_table` joins them."""
    columns = layout.columns
    remaining = replace(table, rows=[table.rows[row] | {columns.text: text} for row, text in texts.items()],
                        places=[table.places[row] for row in texts])
    slide = columns.id if columns.id_is_slide else columns.slide
    return cases_of_table(remaining, ColumnNames(columns.id, columns.text, slide, columns.split))


def _rows_of_cases(table: Table, layout: Layout, values: Sequence[tuple[str, Any]],
                   rows: Iterable[int]) -> dict[str, list[int]]:
    """{case id: its rows}; where each slide is a case, ids are not the cells themselves."""
    id_of = {}
    if layout.columns.id_is_slide:
        for case_id, value in values:
            id_of.update(dict.fromkeys(value["slides"], case_id))
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        cell = table.rows[row][layout.columns.id]
        rows_of[id_of.get(cell, cell)].append(row)
    return rows_of


def _id_problem(case_id: str, value: Any, taken: set[str]) -> str:
    """Why the labels could not be read again with this id; '' if they can."""
    if slide_name(case_id) in taken:
        return "another id names the same slide"
    problem = id_problem(slide_name(case_id), bool(value.get("slides")))
    return "the id is not a file name" if problem else ""


def _case(case_id: str, value: Any, rows: Sequence[int]) -> Case:
    return Case(case_id, tuple(rows), tuple(value["text"]), tuple(value.get("slides", ())), value.get("split"))


def _check_splits(cases: Sequence[Case], table: Table, layout: Layout) -> None:
    without = [case for case in cases if case.split is None]
    if 0 < len(without) < len(cases):
        raise UserError(table.path, f"{layout.columns.split} gives no split for {len(without)} cases, such as "
                        f"{without[0].case_id}", "give every case a split, or none")
